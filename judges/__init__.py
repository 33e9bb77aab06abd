"""The judge protocol, the rules of calling a judge, the registry, and the built-in judges.

`user` makes judges of a user's code; `reward`, `verifier` and `llm` answer by themselves; `outer` asks other judges.
`isolation` has the child processes in which a user's code and patterns, and the verifier's comparisons, run.
May import `statistics`, `pairing` and the rooms below them; never `actors`, the loop, the store, ray or vllm.
"""

from judges.protocol import Abstain, Judge, Limits, Question, StopJudging, count

__all__ = ["Abstain", "Judge", "Limits", "Question", "StopJudging", "count"]
