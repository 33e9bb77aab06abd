"""Did the judge cover enough of a round? If not, the round fails, and its continuation asks the failed calls again.

A prompt is covered where the judge has an opinion on at least two of its completions: it prefers one to another, or
calls them equal. The unit that is asked again is the prompt, since a judge may look at all of its completions.
"""

from __future__ import annotations

from collections.abc import Sequence

from online_dpo.errors import LowCoverageError
from online_dpo.loop.rollouts import Collected, Rollouts
from online_dpo.statistics.comparisons import by_prompt, comparisons_between
from online_dpo.statistics.judges import covered_prompts, group_reasons
from online_dpo.store.run_store import RoundStore
from online_dpo.store.shards import Asked
from online_dpo.types import REWARD, Completion, Prompt, Verdict

MARK = "not-covered"
"""The commit of a round that failed for want of verdicts, until its failed calls are about to be asked again."""


def check_coverage(store: RoundStore, prompts: Sequence[Prompt], collected: Collected, min_coverage: float) -> None:
    """Fail the round where the judge covers too few of its prompts. All that was said and paid for is committed.

    Raises:
        LowCoverageError: the share is below `verdicts.min_coverage`.
    """
    verdicts = collected.said[REWARD].verdicts
    covered = covered_prompts(comparisons_between(collected.completions, verdicts))
    if len(covered) >= min_coverage * len(prompts):
        return
    failed = failed_without_coverage(collected.completions, verdicts)
    store.put_json(MARK, {"num_prompts": len(prompts), "num_covered": len(covered), "num_failed": len(failed)})
    reasons = group_reasons([v for v in verdicts if v.reason is not None and v.prompt_id not in covered])
    said = ", ".join(f"{number} x {reason}" for reason, number in reasons.items()) or "fewer than two completions"
    remedy = (
        f"fix the judge, then resume: the {len(failed)} prompts whose calls failed are asked about again, and nothing "
        f"else; or resume with a lower verdicts.min_coverage"
        if failed
        else "no call failed, so asking again would change nothing: resume with a lower verdicts.min_coverage, or "
        "start a new run, under another run.name, with another judge"
    )
    raise LowCoverageError(
        f"round {store.index + 1}: the judge has an opinion on {len(covered)} of {len(prompts)} prompts, and "
        f"verdicts.min_coverage is {min_coverage:g} (abstentions: {said}); what was said is committed: {remedy}"
    )


def reopen(store: RoundStore, rollouts: Rollouts) -> None:
    """In a round that failed for want of verdicts, take back what failed calls left on prompts that are not covered.

    What was said about other prompts, and all that was counted, becomes a part of its shard, as when a judge stops.
    A kill on the way leaves the mark, and the next process takes back the rest.
    """
    if not store.has(MARK):
        return
    commits, asked = rollouts.commits, Asked()
    for shard in (shard.index for shard in rollouts.shards if commits.has_verdicts(shard.index, asked)):
        verdicts = commits.verdicts(shard, asked).verdicts
        failed = failed_without_coverage(commits.completions(shard), verdicts)
        if failed:
            commits.reopen(shard, asked, [verdict for verdict in verdicts if verdict.prompt_id not in failed])
    store.remove(MARK)


def failed_without_coverage(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> set[str]:
    """Prompts that are not covered and on which a call failed. Abstentions on purpose are not among them."""
    covered = covered_prompts(comparisons_between(completions, verdicts))
    said = by_prompt(verdicts)
    return {name for name, found in said.items() if name not in covered and any(v.failed for v in found)}
