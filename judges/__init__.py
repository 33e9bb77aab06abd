"""The judge protocol, the rules of calling a judge, the registry, and the built-in judges.

`user` makes judges of a user's code; `reward`, `verifier` and `llm` answer by themselves; `outer` asks other judges.
May import `statistics`, `pairing` and the rooms below them; never `actors`, the loop, the store, ray or vllm.
"""

from judges.protocol import Abstain, Judge, Limits, Question, StopJudging, count

__all__ = ["Abstain", "Judge", "Limits", "Question", "StopJudging", "count"]
