"""KTO's items: two of every pair, each with a completion of another prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from learner_kit import make_pairs

from online_dpo.pairing.unpairing import unpair, with_mismatches
from online_dpo.types import Labelled


def test_every_pair_gives_a_desirable_and_an_undesirable_answer_in_order():
    pairs = make_pairs(3)
    items = unpair(pairs)
    assert [(item.prompt, item.completion, item.desirable, item.weight) for item in items] == [
        (pair.prompt, answer, desirable, pair.weight)
        for pair in pairs
        for answer, desirable in ((pair.chosen, True), (pair.rejected, False))
    ]


def test_every_completion_is_mismatched_once_and_never_with_its_own_prompt():
    """A shift by one would pair an answer with the other answer to its own prompt."""
    pairs = make_pairs(4)
    items = unpair([*pairs[:2], pairs[1], *pairs[2:]])  # one prompt has two pairs
    own = {answer.token_ids: p.prompt.prompt_id for p in pairs for answer in (p.chosen, p.rejected)}
    assert all(own[item.kl_completion_ids] != item.prompt.prompt_id for item in items)
    assert Counter(item.kl_completion_ids for item in items) == Counter(item.completion.token_ids for item in items)


@pytest.mark.parametrize(("prompts", "expected"), [("aaab", "bbba"), ("a", "-"), ("aa", "--"), ("", ""), ("ab", "ba")])
def test_where_no_shift_will_do_the_next_item_of_another_prompt_serves(prompts: str, expected: str):
    by_name = {pair.prompt.prompt_id: pair for pair in make_pairs(2)}
    names = {"a": "p0", "b": "p1"}
    answers = {letter: by_name[name].chosen.token_ids for letter, name in names.items()} | {"-": ()}
    items = [
        Labelled(prompt=by_name[names[x]].prompt, completion=by_name[names[x]].chosen, desirable=True) for x in prompts
    ]
    assert [item.kl_completion_ids for item in with_mismatches(items)] == [answers[x] for x in expected]


def test_rows_with_one_prompt_under_several_names_are_no_mismatch():
    """As in a data set of labelled answers; would catch a KL estimate from an answer to the very prompt."""
    first, second = make_pairs(2)
    twin = replace(first.prompt, prompt_id="twin")
    items = [
        Labelled(prompt=first.prompt, completion=first.chosen, desirable=True),
        Labelled(prompt=twin, completion=replace(first.rejected, prompt_id="twin"), desirable=False),
        Labelled(prompt=second.prompt, completion=second.chosen, desirable=True),
    ]
    answers = [second.chosen.token_ids, second.chosen.token_ids, first.chosen.token_ids]
    assert [item.kl_completion_ids for item in with_mismatches(items)] == answers
