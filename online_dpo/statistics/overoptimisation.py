"""Does the training judge's score rise while another judge's falls? (Gao et al. 2023, arXiv:2210.10760: the proxy of
what is wanted goes on rising after what is wanted has turned.)

An evaluation judge's best policy so far is where its mean score was highest, the initial policy included. The newest
policy is over-optimised if, since that one, the training judge's score rose and the evaluation judge's fell: by the
paired bootstrap over prompts, the rise with 95 % and the fall with 99 %, since the best of several is partly luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from online_dpo.statistics.samples import paired_bootstrap
from online_dpo.types import REWARD, derive_seed

Best: TypeAlias = Mapping[str, Mapping[str, int]]
"""Set -> evaluation judge -> policy version that it scored highest so far."""

Estimate: TypeAlias = list[float]
"""[gain, lowest, highest] of an interval."""

FALL_COVERAGE = 0.99


def compare_with_best(
    evaluation_of: Callable[[str, int], Mapping[str, Any]],
    sets: Sequence[str],
    best: Best,
    *,
    version: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """What both judges gained since each evaluation judge's best policy.

    Args:
        evaluation_of: the figures of a policy, with `scores` by judge and prompt, given set and version.
        sets: that are evaluated.
        best: before this evaluation; the initial policy where a set or judge is missing.
        version: of the newest policy.
        seed: of the run.

    Returns:
        Set -> evaluation judge -> `since` (a version), `training` and `gain` (estimates with their intervals). Judges
        without scores in common with the training judge are left out.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sets:
        scores = evaluation_of(name, version)["scores"]
        for judge in scores.keys() - {REWARD} if REWARD in scores else ():
            since = best.get(name, {}).get(judge, 0)
            before = evaluation_of(name, since)["scores"]
            seeds = [derive_seed(seed, "since", name, judge, version, which) for which in (0, 1)]
            training = paired_bootstrap(before.get(REWARD, {}), scores[REWARD], seed=seeds[0])
            gain = paired_bootstrap(before.get(judge, {}), scores[judge], seed=seeds[1], coverage=FALL_COVERAGE)
            if training is not None and gain is not None:
                found.setdefault(name, {})[judge] = {"since": since, "training": list(training), "gain": list(gain)}
    return {name: dict(sorted(judges.items())) for name, judges in found.items()}


def best_after(
    since: Mapping[str, Mapping[str, Mapping[str, Any]]], best: Best, *, version: int
) -> dict[str, dict[str, int]]:
    """`best` with the newest policy in it where it gained on the best before, on the prompts that both have scores of.

    Args:
        since: from `compare_with_best`.
        best: before.
        version: of the newest policy.
    """
    found = {name: dict(judges) for name, judges in best.items()}
    for name, judges in since.items():
        for judge, figures in judges.items():
            if figures["gain"][0] > 0.0:
                found.setdefault(name, {})[judge] = version
    return found


def is_over_optimised(figures: Mapping[str, Any]) -> bool:
    """Whether one entry of `compare_with_best` shows a rise here and a fall there."""
    return bool(figures["training"][1] > 0.0 and figures["gain"][2] < 0.0)
