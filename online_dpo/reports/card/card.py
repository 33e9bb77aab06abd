"""A run -> `README.md` with metadata for the hub, and its curves as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from online_dpo.config.judges.section import hosted_judges
from online_dpo.config.loading import to_yaml
from online_dpo.config.run import RunConfig
from online_dpo.reports.card.markdown import fenced, plain
from online_dpo.reports.card.public_config import hub_id, public_config, public_name
from online_dpo.reports.data_set_lines import show_preferences
from online_dpo.reports.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Drawing, draw, number
from online_dpo.reports.page.headline import headline
from online_dpo.reports.page.run_charts import run_charts
from online_dpo.reports.page.run_record import RunRecord
from online_dpo.reports.page.safe_text import visible
from online_dpo.reports.results import Estimate, EvaluationResult, RoundResult
from online_dpo.store.forking import describe_forks
from online_dpo.types import REWARD

CARD, CURVES = "README.md", "curves.svg"
TRAINED = ("prompts.", "pairs.", "sft.")
"""How the fields of data sets begin that a run trains on."""
COLOURS = ("#0b62a4", "#c4501b", "#2e7d32", "#7b3fa0", "#8a6d00", "#00798c")
MOST_WARNINGS, MOST_CHARTS = 8, 4


def write_card(
    record: RunRecord, index: int, folder: Path, *, form: str, sources: Mapping[str, str], base_license: str | None
) -> None:
    """Write the card of a policy, and its curves where the run has any.

    Args:
        record: of the run.
        index: of the round that made the policy.
        folder: gets the files.
        form: "adapter", "model", or the name of the trainer that the folder is for.
        sources: field of the config -> what it names, of each data set.
        base_license: of the base model, where it is known.
    """
    config = record.config
    assert config is not None  # whoever exports has read it
    results = [result for result in record.results if result.round <= index]
    record = replace(record, results=results, finished=[i for i in record.finished if i <= index])
    found = (draw(chart) for chart in run_charts(results, record.initial) if chart.kind == "lines")
    drawings = [drawing for drawing in found if drawing is not None and _is_curve(drawing)][:MOST_CHARTS]
    if drawings:
        (folder / CURVES).write_text(_svg(drawings), encoding="utf-8")
    body = _environment(autoescape=False).get_template("card.md.jinja").render(
        **_values(record, config, index, form, sources), has_curves=bool(drawings), curves=CURVES
    )  # fmt: skip
    (folder / CARD).write_text(f"{_metadata(config, form, sources, base_license)}\n{body}", encoding="utf-8")


def _metadata(config: RunConfig, form: str, sources: Mapping[str, str], base_license: str | None) -> str:
    """The block of YAML that the hub reads."""
    from huggingface_hub import ModelCardData

    trained = (source for field, source in sources.items() if field.startswith(TRAINED))
    datasets = [name for source in trained if (name := hub_id(source))]
    data = ModelCardData(
        base_model=hub_id(config.model.path),
        library_name="transformers" if form == "model" else "peft",
        license=base_license,
        datasets=list(dict.fromkeys(datasets)) or None,
        pipeline_tag="text-generation",
        tags=["online-dpo", "preference-optimization", config.objective.type, *([] if form == "model" else ["lora"])],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _values(record: RunRecord, config: RunConfig, index: int, form: str, sources: Mapping[str, str]) -> dict[str, Any]:
    head = headline(record)
    last = next((result for result in record.results if result.round == index), None)
    held_out = [] if last is None else list(_held_out(last))
    base = plain(public_name(config.model.path))
    what = "online preference training" if config.prompts is not None else "training on a data set of preferences"
    if config.objective.type == "sft":
        what = "supervised fine-tuning"
    columns = [(name, read) for name, read in _COLUMNS if any(read(result) is not None for result in record.results)]
    return {
        "title": plain(record.name),
        "summary": (
            f"The policy after round {index + 1} of the run {plain(record.name)}: {base} after {what} "
            f"(objective {plain(config.objective.type)}) with online-dpo. This card was written by a program from what "
            f"the run recorded."
        ),
        "headline": plain(head.sentence),
        "usage": _usage(form, base, hub_id(config.model.path) or "BASE_MODEL"),
        "made": list(_made(record, config, sources)),
        "held_out": held_out,
        "has_answers": last is not None and bool(last.evaluation),
        "unmeasured": (
            f"The policy of round {index + 1} was not measured on held-out prompts or pairs: nothing here says that it "
            f"is better than the model it began with."
        ),
        "columns": ["round", *(name for name, _ in columns)],
        "rounds": [
            [str(result.policy_version), *(_cell(read(result)) for _, read in columns)] for result in record.results
        ],
        "warnings": [plain(public_text(warning.text)) for warning in head.warnings[:MOST_WARNINGS]],
        "versions": plain(", ".join(f"{n} {v}" for n, v in record.info.get("packages", {}).items()) or "not recorded"),
        "config": fenced(to_yaml(public_config(config)), "yaml"),
    }


def public_text(text: str) -> str:
    """A sentence, with only the names of the paths in it."""
    return " ".join(public_name(word) for word in text.split())


def _usage(form: str, base: str, place: str) -> str:
    if form == "model":
        return fenced(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            "python",
        )
    if form == "adapter":
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{place}")\n'
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")'
        )
        return f"This is a LoRA adapter in PEFT's format, for the base model {base}.\n\n{fenced(code, 'python')}"
    script = {"grpo": "python train_grpo.py", "verl": "sh train_verl.sh"}[form]
    return f"This folder goes on with reinforcement learning: `{script}`. The policy is in `policy/`."


def _made(record: RunRecord, config: RunConfig, sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "base model", plain(public_name(config.model.path))
    if config.model.adapter is not None:
        yield "initial policy", f"the base model with the adapter {plain(public_name(config.model.adapter))}"
    for start, what in (("sft.", "fine-tuned first on"), ("prompts.", "prompts"), ("pairs.", "written data")):
        named = [public_name(source) for field, source in sources.items() if field.startswith(start)]
        if named:
            yield what, plain(", ".join(named))
    if config.prompts is not None:
        sampled = sum(result.sampling.num_prompts or 0 for result in record.results)
        sampling = config.sampling
        yield (
            "samples",
            (
                f"{sampling.num_samples} for each of {sampled} prompts, at most {sampling.max_tokens} tokens, "
                f"temperature {sampling.temperature:g}, top\\_p {sampling.top_p:g}"
            ),
        )
    if config.candidates:
        yield "answers that are not the policy's", ", ".join(map(_writer, config.candidates))
    judges = {"judge": config.judge, "annotator": config.pairing.annotator}
    judges |= {f"evaluation judge {name}": section for name, section in config.evaluation.judges.items()}
    for name, section in judges.items():
        if section is not None:
            yield name, _judge(section)
    yield "objective", f"{plain(config.objective.type)}{_beta(config)}; reference {plain(config.reference.type)}"
    yield "rounds", f"{len(record.finished)}" + (f" of {record.num_rounds}" if record.num_rounds else "")
    trained = sum(result.pairs.num_pairs or result.pairs.num_demonstrations or 0 for result in record.results)
    if trained:
        yield "pairs or demonstrations, of all rounds", str(trained)
    steps = sum(result.learning.num_steps or 0 for result in record.results)
    if steps:
        yield "optimizer steps", str(steps)
    yield "seed", str(config.run.seed)
    yield from (("the run was", plain(public_text(line))) for line in describe_forks(record.info))


def _beta(config: RunConfig) -> str:
    beta = getattr(config.objective, "beta", None)
    return f", beta {beta:g}" if isinstance(beta, int | float) else ""


def _judge(section: Any) -> str:
    """Its kind, and the models or code that answer."""
    inner = [name for _, hosted in hosted_judges(section, "judge") if (name := _who(hosted)) is not None]
    return plain(section.type) + (f": {', '.join(inner)}" if inner else "")


def _writer(section: Any) -> str:
    who = _who(section)
    return plain(section.type) + (f" ({who})" if who is not None else "")


def _who(section: Any) -> str | None:
    """The model or code that answers."""
    endpoint, engine = getattr(section, "endpoint", None), getattr(section, "engine", None)
    name = getattr(section, "target", None) or getattr(section, "path", None) or getattr(endpoint, "model", None)
    name = name or getattr(engine, "path", None)
    return None if name is None else plain(public_name(str(name)))


def _held_out(result: RoundResult) -> Iterator[tuple[str, str, str]]:
    for name, evaluation in result.evaluation.items():
        for judge in sorted(evaluation.judges, key=lambda judge: judge == REWARD):
            found, who = evaluation.judges[judge], "training judge" if judge == REWARD else f"judge {judge}"
            if found.mean is not None:
                yield plain(name), plain(f"{who}, mean score"), number(found.mean)
            if found.gain is not None:
                yield plain(name), plain(f"{who}, gain"), _interval(found.gain)
            if found.win_rate is not None:
                yield plain(name), plain(f"{who}, share of prompts won"), _interval(found.win_rate)
            if found.num_abstained:
                yield plain(name), plain(f"{who}, abstentions"), str(found.num_abstained)
        yield from ((plain(name), figure, number(value)) for figure, value in _prices(evaluation) if value is not None)
    for name, figures in result.evaluation_pairs.items():
        yield plain(name), "written answers", plain(show_preferences(figures))


def _prices(evaluation: EvaluationResult) -> Iterator[tuple[str, float | None]]:
    yield "KL to the initial policy, nats per answer", evaluation.kl_initial
    yield "tokens per answer", evaluation.sampling.length_mean
    yield "distinct-2", evaluation.sampling.distinct_2


_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("pairs or demonstrations", lambda r: r.pairs.num_pairs or r.pairs.num_demonstrations),
    ("reward of own samples", lambda r: r.judging.reward),
    ("loss", lambda r: r.learning.loss),
    ("reward accuracy", lambda r: r.learning.reward_accuracy),
    ("held-out reward", lambda r: _first(r, lambda e: e.judges[REWARD].mean if REWARD in e.judges else None)),
    ("KL to the initial policy", lambda r: _first(r, lambda e: e.kl_initial)),
    ("tokens per answer", lambda r: _first(r, lambda e: e.sampling.length_mean)),
)


def _first(result: RoundResult, read: Any) -> float | None:
    """Of the first evaluation set."""
    value: float | None = read(next(iter(result.evaluation.values()))) if result.evaluation else None
    return value


def _cell(value: float | None) -> str:
    return "" if value is None else number(float(value))


def _interval(found: Estimate) -> str:
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"


def _is_curve(drawing: Drawing) -> bool:
    """Whether it has more than one point: one point is in the table."""
    return any(len(series.points) > 1 for series in drawing.chart.series)


def _svg(drawings: Sequence[Drawing]) -> str:
    return _environment(autoescape=True).get_template("curves.svg.jinja").render(
        drawings=drawings, colours=COLOURS, width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, bottom=BOTTOM
    )  # fmt: skip


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("online_dpo.reports.card"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if autoescape:
        environment.finalize = lambda value: visible(value) if type(value) is str else value
    return environment
