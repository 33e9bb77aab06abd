"""Online and iterative DPO for language models. The public names are here; importing them loads nothing heavy.

from online_dpo import load_config, run
run(load_config("configs/reviews.yaml", ["run.rounds=2"]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from online_dpo import _siblings
from online_dpo.version import __version__ as __version__

_siblings.pin()

if TYPE_CHECKING:
    from judges.protocol import Abstain, Judge, Question
    from judges.user.writing import write_judge
    from online_dpo.commands.handover.reward_function import RewardFunction, as_reward_function
    from online_dpo.commands.run import resume, run
    from online_dpo.config.loading import load_config
    from online_dpo.config.run import RunConfig
    from online_dpo.errors import OnlineDPOError, UserError
    from online_dpo.loop.stages import Event
    from online_dpo.reports.listening import Listener
    from online_dpo.reports.results import EvaluationResult, RoundResult
    from online_dpo.reports.run_result import RunResult
    from online_dpo.reports.trackers.tracker import SampleTable, TrackedRun, Tracker
    from online_dpo.types import Completion, Pair, Prompt, Verdict

_EXPORTS = {
    "Abstain": "judges.protocol",
    "Completion": "online_dpo.types",
    "EvaluationResult": "online_dpo.reports.results",
    "Event": "online_dpo.loop.stages",
    "Judge": "judges.protocol",
    "Listener": "online_dpo.reports.listening",
    "OnlineDPOError": "online_dpo.errors",
    "Pair": "online_dpo.types",
    "Prompt": "online_dpo.types",
    "Question": "judges.protocol",
    "RewardFunction": "online_dpo.commands.handover.reward_function",
    "RoundResult": "online_dpo.reports.results",
    "RunConfig": "online_dpo.config.run",
    "RunResult": "online_dpo.reports.run_result",
    "SampleTable": "online_dpo.reports.trackers.tracker",
    "TrackedRun": "online_dpo.reports.trackers.tracker",
    "Tracker": "online_dpo.reports.trackers.tracker",
    "UserError": "online_dpo.errors",
    "Verdict": "online_dpo.types",
    "as_reward_function": "online_dpo.commands.handover.reward_function",
    "load_config": "online_dpo.config.loading",
    "resume": "online_dpo.commands.run",
    "run": "online_dpo.commands.run",
    "write_judge": "judges.user.writing",
}
__all__ = [
    "Abstain",
    "Completion",
    "EvaluationResult",
    "Event",
    "Judge",
    "Listener",
    "OnlineDPOError",
    "Pair",
    "Prompt",
    "Question",
    "RewardFunction",
    "RoundResult",
    "RunConfig",
    "RunResult",
    "SampleTable",
    "TrackedRun",
    "Tracker",
    "UserError",
    "Verdict",
    "as_reward_function",
    "load_config",
    "resume",
    "run",
    "write_judge",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'online_dpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
