"""The judge protocol, the registry of judges, and the built-in ones. Never imports `actors`, ray or vllm."""

from judges.protocol import Abstain, Judge, Limits, Question, StopJudging, count

__all__ = ["Abstain", "Judge", "Limits", "Question", "StopJudging", "count"]
