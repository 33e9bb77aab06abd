"""Every check that looks at two sections of a config. A check of one section alone is a validator of that section.

The functions take a `RunConfig`, which is not named here because it calls them.
"""

from __future__ import annotations

from typing import Any

from online_dpo.config.candidates.checks import check_candidates
from online_dpo.config.control import FixedReference
from online_dpo.config.human_checks import check_human_judges
from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import EnsembleJudge, OuterJudge, ProcessJudge
from online_dpo.config.objective.beta import AdaptiveBeta
from online_dpo.config.pairing import ANNOTATOR, explain_no_scores


def check_consistency(config: Any) -> None:
    """Refuse a `RunConfig` whose sections do not agree, or of which one would be ignored.

    Raises:
        ValueError: with the fields, their values and the remedy.
    """
    _check_num_samples(config)
    _check_pairs(config)
    check_candidates(config)
    _check_sft(config)
    _check_replay(config)
    _check_pairing(config)
    _check_weights(config)
    _check_reference(config)
    _check_measured(config)
    _check_beta(config)
    _check_layout(config)
    check_human_judges(config)


def _check_num_samples(config: Any) -> None:
    if config.sampling.num_samples < 2 and not config.candidates:
        raise ValueError(
            f"sampling.num_samples is {config.sampling.num_samples}; a pair needs at least 2 completions per prompt"
        )


def _check_pairs(config: Any) -> None:
    """Sections that a run on pairs would ignore are refused, and so is the lack of those that a run needs."""
    pairs = config.pairs
    if pairs is None:
        if config.objective.type == "sft":
            raise ValueError(
                "objective.type is sft and pairs is missing; SFT trains on demonstrations alone: set pairs.source and "
                "pairs.format to demonstrations"
            )
        missing = [name for name in ("prompts", "judge") if _is_missing(config, name)]
        if len(missing) == 1:
            raise ValueError(f"{missing[0]} is missing; it has no default, so set it")
        if missing:
            raise ValueError(
                "prompts and judge are missing; they have no default, so set both, or set pairs instead to train on a "
                "data set of preferences"
            )
        return
    if pairs.is_whole_run:
        _check_nothing_is_ignored(config)
    else:
        _check_online_rounds(config)
    _check_objective_of_pairs(config)


def _check_replay(config: Any) -> None:
    replay, pairs = config.replay, config.pairs
    if replay is None or pairs is None:
        return
    if pairs.is_whole_run:
        raise ValueError(
            "replay is set, but every round trains on pairs alone; these come back with learner.epochs: remove replay"
        )
    if replay.fraction + (pairs.fraction or 0.0) >= 1.0:
        raise ValueError(
            f"replay.fraction is {replay.fraction} and pairs.fraction is {pairs.fraction}, which leaves nothing for a "
            f"round's own samples: lower one of them"
        )


def _is_missing(config: Any, name: str) -> bool:
    """Whether a section is not set that a run needs which samples: no judge, where answers are assumed to be better."""
    return getattr(config, name) is None and not (name == "judge" and config.assumed_better)


def _check_nothing_is_ignored(config: Any) -> None:
    why = "but pairs has neither warm_start_rounds nor fraction, so that every round trains on pairs alone"
    for name in ("prompts", "judge"):
        if getattr(config, name) is not None:
            hint = " (a judge of evaluation samples goes under evaluation.judges)" if name == "judge" else ""
            raise ValueError(f"{name} is set, {why}: remove {name}{hint}, or set one of the two")
    if config.pairing != type(config.pairing)():
        raise ValueError(f"pairing is set, {why} and nothing is paired: remove pairing, or set one of the two")
    if config.overlap:
        raise ValueError(f"overlap is {config.overlap}, {why} and nothing is sampled ahead: set overlap to 0")
    if config.verdicts.min_coverage != type(config.verdicts)().min_coverage:
        raise ValueError(
            f"verdicts.min_coverage is {config.verdicts.min_coverage:g}, {why} and nothing is judged: remove it, or "
            f"set one of the two"
        )
    if config.verdicts.repeated and not config.evaluation.judges:
        raise ValueError(
            f"verdicts.repeated is {config.verdicts.repeated:g}, {why} and there is no judge: remove it, or add "
            f"evaluation.judges"
        )
    if config.evaluation.judges and not config.evaluation.sets:
        raise ValueError(
            f"evaluation.judges is set, {why} and there is no sample to judge: remove it, or add evaluation.sets"
        )
    read = {"max_tokens", "stop"} if config.evaluation.sets else set()
    default = type(config.sampling)()
    for name in type(config.sampling).model_fields:
        if name not in read and getattr(config.sampling, name) != getattr(default, name):
            hint = "evaluation samples are drawn at temperature 1, one per prompt" if read else "nothing is sampled"
            raise ValueError(
                f"sampling.{name} is {getattr(config.sampling, name)}, {why}; {hint}: remove it, or set one of the two"
            )


def _check_online_rounds(config: Any) -> None:
    pairs = config.pairs
    name = "warm_start_rounds" if pairs.warm_start_rounds is not None else "fraction"
    for section in ("prompts", "judge"):
        if _is_missing(config, section):
            raise ValueError(
                f"pairs.{name} is {getattr(pairs, name)}, which leaves rounds that sample and judge, but {section} is "
                f"missing: set it, or remove pairs.{name} to train on pairs alone"
            )
    if pairs.warm_start_rounds is not None and pairs.warm_start_rounds >= config.run.rounds:
        raise ValueError(
            f"pairs.warm_start_rounds is {pairs.warm_start_rounds} and run.rounds is {config.run.rounds}, which leaves "
            f"no online round: raise run.rounds, or remove warm_start_rounds, prompts and judge to train on pairs alone"
        )
    if pairs.chat_template_kwargs:
        raise ValueError(
            "pairs.chat_template_kwargs and prompts are both set; both kinds of prompts are written by one template: "
            "use prompts.chat_template_kwargs, which holds for pairs as well"
        )


def _check_objective_of_pairs(config: Any) -> None:
    pairs, objective = config.pairs, config.objective
    if pairs.is_labelled and not objective.is_unpaired:
        raise ValueError(
            f"pairs.format is labelled and objective.type is {objective.type}, which compares two answers; set "
            f"objective.type to kto, or give pairs of answers"
        )
    if (pairs.format == "demonstrations") != (objective.type == "sft"):
        raise ValueError(
            f"pairs.format is {pairs.format} and objective.type is {objective.type}; sft alone trains on "
            f"demonstrations, and on nothing else: change one of them, or move demonstrations into the section sft, "
            f"which comes before the rounds of another objective"
        )
    if objective.type == "sft" and not pairs.is_whole_run:
        name = "warm_start_rounds" if pairs.warm_start_rounds is not None else "fraction"
        raise ValueError(
            f"objective.type is sft and pairs.{name} is {getattr(pairs, name)}; SFT is a run on pairs alone: remove "
            f"it, or move pairs into the section sft, which comes before the rounds of another objective"
        )
    for term in [term.objective for term in getattr(objective, "terms", ())] or [objective]:
        for name, unused in (("soft_labels", False), ("pair_weights", "given")):
            if (value := getattr(term, name, unused)) != unused:
                raise ValueError(
                    f"objective.{name} is {value}, which reads what a judge says about a pair, and pairs.source comes "
                    f"without a judge: remove it, or train on sampled pairs alone"
                )


def _check_sft(config: Any) -> None:
    """What comes before the first round is a run on demonstrations alone."""
    if config.sft is None:
        return
    if config.objective.type == "sft":
        raise ValueError("objective.type is sft and sft is set; the whole run is SFT already: remove the section sft")
    pairs = config.sft.pairs
    if pairs.format != "demonstrations":
        raise ValueError(
            f"sft.pairs.format is {pairs.format}; SFT trains on demonstrations alone: set sft.pairs.format to "
            f"demonstrations"
        )
    if not pairs.is_whole_run:
        name = "warm_start_rounds" if pairs.warm_start_rounds is not None else "fraction"
        raise ValueError(
            f"sft.pairs.{name} is {getattr(pairs, name)}; every round of sft trains on demonstrations alone, and "
            f"sft.rounds says how many there are: remove it"
        )
    if pairs.chat_template_kwargs:
        section = "pairs" if config.prompts is None else "prompts"
        raise ValueError(
            f"sft.pairs.chat_template_kwargs is set; a run has one template: set {section}.chat_template_kwargs, which "
            f"holds for sft as well"
        )


def _check_pairing(config: Any) -> None:
    """The objective and the judges must go with the `pairing` section."""
    rules = config.pairing
    if rules.labels is not None and not config.objective.is_unpaired:
        raise ValueError(
            f"pairing.labels is set, but objective.type is {config.objective.type}, which compares two answers: set "
            f"objective.type to kto, or remove pairing.labels"
        )
    if rules.annotator is not None and ANNOTATOR in config.evaluation.judges:
        raise ValueError(
            "evaluation.judges has a judge named annotator; with pairing.annotator that name is taken: choose another"
        )
    view = config.view
    if rules.labels is not None and view is not None and view.unclosed == "worst":
        raise ValueError(
            "judge.view.unclosed is worst and pairing.labels is set, which reads a score of every answer: set unclosed "
            "to a score, or to abstain"
        )
    if rules.score_reader is not None and config.judge is not None and _only_compares(config.judge):
        raise ValueError(explain_no_scores(rules, f"judge.type {config.judge.type} as it is set"))


def _only_compares(section: Any) -> bool:
    """Whether a judge is known from its section to score nothing."""
    if isinstance(section, HumanJudge):
        return True
    if isinstance(section, LlmJudge):
        return section.form == "pairwise"
    if isinstance(section, EnsembleJudge) and section.aggregate == "majority":
        return True
    if isinstance(section, OuterJudge) and not isinstance(section, ProcessJudge):
        return any(map(_only_compares, section.inner.values()))
    return False


def _check_weights(config: Any) -> None:
    """The push and the adapter must go with the model."""
    if config.model.quantization is not None:
        named = f"model.quantization is {config.model.quantization}"
        if config.generator.weight_push == "merge":
            raise ValueError(
                f"{named} and generator.weight_push is merge; merging into quantised weights is not exact: remove "
                f"generator.weight_push, or set it to lora"
            )
        for name, dtype in (("model.dtype", config.model.dtype), ("generator.dtype", config.engine_dtype)):
            if dtype != "bfloat16":
                raise ValueError(
                    f"{named} and {name} is {dtype}; weights in 4 bits are computed with in bfloat16: set {name} to "
                    f"bfloat16"
                )
    if config.model.adapter is not None and config.learner.lora is not None:
        raise ValueError(
            "learner.lora is set and model.adapter is continued; rank, alpha and targets come from the adapter: "
            "remove learner.lora, or merge the adapter into the model first"
        )


def _check_reference(config: Any) -> None:
    """The reference must go with the objective and with what is trained on."""
    objective = config.objective
    if not objective.needs_reference and not isinstance(config.reference, FixedReference):
        raise ValueError(
            f"reference.type is {config.reference.type} and objective.type is {objective.type}, which has no "
            f"reference to schedule: remove the reference section, or choose another objective"
        )
    if objective.is_unpaired and config.reference.logps == "sampler":
        raise ValueError(
            f"reference.logps is sampler and objective.type is {objective.type}, whose KL estimate needs answers to "
            f"other prompts, which were not sampled: set reference.logps to recompute"
        )
    if config.reference.logps == "sampler" and config.overlap and config.reference.rounds == 1:
        raise ValueError(
            "reference.logps is sampler, reference.rounds is 1 and overlap is 1: every round is sampled by the policy "
            "before its reference, whose log-probs are others: set reference.logps to recompute, or overlap to 0"
        )
    if config.reference.logps == "sampler" and config.pairs is not None and config.pairs.is_whole_run:
        raise ValueError(
            "reference.logps is sampler and every round trains on pairs.source alone, which no policy of the run "
            "sampled: set reference.logps to recompute"
        )


def _check_measured(config: Any) -> None:
    """What looks at fresh samples needs evaluation sets, and over-optimisation two judges of them."""
    measured = {
        "objective.beta is adaptive": _is_adaptive(config),
        "drift is set": config.drift,
        "alarm is set": config.alarm,
    }
    for what, is_on in measured.items():
        if is_on and not config.evaluation.sets:
            raise ValueError(
                f"{what} and evaluation.sets is empty; KL and diversity are measured on fresh samples for an "
                f"evaluation set: add one, such as evaluation.sets.heldout.source"
            )
    if config.alarm is not None and config.alarm.over_optimisation is True:
        judges = {"judge": config.judge, "evaluation.judges": config.evaluation.judges}
        missing = [name for name, found in judges.items() if not found]
        if missing:
            raise ValueError(
                f"alarm.over_optimisation is true and {missing[0]} is missing; it compares the training judge with "
                f"those of the evaluation: add it, or set alarm.over_optimisation to auto"
            )


def _is_adaptive(config: Any) -> bool:
    return any(isinstance(beta, AdaptiveBeta) for beta in config.objective.betas)


def _check_beta(config: Any) -> None:
    """At most one thing moves beta, and only a beta that holds the policy to a reference."""
    objective, is_adaptive = config.objective, _is_adaptive(config)
    raises_beta = config.drift is not None and config.drift.action == "raise_beta"
    if is_adaptive and raises_beta:
        raise ValueError(
            "drift.action is raise_beta and objective.beta is adaptive; only one of them can move beta: set "
            "drift.action to warn or stop, or objective.beta to a number or a schedule"
        )
    if (is_adaptive or raises_beta) and not objective.needs_reference:
        raise ValueError(
            f"{'objective.beta is adaptive' if is_adaptive else 'drift.action is raise_beta'} and objective.type is "
            f"{objective.type}, whose beta holds the policy to no reference: give beta a number or a schedule and "
            f"drift.action warn or stop, or choose another objective"
        )


def _check_layout(config: Any) -> None:
    """A GPU that is used in turns has one engine, and nobody else sets its shares."""
    if config.layout != "colocated":
        return
    if not config.needs_generators:
        raise ValueError(
            "layout is colocated and nothing is sampled, so that no engine shares a GPU with the learner: remove layout"
        )
    if config.overlap:
        raise ValueError(
            "layout is colocated and overlap is 1; an engine and a learner that take turns on one GPU cannot work at "
            "once: set overlap to 0, or layout to separate"
        )
    for name in ("replicas", "tensor_parallel"):
        if (value := getattr(config.generator, name)) != 1:
            raise ValueError(
                f"layout is colocated and generator.{name} is {value}; one engine and the learner use one GPU in "
                f"turns: set generator.{name} to 1, or layout to separate"
            )
    if (workers := config.learner.num_workers) != 1:
        raise ValueError(
            f"layout is colocated and learner.num_workers is {workers}; one engine and one worker use one GPU in "
            f"turns: set learner.num_workers to 1, or layout to separate"
        )
    for name in ("generator", "learner"):
        if (value := getattr(config, name).num_gpus) != "auto":
            raise ValueError(
                f"layout is colocated and {name}.num_gpus is {value:g}; the shares of the one GPU follow from the "
                f"layout: remove {name}.num_gpus, or set layout to separate"
            )
