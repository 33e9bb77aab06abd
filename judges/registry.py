"""Config section -> judge, in two steps, so that a user's file travels from the driver to the workers.

`make_spec` runs in the driver and takes the file's source text along; `build_caller` runs where the judge will live.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from judges.calling import Caller, Sleep
from judges.llm import describe_llm
from judges.protocol import Judge
from judges.user.python_judge import adapt
from judges.user.user_code import load_target, read_source
from online_dpo.config.judges.hosted import PythonJudge, RewardModelJudge, VerifierJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import (
    CachedJudge,
    EnsembleJudge,
    LengthPenaltyJudge,
    NormaliseJudge,
    OuterJudge,
    ProcessJudge,
)

Inner = Mapping[str, Caller]
"""Where it is in the section -> a judge inside the one that is built."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """A judge before it is built: small, picklable, complete without the user's folder."""

    section: Any  # of `online_dpo.config.judges.JudgeSection`
    field: str  # where the section is in the config, such as `judge` or `evaluation.judges.gold`
    source: str | None = None  # content of the .py file that `target` names
    inner: Mapping[str, JudgeSpec] = dataclasses.field(default_factory=dict)  # by place in the section
    base_dir: str = "."  # what relative paths are relative to

    @property
    def label(self) -> str:
        """The judge in error messages."""
        match self.section:
            case RewardModelJudge():
                return f"{self.field}.path {self.section.path}"
            case PythonJudge():
                return f"{self.field}.target {self.section.target}"
            case LlmJudge():
                return describe_llm(self.section, self.field)
        return f"{self.field} ({self.section.type})"


def make_spec(section: Any, *, field: str, base_dir: Path) -> JudgeSpec:
    """Check what can be checked without running anything, and read the judge's file and those of judges inside it.

    Args:
        section: the judge's part of the config.
        field: the name of that part.
        base_dir: what a relative file path is relative to.

    Raises:
        JudgeError: the target names no function or class, or its file is missing or no Python.
    """
    source, inner = None, {}
    if isinstance(section, PythonJudge):
        source = read_source(section.target, label=f"{field}.target {section.target}", base_dir=base_dir)
    if isinstance(section, OuterJudge):
        inner = {p: make_spec(s, field=f"{field}.{p}", base_dir=base_dir) for p, s in section.inner.items()}
    return JudgeSpec(section=section, field=field, source=source, inner=inner, base_dir=str(base_dir.resolve()))


def build_caller(spec: JudgeSpec, *, sleep: Sleep = asyncio.sleep) -> Caller:
    """Build the judge where it will live, with those inside it.

    Raises:
        JudgeError: its code does not import, lacks the function or class, does not take the config's `args`; or its
            model cannot be used.
        ModelError: its model's folder is missing or incomplete.
    """
    inner = {place: build_caller(part, sleep=sleep) for place, part in spec.inner.items()}
    builder: Callable[[Any, JudgeSpec, Inner], Judge] = _BUILDERS[type(spec.section)]
    judge = builder(spec.section, spec, inner)
    return Caller(judge, spec.section, label=spec.label, inner=tuple(inner.values()), sleep=sleep)


def build(spec: JudgeSpec) -> Judge:
    """As `build_caller`, without the rules of calling."""
    return build_caller(spec).judge


def _build_reward_model(section: RewardModelJudge, spec: JudgeSpec, _: Inner) -> Judge:
    from judges.reward.reward_model import RewardModel  # torch and transformers

    return RewardModel(
        section.path,
        field=spec.field,
        dtype=section.dtype,
        output=section.output,
        max_tokens=section.max_tokens,
        batch_tokens=section.batch_tokens,
        engine=section.engine,
        trust_remote_code=section.trust_remote_code,
        on_gpu=section.num_gpus > 0,
    )


def _build_python(section: PythonJudge, spec: JudgeSpec, _: Inner) -> Judge:
    target = load_target(section.target, spec.source, label=spec.label)
    return adapt(target, section.args, field=spec.field, name=section.target, both_orders=section.both_orders)


def _build_llm(section: LlmJudge, spec: JudgeSpec, _: Inner) -> Judge:
    from judges.llm.building import build_llm  # httpx

    return build_llm(section, spec.field)


def _build_verifier(section: VerifierJudge, spec: JudgeSpec, _: Inner) -> Judge:
    from judges.verifier.verifier import Verifier

    return Verifier(section, field=spec.field)


def _build_process(section: ProcessJudge, spec: JudgeSpec, inner: Inner) -> Judge:
    from judges.outer.process import Process

    return Process(section, inner["judge"], field=spec.field)


def _build_ensemble(section: EnsembleJudge, spec: JudgeSpec, inner: Inner) -> Judge:
    from judges.outer.ensemble import Ensemble

    members = {place.removeprefix("judges."): caller for place, caller in inner.items()}
    return Ensemble(section, members, field=spec.field)


def _build_length_penalty(section: LengthPenaltyJudge, spec: JudgeSpec, inner: Inner) -> Judge:
    from judges.outer.wrappers import LengthPenalty

    return LengthPenalty(section, inner["judge"])


def _build_normalise(section: NormaliseJudge, spec: JudgeSpec, inner: Inner) -> Judge:
    from judges.outer.wrappers import Normalise

    return Normalise(section, inner["judge"], field=spec.field)


def _build_cached(section: CachedJudge, spec: JudgeSpec, inner: Inner) -> Judge:
    from judges.fingerprint import fingerprint
    from judges.outer.cache import Cached

    path = Path(spec.base_dir) / Path(section.path).expanduser()
    key = fingerprint(spec.inner["judge"], version=section.version)
    return Cached(inner["judge"], path=path, key=key, field=f"{spec.field}.path")


_BUILDERS: dict[type, Callable[[Any, JudgeSpec, Inner], Judge]] = {
    RewardModelJudge: _build_reward_model,
    PythonJudge: _build_python,
    LlmJudge: _build_llm,
    VerifierJudge: _build_verifier,
    ProcessJudge: _build_process,
    EnsembleJudge: _build_ensemble,
    LengthPenaltyJudge: _build_length_penalty,
    NormaliseJudge: _build_normalise,
    CachedJudge: _build_cached,
}
