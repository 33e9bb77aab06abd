"""The model card, written from the measured figures so that it cannot drift from them."""

from __future__ import annotations

from typing import Any

_COMMAND = "python -m tools.embedded.build --data ../shared/data/movie_reviews.jsonl.gz"


def percent(figures: dict[str, float]) -> str:
    """An accuracy with its counts."""
    right, of = int(figures["right"]), int(figures["of"])
    return f"{100 * right / of:.1f} % ({right} of {of})"


def model_card(measured: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        measured: what `build` wrote to `measured.json`: `policy`, `reward`, `gold`, `language`, `judges`,
            `agreement` and `samples`.
    """
    sections = (_HEAD, _data(measured), _policy(measured), _judges(measured), _samples(measured), _rebuild(measured))
    return "\n".join(section.strip() + "\n" for section in sections)


_HEAD = """
---
language: en
license: cc-by-4.0
---

# The embedded default

A small language model that continues film reviews, a reward model for their sentiment, an independent classifier
for evaluation, and opening phrases to start from. They exist so that a first run needs no download and no GPU, and
are good for nothing else: the text is babble with the manner of a review.

This page is written by `tools/embedded/build.py` from `measured.json`. Do not edit it by hand.

| folder | what | how it loads |
|---|---|---|
| `policy/` | `LlamaForCausalLM` | `AutoModelForCausalLM`, vLLM |
| `reward/` | `LlamaForSequenceClassification`, one logit: above 0 is positive | `AutoModelForSequenceClassification` |
| `gold/` | logistic regression over words and pairs of words | `online_dpo.embedded.gold.GoldJudge` (numpy) |
| `openings/` | `train.jsonl`, `heldout.jsonl`: one `{"prompt": ...}` a line, disjoint | any JSON reader |

`tokenizer(text)` puts one `<bos>` in front, in both model folders; do not add another. `<pad>`, `<bos>` and `<eos>`
are three different tokens. Text is lower case.
"""


def _data(measured: dict[str, Any]) -> str:
    reward, gold = measured["reward"], measured["gold"]
    return f"""
## Data

Polarity dataset v2.0 (2 000 film reviews), Bo Pang and Lillian Lee, "A Sentimental Education: Sentiment Analysis
Using Subjectivity Summarization Based on Minimum Cuts", ACL 2004; licensed CC BY 4.0. It was changed here:
tokenised, cut into windows and snippets, and learnt from; no review is reproduced. 200 of the 2 000 are held out
and fitted to by nothing here (the policy's checkpoint is chosen by its loss on them).

| | fitted to |
|---|---|
| tokenizer, policy, 5-gram baseline | the text of all 1 800 train reviews |
| reward model | text and labels of {reward["reviews"]} of them, on top of the policy's first layers |
| gold classifier | text and labels of the other {gold["reviews"]} |

A hash of the review's id decides between the last two, so no label that the gold classifier learnt from was seen by
the reward model.
"""


def _policy(measured: dict[str, Any]) -> str:
    policy, lm = measured["policy"], measured["language"]
    passes = policy["tokens"] / lm["train_tokens"]
    return f"""
## Policy

{lm["parameters"] / 1e6:.2f} M parameters (4 layers of 256, 4 heads of 64 with 2 for keys and values, tied embedding,
byte-level BPE of 4 096, 512 positions), bf16. Tokens seen: {policy["tokens"]:,} in {policy["steps"]:,} steps,
about {passes:.1f} times the {lm["train_tokens"]:,} tokens there are. Every row began with `<bos>` at the start of a
sentence, so openings are what it can continue.

Held-out reviews ({lm["heldout_tokens"]:,} tokens, {lm["heldout_bytes"]:,} bytes), each token scored once in windows
of 512 with at least 256 tokens of context where the review has them, and no context from other reviews:

| | bits per byte |
|---|---|
| policy ({lm["heldout_nats_per_token"]:.3f} nats per token) | {lm["bits_per_byte"]:.3f} |
| 5-gram over the same tokens and reviews, interpolated Kneser-Ney | {lm["bits_per_byte_5gram"]:.3f} |
"""


def _judges(measured: dict[str, Any]) -> str:
    judges, both = measured["judges"], measured["agreement"]
    snippets = f"{percent(judges['reward_snippets'])} | {percent(judges['gold_snippets'])}"
    reward, gold = (f"{both[f'{name}_mean']:.2f} ± {both[f'{name}_std']:.2f}" for name in ("reward", "gold"))
    return f"""
## Judges

| held-out accuracy | reward model | gold classifier |
|---|---|---|
| snippets of 80 tokens, labelled as their review | {snippets} |
| whole reviews | (not made for them) | {percent(judges["gold_reviews"])} |

A snippet's label is its review's, and many snippets only retell a plot, so neither gets near 100 %. On
{both["samples"]} completions of train openings (48 tokens, temperature 1) the two scores correlate at
{both["correlation"]:.2f}; reward {reward}, gold {gold} (mean ± standard deviation). The reward model read opening and
completion, the gold classifier the completion alone.

Both are easily fooled. A policy optimised against the reward long enough turns to word salad that scores well.
"""


def _samples(measured: dict[str, Any]) -> str:
    rows = "\n".join(f"- **{row['prompt']}**{_one_line(row['completion'])}" for row in measured["samples"])
    return f"""
## Ten unselected samples

Evenly spaced held-out openings, 48 tokens, temperature 1, as they came.

{rows}
"""


def _one_line(text: str) -> str:
    return " ".join(text.replace("*", "\\*").replace("_", "\\_").splitlines())


def _rebuild(measured: dict[str, Any]) -> str:
    policy, reward, versions = measured["policy"], measured["reward"], measured["versions"]
    resumed = policy["resumed_at"]
    pause = (
        f"\nThe policy's was stopped at step {resumed} and continued with new optimisers and a new schedule, so the\n"
        "command gives a policy of this kind, not this one."
        if resumed
        else ""
    )
    return f"""
## Rebuilding

    {_COMMAND}

Built on a 2-core x86-64 CPU machine with AVX512-BF16 that others used heavily at the same time (torch
{versions["torch"]}, transformers {versions["transformers"]}).

| | minutes | steps | planned |
|---|---|---|---|
| policy | {policy["minutes"]:.1f} | {policy["steps"]:,} | {policy["planned_steps"]:,} |
| reward model | {reward["minutes"]:.1f} | {reward["steps"]:,} | {reward["planned_steps"]:,} |

Everything is seeded. Fewer steps than planned: a limit on the minutes ended the training, with its learning rate
brought down in time, and the result depends on the machine's speed.{pause}
"""
