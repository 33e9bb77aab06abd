"""What of a round is done anew where a run is forked under another config: the first stage that reads what changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from online_dpo.config.control import PathReference
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.learner.items import kind_of_items
from online_dpo.store.candidates import PARTS, WHOLE
from online_dpo.store.run_format import INITIAL_POLICY
from online_dpo.store.shards import Asked
from online_dpo.types import REWARD

STAGES = ("sample", "judge", "pair", "learn")
"""In the order of a round."""

_READ_BY = {
    "judge": "judge",
    "judge.view": "sample",  # tokens of answers are committed with the samples
    "judge.view.unclosed": "judge",
    "verdicts": "judge",
    "pairing": "pair",
    "pairs": "pair",
    "replay": "pair",
    "reference": "pair",  # the reference's log-probs are committed with the pairs
    "sampling.truncated": "pair",
    "sampling.truncated_penalty": "pair",
    "learner": "learn",
    # Reference log-probs are computed as training computes, so that a policy equal to its reference has a loss of ln 2.
    "learner.layout": "pair",
    "learner.autocast": "pair",
    "learner.compile": "pair",
    "objective": "learn",
    "drift": "learn",
    "alarm": "learn",
    "evaluation": "learn",
    "run.rounds": "learn",
}
"""Section or field -> the stage that reads it first; whatever is not listed shapes the samples."""

_FIRST_ROUND_ONLY = {
    "model": "the policy that the round begins with was made of the former",
    "sft": "the policy that the round begins with was made by the former",
    "run.seed": "the former prompts were drawn with the former",
    "overlap": "it settles which policy samples the round",
    "prompts": "the rounds before drew from the former",
    "pairs": "the rounds before drew from the former",
    "learner.lora": "the adapter that the round begins with has the former shape",
    "evaluation.sets": "the initial policy was evaluated on the former",
    "evaluation.pairs": "the initial policy was evaluated on the former",
    "generator.shard_prompts": "the rounds before are stored in the former shards",
}
_AT_ANY_ROUND = ("prompts.per_round", "pairs.fraction", "learner.lora.dropout")

_ANNOTATED = ("selected", "verdicts-annotator/", "parts-annotator/")
"""What the annotator said. Where it is about other pairs than those of the fork, it is forgotten when it is asked."""

_COMMITS = {
    "sample": (INITIAL_POLICY, "draw", "prompts", "completions/"),
    "judge": ("verdicts/", "repeats/", "parts/", "repeat-parts/", "not-covered"),
    "pair": (*_ANNOTATED, "pairs", "pairs-draw", "labelled", "demonstrations", "reference-logps", "replay"),
}
"""Stage -> what it commits of a round that a fork can take; names of folders end with a slash."""


def first_stage(old: RunConfig, new: RunConfig, changed: Collection[str]) -> tuple[str, str | None]:
    """The first stage of a round that reads what changed, and a field that says so; `learn` where nothing did.

    Args:
        old: of the run that is forked.
        new: of the fork.
        changed: fields, and fields that name a file whose content changed.
    """
    by_stage = {stage: [f for f in changed if _entry(_READ_BY, f, "sample") == stage] for stage in STAGES}
    if new.sft is not None and (shape := [f for f in changed if f.startswith("learner.lora")]):
        by_stage["sample"].append(shape[0])  # of the initial policy, which the fine-tuning made
    if kind_of_items(old.objective) is not kind_of_items(new.objective):
        by_stage["pair"].append("objective.type")
    if old.objective.needs_reference != new.objective.needs_reference:
        by_stage["pair"].append("objective")
    return next(((stage, found[0]) for stage, found in by_stage.items() if found), (STAGES[-1], None))


def check_later_round(old: RunConfig, new: RunConfig, changed: Collection[str], number: int, factor: float) -> None:
    """Refuse changes that only a fork at the first round can have.

    Args:
        old: of the run that is forked.
        new: of the fork.
        changed: as for `first_stage`.
        number: of the round, counted from 1.
        factor: by which the rounds before let beta be multiplied.

    Raises:
        ConfigError: names the fields and why.
    """
    if number == 1:
        return
    why = {f: reason for f in changed if (reason := _entry(_FIRST_ROUND_ONLY, f, "")) and f not in _AT_ANY_ROUND}
    is_given = [isinstance(config.reference, PathReference) for config in (old, new)]
    other_type = old.reference.type != new.reference.type
    if other_type and (any(is_given) or new.reference.type == "fixed"):
        why["reference.type"] = "the round begins with the reference that the rounds before left"
    elif any(is_given) and not other_type and (found := [f for f in changed if f.startswith("reference.path")]):
        why[found[0]] = "the rounds before were measured against the former"
    starts_one = new.objective.needs_reference and not old.objective.needs_reference
    if starts_one and new.reference.type in ("every", "ensemble"):
        why["objective.type"] = f"reference.type {new.reference.type} begins with a policy that the run did not keep"
    scales_beta = any(b.type == "adaptive" for b in new.objective.betas if not isinstance(b, float))
    if factor != 1.0 and not scales_beta and getattr(new.drift, "action", None) != "raise_beta":
        why["objective.beta"] = f"the rounds before multiplied beta by {factor:g}, and nothing would change that again"
    if why:
        raise ConfigError(
            "\n".join(f"{field} changed, and {reason}" for field, reason in why.items())
            + f"\na fork at round {number} cannot have this; set it back, or fork at --round 1"
        )


def changed_judges(changed: Collection[str]) -> list[str]:
    """The names of the judges that are others than before, as evaluations name them."""
    found = {REWARD for field in changed if field == "judge" or field.startswith("judge.")}
    outer = "evaluation.judges."
    return sorted(found | {field.removeprefix(outer).split(".")[0] for field in changed if field.startswith(outer)})


def is_taken(name: str, stage: str, *, changed: Collection[str]) -> bool:
    """Whether a fork takes a commit of the round that it begins with.

    Args:
        name: of the commit.
        stage: from which on the round is done anew.
        changed: as for `first_stage`.
    """
    before = STAGES[: STAGES.index(stage)]
    if name.startswith("evaluation-initial/"):
        return bool(before) and _is_taken_of_initial(name, stage, changed)
    annotator = stage == "pair" and any(field.startswith("pairing.annotator") for field in changed)
    wanted = [prefix for one in before for prefix in _COMMITS[one]]
    wanted += _ANNOTATED if stage == "pair" and not annotator else []
    if "sample" in before and name.startswith((WHOLE, PARTS)):  # each writer has a folder of its own
        return True
    return any(name == prefix or (prefix.endswith("/") and name.startswith(prefix)) for prefix in wanted)


def is_taken_record(record: Mapping[str, Any], index: int, stage: str) -> bool:
    """Whether a fork takes a record of the metrics: the checks of the generators that sampled what is taken."""
    if record.get("round") != index or stage == "sample":
        return False
    if record["kind"] == "pushed":
        return bool(record["policy_version"] <= index)
    return record["kind"] == "rescored" and not record["base"].startswith("evaluation/")


def _is_taken_of_initial(name: str, stage: str, changed: Collection[str]) -> bool:
    """The initial policy's answers where their set is the same, and verdicts on them of judges who are."""
    _, set_name, part = name.split("/", 2)
    if any(field.startswith(f"evaluation.sets.{set_name}.") for field in changed):
        return False
    if part == "prompts" or part.startswith("completions/"):
        return True
    judges = {REWARD} if stage == "judge" else set()
    folder = part.split("/")[0]
    again = any(field.startswith("verdicts.") for field in changed)
    lost = [Asked(judge=judge, again=flag) for judge in {*judges, *changed_judges(changed)} for flag in (False, True)]
    return "/" in part and not again and folder not in {f for asked in lost for f in (asked.verdicts, asked.parts)}


def _entry(table: Mapping[str, str], field: str, default: str) -> str:
    """What a table says about the longest beginning of a dotted field."""
    parts = field.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((table[name] for name in names if name in table), default)
