"""Who is given what, and what becomes of votes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from annotation_kit import T0, ask, check_file, invite, make_store

from online_dpo.annotation.agreement import position_bias
from online_dpo.annotation.records import Choice, Excluded, LeaseLost, NotUndoable, Paused, Vote
from online_dpo.annotation.store import AnnotationStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotation.sqlite"


def test_each_question_goes_to_k_different_people_and_to_nobody_twice(path: Path) -> None:
    store = make_store(path, num_questions=7, votes_per_question=2)
    people = invite(store, 3)
    seen: dict[str, list[str]] = {person: [] for person in people}
    now = T0
    while True:
        given = {person: store.next_assignment(person, now) for person in people}
        if not any(given.values()):
            break
        for person, assignment in given.items():
            if assignment is not None:
                seen[person].append(assignment.question.question_id)
                store.vote(assignment.assignment_id, person, "left", now=now)
        now += 1
    assert all(len(set(mine)) == len(mine) for mine in seen.values())
    assert Counter(Counter(q for mine in seen.values() for q in mine).values()) == {2: 7}
    answers = store.answers([ask(i).question_id for i in range(7)])
    assert all(len({vote.annotator for vote in votes}) == 2 for votes in answers.values())
    # What was shown on the left is the first answer, or the second where sides were swapped.
    assert all(v.outcome == ("second" if v.swapped else "first") for votes in answers.values() for v in votes)
    assert store.progress(now).is_settled
    check_file(path)


def test_questions_nearest_to_being_settled_come_first(path: Path) -> None:
    store = make_store(path, num_questions=5, votes_per_question=3)
    a, b, c = invite(store, 3)
    order = []
    for _ in range(3):
        mine = store.next_assignment(a, T0)
        assert mine is not None
        order.append(mine.question.question_id)
        store.vote(mine.assignment_id, a, "tie", now=T0)
    first_of_b = store.next_assignment(b, T0)
    assert first_of_b is not None and first_of_b.question.question_id == order[0]
    store.release(first_of_b.assignment_id, b)
    for _ in range(2):
        theirs = store.next_assignment(b, T0)
        assert theirs is not None
        store.vote(theirs.assignment_id, b, "tie", now=T0)
    third = store.next_assignment(c, T0)
    assert third is not None and third.question.question_id == order[0]


def test_two_people_never_hold_the_same_slot_and_a_lease_that_ran_out_goes_to_somebody_else(path: Path) -> None:
    store = make_store(path, num_questions=1, votes_per_question=1, lease_s=60)
    a, b = invite(store, 2)
    held = store.next_assignment(a, T0)
    assert held is not None and store.next_assignment(b, T0) is None
    assert store.next_assignment(a, T0 + 30) is not None  # renews
    assert store.next_assignment(b, T0 + 89) is None
    assert store.renew(held.assignment_id, a, T0 + 89) == T0 + 149
    taken = store.next_assignment(b, T0 + 149)
    assert taken is not None
    with pytest.raises(LeaseLost, match="had run out"):
        store.vote(held.assignment_id, a, "left", now=T0 + 150)
    with pytest.raises(LeaseLost, match="not assigned to you"):
        store.vote(taken.assignment_id, a, "left", now=T0 + 150)
    # Somebody who comes back before anybody else took the question may still answer.
    late = store.vote(taken.assignment_id, b, "left", now=T0 + 9999)
    assert late.status == "counted"
    check_file(path)


def test_a_vote_sent_twice_is_one_vote_also_after_it_was_undone(path: Path) -> None:
    store = make_store(path, num_questions=1, votes_per_question=1)
    (a,) = invite(store, 1)
    held = store.next_assignment(a, T0)
    assert held is not None
    once = store.vote(held.assignment_id, a, "left", comment="why", now=T0 + 5)
    assert store.vote(held.assignment_id, a, "right", now=T0 + 6) == once
    again = store.undo(a, T0 + 7)
    assert again.question == held.question and again.swapped == held.swapped
    assert store.vote(held.assignment_id, a, "left", now=T0 + 8).status == "superseded"
    assert store.answers([held.question.question_id]) == {held.question.question_id: ()}
    final = store.vote(again.assignment_id, a, "right", now=T0 + 9)
    assert final.seconds == 5 + 2 and {once.outcome, final.outcome} == {"first", "second"}
    assert [vote.status for vote in store.votes()] == ["superseded", "counted"]
    # What the run has used stays.
    assert store.take_answers([held.question.question_id], T0) == {held.question.question_id: (final,)}
    with pytest.raises(NotUndoable, match="the run has used it"):
        store.undo(a, T0)
    check_file(path)


def test_a_skipped_question_goes_to_others_and_what_nobody_is_left_for_is_stuck(path: Path) -> None:
    store = make_store(path, num_questions=1, votes_per_question=2)
    a, b, c = invite(store, 3)
    for person, choice in ((a, "skip"), (b, "left")):
        held = store.next_assignment(person, T0)
        assert held is not None
        store.vote(held.assignment_id, person, choice, now=T0)  # type: ignore[arg-type]
        assert store.next_assignment(person, T0) is None
    assert store.progress(T0).stuck == ()
    store.revoke(c, "admin", T0)
    (stuck,) = store.progress(T0).stuck
    assert stuck.reason == "votes still wanted: 1; people who have not answered it: 0; skipped by: 1"
    assert store.take_answers([stuck.question_id], T0) is None
    assert store.close_questions([stuck.question_id], "admin", T0) == 1
    taken = store.take_answers([stuck.question_id], T0)
    assert taken is not None and [vote.annotator for vote in taken[stuck.question_id]] == [b]
    check_file(path)


def test_votes_below_the_speed_floor_are_kept_and_do_not_count(path: Path) -> None:
    store = make_store(path, num_questions=1, votes_per_question=1, min_seconds=2.0)
    a, b = invite(store, 2)
    held = store.next_assignment(a, T0)
    assert held is not None
    # The page's clock cannot say more than the store's.
    assert store.vote(held.assignment_id, a, "left", seconds=50, now=T0 + 1).status == "too_fast"
    assert store.next_assignment(a, T0 + 2) is None
    other = store.next_assignment(b, T0 + 2)
    assert other is not None
    with pytest.raises(NotUndoable, match="others have answered"):
        store.undo(a, T0 + 3)
    store.release(other.assignment_id, b)
    again = store.undo(a, T0 + 3)
    # The seconds before the undo were spent on the same question.
    assert store.vote(again.assignment_id, a, "left", seconds=1.5, now=T0 + 5).status == "counted"
    check_file(path)


@pytest.mark.parametrize("way", ["undo", "exclude", "undo own"])
def test_a_question_that_was_settled_and_is_not_any_more_is_found_again(path: Path, way: str) -> None:
    store = make_store(path, num_questions=3, votes_per_question=1)
    a, b = invite(store, 2)
    held = store.next_assignment(a, T0)
    assert held is not None
    store.vote(held.assignment_id, a, "left", now=T0)
    for person in (b, a):  # both have looked beyond it
        other = store.next_assignment(person, T0)
        assert other is not None and other.question != held.question
        store.release(other.assignment_id, person)
    if way == "exclude":
        store.exclude(a, "by hand", "admin", T0)
    else:
        again = store.undo(a, T0)
        store.release(again.assignment_id, a)
    found = store.next_assignment(a if way == "undo own" else b, T0)
    assert found is not None and found.question == held.question


def test_a_page_that_was_left_open_answers_nothing_twice(path: Path) -> None:
    store = make_store(path, num_questions=2, votes_per_question=2)
    (a,) = invite(store, 1)
    old = store.next_assignment(a, T0)
    assert old is not None
    store.release(old.assignment_id, a)
    new = store.next_assignment(a, T0)
    assert new is not None and new.question == old.question and new.assignment_id != old.assignment_id
    with pytest.raises(LeaseLost):
        store.vote(old.assignment_id, a, "left", now=T0)
    store.vote(new.assignment_id, a, "left", now=T0)
    for late in (old, new):
        with pytest.raises(LeaseLost):
            store.renew(late.assignment_id, a, T0)
    with pytest.raises(LeaseLost):
        store.vote(old.assignment_id, a, "left", now=T0)
    assert len(store.votes()) == 1
    check_file(path)


def test_what_the_run_has_used_stays_when_its_annotator_is_excluded_and_comes_back(path: Path) -> None:
    store = make_store(path, num_questions=2, votes_per_question=1)
    (a,) = invite(store, 1)
    first, second = (_answer(store, a, "left") for _ in range(2))
    taken = store.take_answers([first.question_id], T0)
    store.exclude(a, "by hand", "admin", T0)
    assert {vote.vote_id: vote.status for vote in store.votes()} == {
        first.vote_id: "counted", second.vote_id: "excluded"
    }  # fmt: skip
    assert store.take_answers([first.question_id], T0) == taken
    assert store.take_answers([first.question_id, second.question_id], T0) is None
    assert store.reinstate(a, "admin", T0) == 1
    assert {vote.status for vote in store.votes()} == {"counted"}
    told = [event for event in store.events() if event.what in ("excluded", "reinstated")]
    assert [(e.who, e.details["annotator"], e.details["num_votes"]) for e in told] == [("admin", a, 1)] * 2


def test_repeats_come_after_the_distance_with_sides_swapped_and_gold_by_share(path: Path) -> None:
    store = make_store(
        path, num_questions=400, num_gold=60, votes_per_question=1, gold_share=0.1, repeat_share=0.1, repeat_distance=7,
        min_checks=1000,
    )  # fmt: skip
    (a,) = invite(store, 1)
    votes = [_answer(store, a, "left") for _ in range(300)]
    kinds = Counter(vote.kind for vote in votes)
    assert 15 <= kinds["gold"] <= 50 and 15 <= kinds["repeat"] <= 50
    place = {vote.vote_id: number for number, vote in enumerate(votes)}
    for number, vote in enumerate(votes):
        if vote.kind == "repeat":
            assert vote.repeat_of is not None
            earlier = votes[place[vote.repeat_of]]
            assert number - place[vote.repeat_of] > 7 and vote.question_id == earlier.question_id
            assert vote.swapped != earlier.swapped and vote.status == "check"
    assert max(Counter(vote.question_id for vote in votes if vote.kind != "repeat").values()) == 1
    assert max(Counter(vote.repeat_of for vote in votes if vote.kind == "repeat").values()) == 1
    # Somebody who always chooses the left answer contradicts each repeat; the figures say so.
    (figures,) = store.annotators()
    assert (figures.num_repeats, figures.num_repeats_same) == (kinds["repeat"], 0)
    bias = position_bias(figures)
    assert bias is not None and bias.share == 1.0 and bias.low > 0.98


def test_sides_are_swapped_about_half_the_time_and_not_the_same_for_everybody(path: Path) -> None:
    store = make_store(path, num_questions=400, votes_per_question=2)
    a, b = invite(store, 2)
    sides = {
        person: {vote.question_id: vote.swapped for vote in (_answer(store, person, "tie") for _ in range(400))}
        for person in (a, b)
    }
    # 400 throws of a coin lie within 160 and 240 but for one case in 15 000; so do those in which both agree.
    assert all(160 < sum(mine.values()) < 240 for mine in sides.values())
    assert 160 < sum(sides[a][question] == sides[b][question] for question in sides[a]) < 240


def test_a_new_store_with_the_same_seed_gives_the_same_order_and_sides(tmp_path: Path) -> None:
    orders = []
    for number in (1, 2):
        store = make_store(tmp_path / f"{number}.sqlite", num_questions=30, num_gold=9, gold_share=0.2, seed=4)
        (a,) = invite(store, 1)
        orders.append([(v.question_id, v.swapped, v.kind) for v in (_answer(store, a, "tie") for _ in range(20))])
    assert orders[0] == orders[1]
    other = make_store(tmp_path / "3.sqlite", num_questions=30, num_gold=9, gold_share=0.2, seed=5)
    (a,) = invite(other, 1)
    assert [_answer(other, a, "tie").question_id for _ in range(20)] != [question for question, _, _ in orders[0]]


def test_ratings_are_kept_in_the_questions_order_and_checked(path: Path) -> None:
    store = make_store(path, num_questions=40, votes_per_question=1, criteria=("helpful", "honest"))
    (a,) = invite(store, 1)
    seen = set()
    for _ in range(20):
        held = store.next_assignment(a, T0)
        assert held is not None
        vote = store.vote(held.assignment_id, a, "left", ratings={"helpful": 2, "honest": 0}, now=T0)
        assert vote.ratings == {"helpful": -2 if held.swapped else 2, "honest": 0}
        assert vote.outcome == ("second" if held.swapped else "first")
        seen.add(held.swapped)
    assert seen == {True, False}
    held = store.next_assignment(a, T0)
    assert held is not None
    for bad in ({"harmless": 1}, {"helpful": 3}, {"helpful": True}):
        with pytest.raises(ValueError, match="rating"):
            store.vote(held.assignment_id, a, "left", ratings=bad, now=T0)
    with pytest.raises(ValueError, match="a choice is one of"):
        store.vote(held.assignment_id, a, "first", now=T0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds are a number"):
        store.vote(held.assignment_id, a, "left", seconds=float("nan"), now=T0)


def test_what_lies_ahead_of_an_annotator(path: Path) -> None:
    store = make_store(path, num_questions=10, votes_per_question=2)
    a, b = invite(store, 2)
    assert (store.outlook(a).num_done, store.outlook(a).num_left, store.outlook(a).seconds_left) == (0, 10, None)
    for number in range(4):
        held = store.next_assignment(a, T0 + 100 * number)
        assert held is not None
        store.vote(held.assignment_id, a, "left", seconds=5.0 + number, now=T0 + 100 * number + 50)
    assert (store.outlook(a).num_done, store.outlook(a).num_left) == (4, 6)
    assert store.outlook(a).seconds_left == 6 * 6.5
    assert store.outlook(b).num_left == 8  # half of the 16 votes that are wanted
    assert [f.median_seconds for f in store.annotators()] == [6.5, None]


def test_pausing_gives_nothing_new_and_takes_what_is_held(path: Path) -> None:
    store = make_store(path, num_questions=2, votes_per_question=1)
    (a,) = invite(store, 1)
    held = store.next_assignment(a, T0)
    assert held is not None
    store.pause("admin", T0)
    assert store.vote(held.assignment_id, a, "left", now=T0).status == "counted"
    with pytest.raises(Paused):
        store.next_assignment(a, T0)
    store.unpause("admin", T0)
    assert store.next_assignment(a, T0) is not None
    assert [event.what for event in store.events()][-3:] == ["paused", "vote", "unpaused"]


def test_somebody_below_the_bar_is_told_and_the_questions_go_back(path: Path) -> None:
    store = make_store(
        path, num_questions=60, num_gold=30, votes_per_question=1, gold_share=0.5, min_checks=5, min_accuracy=0.7
    )
    a, b = invite(store, 2)
    used: list[str] = []
    with pytest.raises(Excluded, match=r"you answered 0 of 5 right, and at least 70% are wanted"):
        for number in range(60):
            held = store.next_assignment(a, T0)
            assert held is not None
            wrong = "left" if held.swapped else "right"
            store.vote(held.assignment_id, a, wrong if held.kind == "gold" else "left", now=T0 + 9)  # type: ignore[arg-type]
            if number == 0 and held.kind == "question":
                used = [held.question.question_id]
                store.take_answers(used, T0)
    excluded = [vote for vote in store.votes() if vote.status == "excluded"]
    assert len(excluded) >= 2 and all(v.question_id not in used for v in excluded)
    assert store.progress(T0).num_votes == len(used)
    with pytest.raises(Excluded):
        store.undo(a, T0)
    # They are asked of others, as any question.
    asked = set()
    while (held := store.next_assignment(b, T0)) is not None:
        asked.add(held.question.question_id)
        assert len(asked) <= 90
        right = "right" if held.swapped else "left"
        store.vote(held.assignment_id, b, right, now=T0)  # type: ignore[arg-type]
    assert {vote.question_id for vote in excluded} <= asked and store.progress(T0).is_settled
    # Nothing is left to count again; the person may go on.
    assert store.reinstate(a, "admin", T0 + 10) == 0
    assert store.next_assignment(a, T0 + 11) is None
    check_file(path)


def _answer(store: AnnotationStore, person: str, choice: Choice) -> Vote:
    held = store.next_assignment(person, T0)
    assert held is not None
    return store.vote(held.assignment_id, person, choice, now=T0)
