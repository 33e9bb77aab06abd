"""The config of preferences that were written down before the run: `pairs`, and `evaluation.pairs`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from online_dpo.config.base import Section

DEFAULT_MAX_TOKENS = 512


class PairColumns(Section):
    """A data set of preferences and its columns."""

    source: str  # a hub id or a .jsonl/.jsonl.gz/.json/.parquet/.csv file
    subset: str | None = None  # the `name` of a hub data set's configuration
    split: str = "train"
    prompt: str | None = "prompt"  # null = there is none: the answers are whole conversations that begin alike
    chosen: str = "chosen"
    rejected: str = "rejected"

    @property
    def columns(self) -> dict[str, str]:
        """The fields that name what is read besides the prompt -> the column that each names."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    @property
    def is_labelled(self) -> bool:
        """Whether a row is one answer with a label rather than two answers."""
        return False


class PairsSection(PairColumns):
    """Preferences to train on: in every round (no `prompts`, no `judge`), before the online rounds, or beside them."""

    format: Literal["pairs", "labelled"] = "pairs"  # labelled = one answer and whether it is good, for KTO
    completion: str = "completion"  # these two columns instead of chosen and rejected, of labelled answers
    label: str = "label"
    per_round: int | None = Field(None, ge=1)  # of a round without samples; null = all, so that it is an epoch
    warm_start_rounds: int | None = Field(None, ge=1)  # so many first rounds train on these alone
    fraction: float | None = Field(None, gt=0.0, lt=1.0)  # of what each online round trains on
    max_prompt_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1)  # a longer prompt drops its row
    max_completion_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1)  # a longer answer loses its end
    truncated: Literal["keep", "drop"] = "keep"  # what becomes of a row with such an answer
    append_eos: bool = False  # end answers that have no end token with the tokenizer's
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)  # of a run without `prompts`

    @property
    def columns(self) -> dict[str, str]:
        return {"completion": self.completion, "label": self.label} if self.is_labelled else super().columns

    @property
    def is_labelled(self) -> bool:
        return self.format == "labelled"

    @property
    def is_whole_run(self) -> bool:
        """Whether no round samples anything to train on."""
        return self.warm_start_rounds is None and self.fraction is None

    @model_validator(mode="after")
    def _columns_are_of_the_format(self) -> PairsSection:
        unread = ("chosen", "rejected") if self.format == "labelled" else ("completion", "label")
        for name in unread:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                other = "pairs" if self.format == "labelled" else "labelled"
                raise ValueError(
                    f"pairs.{name} is {value}, but pairs.format is {self.format}, which has no such column: set it to "
                    f"{other}, or remove pairs.{name}"
                )
        return self

    @model_validator(mode="after")
    def _per_round_is_read(self) -> PairsSection:
        if self.per_round is not None and self.fraction is not None and self.warm_start_rounds is None:
            raise ValueError(
                f"pairs.per_round is {self.per_round} and pairs.fraction is {self.fraction}; the fraction settles how "
                f"many join a round's own: remove per_round, or set warm_start_rounds for rounds without samples"
            )
        return self


class EvaluationPairs(PairColumns):
    """Held-out pairs: whether the policy tells the preferred answer. Limits that are null are those of `pairs`."""

    count: int = Field(256, ge=1)
    max_prompt_tokens: int | None = Field(None, ge=1)  # null also = 512 in a run without `pairs`
    max_completion_tokens: int | None = Field(None, ge=1)
    append_eos: bool | None = None  # null also = false in a run without `pairs`


def check_pairs(config: Any) -> None:
    """Refuse sections of a `RunConfig` that a run on pairs would ignore, and miss those that it needs.

    Raises:
        ValueError: with the reason and the remedy.
    """
    pairs = config.pairs
    if pairs is None:
        missing = [name for name in ("prompts", "judge") if getattr(config, name) is None]
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
    _check_objective(config)


def _check_nothing_is_ignored(config: Any) -> None:
    why = "but pairs has neither warm_start_rounds nor fraction, so that every round trains on pairs alone"
    for name in ("prompts", "judge"):
        if getattr(config, name) is not None:
            hint = " (a judge of evaluation samples goes under evaluation.judges)" if name == "judge" else ""
            raise ValueError(f"{name} is set, {why}: remove {name}{hint}, or set one of the two")
    if config.pairing != type(config.pairing)():
        raise ValueError(f"pairing is set, {why} and nothing is paired: remove pairing, or set one of the two")
    if config.verdicts.min_coverage != type(config.verdicts)().min_coverage:
        raise ValueError(
            f"verdicts.min_coverage is {config.verdicts.min_coverage:g}, {why} and nothing is labelled: remove it, or "
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
        if getattr(config, section) is None:
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


def _check_objective(config: Any) -> None:
    pairs, objective = config.pairs, config.objective
    if pairs.is_labelled and not objective.is_unpaired:
        raise ValueError(
            f"pairs.format is labelled and objective.type is {objective.type}, which compares two answers; set "
            f"objective.type to kto, or give pairs of answers"
        )
    for term in [term.objective for term in getattr(objective, "terms", ())] or [objective]:
        for name, unused in (("soft_labels", False), ("pair_weights", "given")):
            if (value := getattr(term, name, unused)) != unused:
                raise ValueError(
                    f"objective.{name} is {value}, which reads what a judge says about a pair, and pairs.source comes "
                    f"without a judge: remove it, or train on sampled pairs alone"
                )
