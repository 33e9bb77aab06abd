"""Config section -> judge, in two steps, so that a user's file travels from the driver to the workers.

`make_spec` runs in the driver and takes the file's source text along; `build_caller` runs where the judge will live.

A new kind of judge needs three things: a section in `online_dpo.config.judges`, a module of its own with a function
`build(spec, inner, hosting)`, and a line in `MODULES`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judges.calling import Caller, Sleep
from judges.hosting import NO_HOSTING, Hosting
from judges.protocol import Judge
from judges.spec import JudgeSpec
from judges.user.user_code import read_source
from online_dpo.config.judges.hosted import (
    ProcessRewardModelJudge,
    PythonJudge,
    RewardModelJudge,
    VerifierJudge,
)
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import (
    CachedJudge,
    EnsembleJudge,
    LengthPenaltyJudge,
    NormaliseJudge,
    OuterJudge,
    ProcessJudge,
)
from online_dpo.config.judges.view import ViewSection
from online_dpo.importing import quick_imports

MODULES: Mapping[type, str] = {
    RewardModelJudge: "judges.reward.reward_model",
    ProcessRewardModelJudge: "judges.reward.process_reward_model",
    PythonJudge: "judges.user.judge_process",
    LlmJudge: "judges.llm.building",
    VerifierJudge: "judges.verifier.verifier",
    ProcessJudge: "judges.outer.process",
    EnsembleJudge: "judges.outer.ensemble",
    LengthPenaltyJudge: "judges.outer.length_penalty",
    NormaliseJudge: "judges.outer.normalise",
    CachedJudge: "judges.outer.cache",
}
"""Section -> the module whose `build` makes the judge. It is imported when such a judge is built, because some of them
import torch, transformers or httpx."""


def make_spec(section: Any, *, field: str, base_dir: Path, view: ViewSection | None = None) -> JudgeSpec:
    """Check what can be checked without running anything, and read the judge's file and those of judges inside it.

    Args:
        section: the judge's part of the config.
        field: the name of that part.
        base_dir: what a relative file path is relative to.
        view: of the training judge, for a judge that has none of its own.

    Raises:
        JudgeError: the target names no function or class, or its file is missing or no Python.
    """
    source, inner = None, {}
    if isinstance(section, PythonJudge):
        source = read_source(section.target, label=f"{field}.target {section.target}", base_dir=base_dir)
    if isinstance(section, OuterJudge):
        inner = {p: make_spec(s, field=f"{field}.{p}", base_dir=base_dir) for p, s in section.inner.items()}
    return JudgeSpec(
        section=section,
        field=field,
        source=source,
        inner=inner,
        base_dir=str(base_dir.resolve()),
        view=section.view or view,
    )


def build_caller(spec: JudgeSpec, *, hosting: Hosting = NO_HOSTING, sleep: Sleep = asyncio.sleep) -> Caller:
    """Build the judge where it will live, with those inside it.

    Args:
        spec: of the judge.
        hosting: what this place offers.
        sleep: waits between retries, in seconds.

    Raises:
        JudgeError: its code does not import, lacks the function or class, does not take the config's `args`; or its
            model cannot be used.
        ModelError: its model's folder is missing or incomplete.
    """
    inner = {place: build_caller(part, hosting=hosting, sleep=sleep) for place, part in spec.inner.items()}
    with quick_imports():
        module = importlib.import_module(MODULES[type(spec.section)])
    judge = module.build(spec, inner, hosting)
    return Caller(judge, spec.section, label=spec.label, inner=tuple(inner.values()), sleep=sleep)


def build(spec: JudgeSpec) -> Judge:
    """The judge alone, without the rules by which it is called."""
    return build_caller(spec).judge
