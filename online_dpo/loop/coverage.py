"""Did the judge label enough of a round? If not, the round fails, and its continuation asks the failed calls again.

A prompt is labelled where the judge has an opinion on at least two of its completions: it prefers one to another, or
calls them equal. The unit that is asked again is the prompt, since a judge may look at all of its completions.
"""

from __future__ import annotations

from collections.abc import Sequence

from online_dpo.errors import TooFewLabelsError
from online_dpo.loop.collecting import Collected
from online_dpo.statistics.comparisons import by_prompt, duels_between
from online_dpo.statistics.judges import group_reasons, labelled_prompts
from online_dpo.store.run_store import RoundStore
from online_dpo.store.shards import name_commit, put_part, remove_parts
from online_dpo.types import REWARD, Completion, Judged, Prompt, Verdict

MARK = "unlabelled"
"""The commit of a round that failed for want of labels, until its failed calls are about to be asked again."""


def check_labelled(store: RoundStore, prompts: Sequence[Prompt], collected: Collected, min_coverage: float) -> None:
    """Fail the round where too few of its prompts are labelled. All that was said and paid for is committed.

    Raises:
        TooFewLabelsError: the share is below `verdicts.min_coverage`.
    """
    verdicts = collected.verdicts[REWARD]
    labelled = labelled_prompts(duels_between(collected.completions, verdicts))
    if len(labelled) >= min_coverage * len(prompts):
        return
    failed = unlabelled_failures(collected.completions, verdicts)
    store.put_json(MARK, {"num_prompts": len(prompts), "num_labelled": len(labelled), "num_failed": len(failed)})
    reasons = group_reasons([v for v in verdicts if v.reason is not None and v.prompt_id not in labelled])
    said = ", ".join(f"{number} x {reason}" for reason, number in reasons.items()) or "fewer than two completions"
    remedy = (
        f"mend the judge, then resume: the {len(failed)} prompts whose calls failed are asked about again, and nothing "
        f"else; or resume with a lower verdicts.min_coverage"
        if failed
        else "no call failed, so asking again would change nothing: resume with a lower verdicts.min_coverage, or "
        "start a new run, under another run.name, with another judge"
    )
    raise TooFewLabelsError(
        f"round {store.index + 1}: the judge labelled {len(labelled)} of {len(prompts)} prompts, and "
        f"verdicts.min_coverage is {min_coverage:g} (abstentions: {said}); what was said is committed: {remedy}"
    )


def reopen(store: RoundStore, shard_prompts: int, prompts: Sequence[Prompt]) -> None:
    """In a round that failed for want of labels, take back what failed calls left on prompts without a label.

    What was said about other prompts, and all that was counted, becomes a part of its shard, as when a judge stops.
    A kill on the way leaves the mark, and the next process takes back the rest.
    """
    if not store.has(MARK):
        return
    for shard in range(-(-len(prompts) // shard_prompts)):
        verdicts_name, counters, parts = (name_commit("", what, shard) for what in ("verdicts", "counters", "parts"))
        if not store.has(verdicts_name):
            continue
        verdicts = store.get_records(verdicts_name, Verdict)
        completions = store.get_records(name_commit("", "completions", shard), Completion)
        failed = unlabelled_failures(completions, verdicts)
        if failed:
            remove_parts(store, parts)
            kept = tuple(verdict for verdict in verdicts if verdict.prompt_id not in failed)
            put_part(store, parts, Judged(verdicts=kept, counters=store.get_json(counters)))
            store.remove(verdicts_name)  # from here on the part is what counts
            store.remove(counters)
    store.remove(MARK)


def unlabelled_failures(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> set[str]:
    """Prompts without a label on which a call failed. What a judge abstained from on purpose is not among them."""
    labelled = labelled_prompts(duels_between(completions, verdicts))
    said = by_prompt(verdicts)
    return {name for name, found in said.items() if name not in labelled and any(v.failed for v in found)}
