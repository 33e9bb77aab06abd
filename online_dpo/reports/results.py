"""What a run has come to, as typed records. Built from `metrics.jsonl`, whose names they keep.

A figure is None where it does not apply to the run: a round that trains on a data set alone has sampled nothing, and
one that was not evaluated has no evaluation. What a newer version or a user's judge has written and no field holds is
in `extra`, so nothing of the file is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A value with its 95 % interval (bootstrap over prompts)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingResult:
    """The prompts that a round drew, and what was sampled."""

    num_prompts: int | None = None
    """Prompts drawn."""
    num_prompts_too_long: int | None = None
    """Prompts of the source that were passed over because they are longer than `prompts.max_tokens`."""
    num_prompts_empty: int | None = None
    """Prompts of the source that were passed over because they are empty."""
    num_prompts_duplicate: int | None = None
    """Prompts of a mixture that were passed over because a data set before theirs has them; None without a mixture."""
    num_prompts_contaminated: int | None = None
    """Prompts of the source that were passed over because an evaluation has them; None unless these are dropped."""
    prompt_sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Data set of a mixture -> its prompts in the round and in all, `epochs` of it, and what was passed over."""
    staleness: int | None = None
    """By how many versions the policy that sampled is behind the one that trains on it; None where `overlap` is 0."""
    num_completions: int | None = None
    """Completions sampled."""
    num_truncated_completions: int | None = None
    """Completions that were cut at `sampling.max_tokens`."""
    num_empty_completions: int | None = None
    """Completions without a token."""
    num_duplicate_completions: int | None = None
    """Completions that repeat another one of their prompt."""
    length_mean: float | None = None
    """Tokens per completion, a sampled end-of-sequence token included."""
    answer_length_mean: float | None = None
    """Tokens per answer, without thoughts; None where `judge.view` is not set."""
    unclosed_rate: float | None = None
    """Share of completions whose thought has no end, in [0, 1]; None where `judge.view` is not set."""
    num_unclosed_completions: int | None = None
    """Completions that the training judge was not asked about, since their thought has no end."""
    eos_rate: float | None = None
    """Share of completions that ended by themselves, in [0, 1]."""
    distinct_1: float | None = None
    """Different words over all words of the samples, in [0, 1]."""
    distinct_2: float | None = None
    """The same of two words in a row."""
    distinct_3: float | None = None
    """The same of three words in a row."""
    self_bleu: float | None = None
    """BLEU of a sample against the others, 0 to 100: high where they resemble each other."""
    duplicate_rate: float | None = None
    """Share of completions that repeat another one, whatever the prompt, in [0, 1]."""
    sampler_logp_mean: float | None = None
    """Mean log-probability of a sampled token, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """What a round tells about one judge. `docs/judges.md` explains the figures."""

    num_prompts: int = 0
    """Prompts that it was asked about."""
    num_verdicts: int = 0
    """Verdicts, abstentions included."""
    num_abstained: int = 0
    """Abstentions, failed calls included."""
    num_failed: int = 0
    """Abstentions that stand for a call that failed."""
    abstention_rate: float | None = None
    """Share of the verdicts that are abstentions, in [0, 1]."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Reason for abstaining -> number of verdicts; at most 8 kinds."""
    num_distinct_scores: int | None = None
    """How many different scores it gave."""
    num_covered: int | None = None
    """Prompts of which it has an opinion on at least two completions."""
    num_comparisons: int | None = None
    """Every two completions of a prompt."""
    num_decided: int | None = None
    """Comparisons with a winner."""
    num_tied: int | None = None
    """Comparisons that are ties."""
    num_unequal: int | None = None
    """Decided comparisons of completions of unequal length."""
    longer_wins: float | None = None
    """Share of those that the longer completion wins, in [0, 1]."""
    longer_wins_z: float | None = None
    """Its distance from one half, in standard deviations over prompts."""
    num_presented: int | None = None
    """Decided comparisons as they were presented, in both orders if there are two."""
    first_wins: float | None = None
    """Share of those that the completion shown first wins, in [0, 1]."""
    first_wins_z: float | None = None
    """Its distance from one half, in standard deviations over prompts."""
    order_consistency: float | None = None
    """Share of the comparisons asked in both orders that have the same winner both times, in [0, 1]."""
    num_asked_both_ways: int | None = None
    """How many were asked in both orders."""
    repeat_agreement: float | None = None
    """Share of the repeated questions with the same outcome, in [0, 1]."""
    num_repeated: int | None = None
    """How many were repeated."""
    ensembles: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Config field of an ensemble -> Krippendorff's `alpha` and `alpha_scores` of its members."""
    people: Mapping[str, Any] | None = None
    """Of a human judge: votes, Krippendorff's `alpha`, and each annotator's speed and bias by pseudonym."""
    counters: Mapping[str, int | float] = field(default_factory=dict)
    """Calls, retries, tokens, and what the judge counts itself."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Figures that no field holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingResult:
    """What the judges said about a round's completions."""

    reward: float | None = None
    """Mean score of the training judge; None where it compares."""
    num_failed_completions: int | None = None
    """Completions about which a call failed."""
    num_abstained_completions: int | None = None
    """Completions on which the judge abstained."""
    judges: Mapping[str, JudgeReport] = field(default_factory=dict)
    """`reward`, the training judge, and `annotator`, where there is one."""
    annotator: Mapping[str, int | float] | None = None
    """Pairs that the annotator upheld (`num_upheld`) and overturned (`num_overturned`), and its counters."""
    latency_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Judge -> mean, median, p95 and max of the seconds of its calls, of the process that finished the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsResult:
    """What became of prompts and comparisons, and the pairs or labelled answers that came of them."""

    outcomes: Mapping[str, int] = field(default_factory=dict)
    """What became of a prompt (`paired`, or why it gave nothing) -> prompts; adds up to the prompts drawn."""
    labels: Mapping[str, int] | None = None
    """What became of a completion -> completions, where answers are labelled by their scores."""
    num_pairs: int | None = None
    """Pairs that the round trains on."""
    num_desirable: int | None = None
    """Labelled answers that are desirable."""
    num_undesirable: int | None = None
    """Labelled answers that are not."""
    num_demonstrations: int | None = None
    """Demonstrations that the round trains on."""
    margin_mean: float | None = None
    """Mean difference of scores of a pair, or logit of its probability."""
    chosen_length_mean: float | None = None
    """Tokens per chosen answer."""
    rejected_length_mean: float | None = None
    """Tokens per rejected answer."""
    num_replayed: int | None = None
    """Items of earlier rounds that came back; None without `replay`."""
    num_replay_missing: int | None = None
    """By how many these are fewer than `replay.fraction` asks for."""
    on_policy_share: float | None = None
    """Share of the answers trained on that the round's policy sampled, in [0, 1]."""
    num_assumed_pairs: int | None = None
    """Pairs that rest on `assume` and not on a judge; None where no writer has it."""
    num_candidates_like_a_sample: int | None = None
    """Answers assumed to be better that say the same as a sample, with which they make no pair."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Comparisons by why they gave no pair, and rows of a data set (`num_offline_...`), by their names in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningResult:
    """A round's optimizer steps: means over the steps that were not skipped, and totals of counts."""

    num_steps: int | None = None
    """Optimizer steps, skipped ones included."""
    num_skipped_steps: int | None = None
    """Steps that were skipped because a value was not finite."""
    num_trained_pairs: float | None = None
    """Pairs trained on, once for each epoch."""
    num_trained_items: float | None = None
    """Labelled answers or demonstrations trained on, once for each epoch."""
    num_trained_tokens: float | None = None
    """Completion tokens trained on, once for each epoch."""
    loss: float | None = None
    """Of the objective, per pair; of SFT, nats per token."""
    lr: float | None = None
    """Learning rate."""
    beta: float | None = None
    """The objective's beta, its factor included."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    clipped: float | None = None
    """Share of steps whose gradient was clipped, in [0, 1]."""
    chosen_logps: float | None = None
    """Log-probability of a chosen answer under the policy, nats, summed over its tokens."""
    rejected_logps: float | None = None
    """The same of a rejected answer."""
    chosen_log_ratio: float | None = None
    """Log-ratio of a chosen answer to the reference, nats."""
    rejected_log_ratio: float | None = None
    """The same of a rejected answer."""
    chosen_log_ratio_end: float | None = None
    """The same of chosen answers in the last step."""
    rejected_log_ratio_end: float | None = None
    """The same of rejected answers in the last step."""
    reward_margin: float | None = None
    """beta times the difference of the two log-ratios."""
    reward_accuracy: float | None = None
    """Share of pairs whose margin is positive, in [0, 1]."""
    kl: float | None = None
    """KTO's estimate of the KL to the reference, nats."""
    bco_shift: float | None = None
    """BCO's moving mean of rewards."""
    entropy: float | None = None
    """With `objective.entropy_weight`: the policy's mean entropy on what it trained on, nats per token."""
    entropy_bonus: float | None = None
    """The same times its weight: what was taken off the loss."""
    num_reference_sampler: int | None = None
    """Answers whose reference log-probs are those of the sampler."""
    num_reference_recomputed: int | None = None
    """Answers whose reference log-probs the learner computed all the same."""
    reference_gap: float | None = None
    """Mean absolute difference of the sampler's log-probs to the learner's where both are known, nats per token."""
    reference_gap_row_max: float | None = None
    """The largest mean over an answer's tokens."""
    reference_gap_max: float | None = None
    """The largest of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEvaluation:
    """What a judge said about the samples of an evaluation set."""

    mean: float | None = None
    """Mean score."""
    num_abstained: int = 0
    """Verdicts that are abstentions."""
    gain: Estimate | None = None
    """Mean score minus that of the initial policy, paired by prompt."""
    win_rate: Estimate | None = None
    """Share of prompts whose score is above that of the initial policy, ties one half."""
    report: JudgeReport = field(default_factory=JudgeReport)
    """About the judge itself."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Figures that no field holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Fresh samples of the policy on an evaluation set: one for each prompt, temperature 1."""

    judges: Mapping[str, JudgeEvaluation] = field(default_factory=dict)
    """By name; `reward` is the training judge."""
    kl_initial: float | None = None
    """KL to the initial policy, nats per completion (the estimator that is never negative)."""
    kl_initial_plain: float | None = None
    """The same by the mean of log-ratios."""
    kl_reference: float | None = None
    """KL to the reference that the round trained with, nats per completion."""
    kl_reference_plain: float | None = None
    """The same by the mean of log-ratios."""
    entropy: float | None = None
    """Mean entropy of the policy, nats per token."""
    sampling: SamplingResult = field(default_factory=SamplingResult)
    """Number, length and diversity of the samples."""
    domains: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Domain -> the same of its prompts, where the set has domains."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Figures that no field holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """How far generators and learner were apart on the same tokens after the round's push, nats per token."""

    probe_gap: float | None = None
    """Mean absolute difference on the fixed probe set, of the generator that is furthest off."""
    probe_gap_row_max: float | None = None
    """The largest mean over a row's tokens."""
    probe_gap_max: float | None = None
    """The largest of a token."""
    probe_gap_previous: float | None = None
    """Mean difference to the policy before; None at the first push."""
    probe_has_power: bool | None = None
    """Whether the check could have told a skipped push from a done one."""
    applied: float | None = None
    """The share of the update that the generators' weights hold after rounding; None where nothing was merged."""
    sampled_gap: float | None = None
    """The same five of tokens that were sampled, of the check that found the most."""
    sampled_gap_row_max: float | None = None
    """As `probe_gap_row_max`."""
    sampled_gap_max: float | None = None
    """As `probe_gap_max`."""
    sampled_gap_previous: float | None = None
    """As `probe_gap_previous`."""
    sampled_has_power: bool | None = None
    """As `probe_has_power`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainResult:
    """A round's samples of one domain of a mixture."""

    sampling: SamplingResult = field(default_factory=SamplingResult)
    """Prompts, completions, their length and truncation."""
    reward: float | None = None
    """Mean score of the training judge."""
    num_prompts_used: int | None = None
    """Prompts that gave a pair or a labelled answer."""
    num_items: int | None = None
    """Pairs or labelled answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """A finished round, in sections."""

    round: int
    """Counted from 0, as the folders in `rounds/` are."""
    policy_version: int
    """Of the policy that the round made: `round` + 1."""
    time: float | None = None
    """When it was done, seconds since 1970."""
    reference_versions: tuple[int, ...] = ()
    """Policy versions that the reference consists of."""
    beta_factor: float = 1.0
    """What an adaptive beta was multiplied by."""
    warnings: tuple[str, ...] = ()
    """What a person should look at."""
    sampling: SamplingResult = field(default_factory=SamplingResult)
    """Prompts and completions."""
    judging: JudgingResult = field(default_factory=JudgingResult)
    """What judges said, and about the judges."""
    pairs: PairsResult = field(default_factory=PairsResult)
    """Pairs or labelled answers, and why others gave none."""
    domains: Mapping[str, DomainResult] = field(default_factory=dict)
    """Domain -> the round's samples of it, where prompts are a mixture."""
    learning: LearningResult = field(default_factory=LearningResult)
    """The optimizer's steps."""
    candidates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Writer -> what became of its answers, their mean score, and how many were chosen and rejected."""
    evaluation: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Evaluation set -> the new policy on it; empty where the round was not evaluated."""
    evaluation_pairs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Set of held-out pairs -> how far the preferred answer is ahead; of demonstrations, their loss and perplexity."""
    push: PushResult = field(default_factory=PushResult)
    """Checks of the generators' weights."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds, of the process that finished the round."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Figures that no field holds, such as those of one objective only."""
