"""Whatever judges say: what pairs and labels always are, and that nothing is lost on the way to them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairing_kit import FAILED, completion, pair_up, prompt, silent

from online_dpo.config.pairing import PairingSection, Strategy
from online_dpo.pairing.pairs import OUTCOMES
from online_dpo.pairing.score_labels import COMPLETION_OUTCOMES, PROMPT_OUTCOMES, label_by_score
from online_dpo.pairing.similarity import shingles, similarity
from online_dpo.pairing.strategies import DROPS
from online_dpo.types import Completion, Prompt, Verdict

NUMBERS = st.one_of(st.sampled_from([0.0, 1.0, 1.0, 2.5, -1.0]), st.floats(allow_nan=False, allow_infinity=False))
SPREADS = st.one_of(st.none(), st.sampled_from([0.0, 0.25]), st.floats(0.0, allow_nan=False, allow_infinity=False))
REASONS = st.sampled_from(["cannot tell", FAILED])
ALL_TEXTS = ("", "a b c d", "A b c  d", "a b c d e", "e d c b a", "x")
TEXTS = st.sampled_from(ALL_TEXTS)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Prompt], list[Completion], list[Verdict]]:
    prompts = [prompt(f"p{i}") for i in range(draw(st.integers(0, 4)))]
    completions, verdicts = [], []
    for p in prompts:
        count = draw(st.integers(0, 4))
        for i in range(count):
            tokens = tuple(draw(st.lists(st.integers(0, 1), max_size=3)))
            completions.append(
                completion(i, name=p.prompt_id, tokens=tokens, cut=draw(st.booleans()), text=draw(TEXTS))
            )
            said = {"reason": draw(REASONS)}
            if draw(st.integers(0, 4)):
                said = {"score": draw(NUMBERS), "uncertainty": draw(SPREADS)}
            verdicts.append(Verdict(prompt_id=p.prompt_id, first=i, **said))  # type: ignore[arg-type]
        for i in range(count):
            for j in range(count):
                kind = draw(st.integers(0, 5)) if i != j else 0
                if kind == 1:
                    verdicts.append(Verdict(prompt_id=p.prompt_id, first=i, second=j, **silent(draw(REASONS))))
                elif kind in (2, 3):
                    said = {"probability": draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0)))}
                    said["uncertainty"] = draw(SPREADS)
                    verdicts.append(Verdict(prompt_id=p.prompt_id, first=i, second=j, **said))
        if count > 1 and draw(st.booleans()):  # a judge that only compares
            verdicts = [v for v in verdicts if v.prompt_id != p.prompt_id or v.second is not None]
            met = {k for v in verdicts if v.prompt_id == p.prompt_id for k in (v.first, v.second)}
            verdicts += [
                Verdict(prompt_id=p.prompt_id, first=i, second=(i + 1) % count, probability=draw(st.floats(0.0, 1.0)))
                for i in range(count)
                if i not in met
            ]
    return prompts, completions, verdicts


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    strategy = draw(st.sampled_from(get_args(Strategy)))
    own = {
        "length_controlled": {"max_length_ratio": st.sampled_from([None, 1.0, 2.0])},
        "all_pairs": {"max_pairs_per_prompt": st.sampled_from([None, 1, 2])},
        "uncertain": {"budget": st.sampled_from([None, 1, 2])},
    }
    common = {
        "min_margin": st.sampled_from([0.0, 0.5]),
        "min_chosen_score": st.sampled_from([None, -1.0, 1.0]),
        "duplicates": st.sampled_from(["tokens", "text"]),
        "near_duplicate": st.sampled_from([None, 0.5, 1.0]),
        "truncated": st.sampled_from(["keep", "drop", "penalise"]),
    }
    return {"strategy": strategy} | {k: draw(v) for k, v in {**common, **own.get(strategy, {})}.items()}


@settings(max_examples=600, deadline=None)
@given(rounds(), rules(), st.randoms(use_true_random=False))
def test_invariant_1_for_any_verdicts(
    data: tuple[list[Prompt], list[Completion], list[Verdict]], options: dict[str, Any], rng: Any
) -> None:
    prompts, completions, verdicts = data
    result = pair_up(completions, verdicts, prompts=prompts, **options)

    # Nothing is lost: of prompts, and of every two completions of those that came as far as their judge.
    assert sum(result.outcomes.values()) == len(prompts)
    assert set(result.outcomes) == set(OUTCOMES)
    assert result.outcomes["paired"] == len({p.prompt.prompt_id for p in result.pairs})
    assert result.counts["num_comparisons"] == sum(result.counts[name] for name in DROPS) + len(result.pairs)
    assert result.outcomes["over_budget"] == result.counts["num_comparisons_over_budget"]

    silent = {(v.prompt_id, v.first) for v in verdicts if v.reason is not None and v.second is None}
    score = {(v.prompt_id, v.first): v.score for v in verdicts if v.score is not None}
    compared_pairs = {(v.prompt_id, frozenset((v.first, v.second))) for v in verdicts if v.second is not None}
    for pair in result.pairs:
        name, chosen, rejected = pair.prompt.prompt_id, pair.chosen, pair.rejected
        assert name == chosen.prompt_id == rejected.prompt_id
        assert chosen.token_ids != rejected.token_ids and chosen.token_ids and rejected.token_ids
        assert pair.margin is not None and pair.probability is not None
        assert pair.margin > 0.0 and pair.margin >= options["min_margin"] and math.isfinite(pair.margin)
        assert 0.5 < pair.probability <= 1.0
        assert pair.probability == pytest.approx(1.0 / (1.0 + math.exp(-pair.margin)), abs=1e-9)
        assert not {(name, chosen.sample_index), (name, rejected.sample_index)} & silent
        is_scored = (name, frozenset((chosen.sample_index, rejected.sample_index))) not in compared_pairs
        if is_scored and options["truncated"] != "penalise":
            assert score[name, chosen.sample_index] > score[name, rejected.sample_index]  # type: ignore[operator]
        if options["truncated"] == "drop":
            assert {chosen.finish_reason, rejected.finish_reason} == {"stop"}
        if (least := options["min_chosen_score"]) is not None:
            penalty = options["truncated"] == "penalise" and chosen.finish_reason == "length"
            assert score[name, chosen.sample_index] - penalty >= least  # type: ignore[operator]
        if options["duplicates"] == "text":
            assert chosen.text != rejected.text
        if (threshold := options["near_duplicate"]) is not None:
            assert similarity(shingles(chosen.text), shingles(rejected.text)) < threshold
        if options["strategy"] == "length_controlled":
            lengths = sorted((len(chosen.token_ids), len(rejected.token_ids)))
            assert lengths[1] <= (options["max_length_ratio"] or 1.25) * lengths[0]
    per_prompt = [sum(p.prompt.prompt_id == q.prompt_id for p in result.pairs) for q in prompts]
    cap = options.get("max_pairs_per_prompt") or 6
    assert max(per_prompt, default=0) <= (cap if options["strategy"] == "all_pairs" else 1)
    assert len(result.pairs) <= (options.get("budget") or math.inf)
    assert [p.prompt.prompt_id for p in result.pairs] == sorted(p.prompt.prompt_id for p in result.pairs)

    shuffled, other = list(completions), list(verdicts)
    rng.shuffle(shuffled)
    rng.shuffle(other)
    assert pair_up(shuffled, other, prompts=prompts, **options) == result


@st.composite
def fair_rounds(draw: st.DrawFn) -> tuple[list[Completion], dict[str, float], bool]:
    """Completions, what a judge thinks of each text whatever it is shown beside, and whether it compares."""
    count = draw(st.integers(2, 4))
    texts = draw(st.lists(TEXTS, min_size=count, max_size=count))
    tokens = draw(st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=count, max_size=count))
    # Powers of two: no two differences are equal, so that nothing has to be settled by sample indices.
    worths = draw(st.permutations([0.25, 0.5, 1.0, 2.0, 4.0, 8.0]))
    completions = [
        completion(i, tokens=tuple(ids), text=text, cut=draw(st.booleans()))
        for i, (ids, text) in enumerate(zip(tokens, texts, strict=True))
    ]
    return completions, dict(zip(ALL_TEXTS, worths, strict=True)), draw(st.booleans())


def judged(completions: list[Completion], worth: dict[str, float], compares: bool) -> list[Verdict]:
    if not compares:
        return [Verdict(prompt_id="p", first=c.sample_index, score=worth[c.text]) for c in completions]
    return [
        Verdict(
            prompt_id="p",
            first=a.sample_index,
            second=b.sample_index,
            probability=1.0 / (1.0 + math.exp(worth[b.text] - worth[a.text])),
        )
        for a in completions
        for b in completions
        if a.sample_index < b.sample_index
    ]


@settings(max_examples=600, deadline=None)
@given(fair_rounds(), rules(), st.randoms(use_true_random=False))
def test_the_order_in_which_completions_were_sampled_does_not_settle_who_is_chosen(
    data: tuple[list[Completion], dict[str, float], bool], options: dict[str, Any], rng: Any
) -> None:
    """For a judge that does not depend on it: the same texts under other sample indices never change places."""
    completions, worth, compares = data
    places = list(range(len(completions)))
    rng.shuffle(places)
    moved = sorted((replace(c, sample_index=places[c.sample_index]) for c in completions), key=lambda c: c.sample_index)
    here, there = (pair_up(some, judged(some, worth, compares), **options) for some in (completions, moved))
    compared = [{(p.chosen.text, p.rejected.text) for p in found.pairs} for found in (here, there)]
    # Copies may differ in what they cost (cut or not, their length); then it matters which of them stands for both.
    is_plain = len({c.text for c in completions}) == len({c.token_ids for c in completions}) == len(completions)
    penalised = options["truncated"] == "penalise"
    if is_plain or not penalised:
        assert not compared[0] & {indices[::-1] for indices in compared[1]}, "chosen and rejected changed places"
    # A penalty may make equals, and draws are by sample index.
    if is_plain and not penalised and options["strategy"] not in ("random", "best_vs_random"):
        assert compared[0] == compared[1]
        assert here.outcomes == there.outcomes and here.counts == there.counts


LABELS = st.one_of(
    st.builds(lambda value: {"type": "threshold", "value": value}, NUMBERS),
    st.builds(lambda share: {"type": "quantile", "share": share}, st.sampled_from([0.1, 0.25, 1 / 3, 0.5])),
)


@settings(max_examples=400, deadline=None)
@given(
    rounds(),
    LABELS,
    st.sampled_from(["tokens", "text"]),
    st.sampled_from(["keep", "drop", "penalise"]),
    st.randoms(use_true_random=False),
)
def test_labels_for_any_verdicts(
    data: tuple[list[Prompt], list[Completion], list[Verdict]],
    labels: dict[str, Any],
    duplicates: Any,
    truncated: Any,
    rng: Any,
) -> None:
    prompts, completions, verdicts = data

    def label(completions: list[Completion], verdicts: list[Verdict]) -> Any:
        section = PairingSection(labels=labels, duplicates=duplicates)  # type: ignore[arg-type]
        return label_by_score(
            prompts, completions, verdicts, rules=section, truncated=truncated, truncated_penalty=None
        )

    result = label(completions, verdicts)
    assert sum(result.outcomes.values()) == len(prompts) and set(result.outcomes) == set(PROMPT_OUTCOMES)
    assert sum(result.labels.values()) == len(completions) and set(result.labels) == set(COMPLETION_OUTCOMES)
    assert result.outcomes["labelled"] == len({item.prompt.prompt_id for item in result.items})
    assert result.labels["desirable"] == sum(item.desirable for item in result.items)
    assert result.labels["undesirable"] == sum(not item.desirable for item in result.items)

    score = {(v.prompt_id, v.first): v.score for v in verdicts if v.score is not None}
    values: dict[bool, list[float]] = {True: [], False: []}
    for item in result.items:
        answer = item.completion
        assert item.prompt.prompt_id == answer.prompt_id and answer.token_ids
        penalty = truncated == "penalise" and answer.finish_reason == "length"
        values[item.desirable].append(score[answer.prompt_id, answer.sample_index] - penalty)  # type: ignore[operator]
        assert truncated != "drop" or answer.finish_reason == "stop"
    if labels["type"] == "threshold":
        assert all(v > labels["value"] for v in values[True]) and all(v < labels["value"] for v in values[False])
    else:
        num_scored = len(result.items) + result.labels["undecided"]
        assert max(map(len, values.values())) <= labels["share"] * num_scored + 1e-9
        assert not values[True] or not values[False] or min(values[True]) > max(values[False])
    keys = [(item.prompt.prompt_id, item.completion.sample_index) for item in result.items]
    assert keys == sorted(set(keys))
    by = (lambda c: c.text) if duplicates == "text" else (lambda c: c.token_ids)
    assert len({(item.prompt.prompt_id, by(item.completion)) for item in result.items}) == len(keys)

    shuffled, other = list(completions), list(verdicts)
    rng.shuffle(shuffled)
    rng.shuffle(other)
    assert label(shuffled, other) == result
