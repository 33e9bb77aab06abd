"""What an annotator's page is told and what it may do: a blind comparison, saved when it says so."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from annotation_kit import check_file, gold
from annotation_web_kit import Pages, pages

from online_dpo.annotation.records import Question
from online_dpo.annotation.store import FILE

HIDDEN = (
    *("repeat", "kind", "swapped", "purpose", "round", "prompt_id", "question_id", "policy", "score", "annotator-"),
    *("first_text", "second_text", "judge-of-mark", "prompt-mark", "secret", "4711"),
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Pages]:
    with pages(tmp_path, num_questions=12, votes_per_question=2, criteria=("clear", "correct")) as found:
        yield found
    check_file(tmp_path / FILE)


def test_nothing_but_prompt_and_answers_is_told(tmp_path: Path) -> None:
    with pages(tmp_path, gold_share=0.4, repeat_share=0.3, repeat_distance=1, votes_per_question=2) as site:
        site.store.add_questions(
            [
                Question(
                    purpose="judge-of-mark", round_index=4711, prompt_id=f"prompt-mark-{i}", prompt=f"Prompt {i}",
                    first=31, second=32, first_text=f"answer {i} a", second_text=f"answer {i} b",
                )
                for i in range(30)
            ],
            site.clock.now,
        )  # fmt: skip
        site.store.add_gold([gold(i) for i in range(9)], site.clock.now)
        other, ada = site.annotator("Other"), site.annotator("Ada")
        other.vote("left", comment="a secret of Other")
        said = [ada.get("/").text, json.dumps(dict(ada.get("/").headers))]
        shapes, kinds = set(), Counter[str]()
        for _ in range(25):
            site.clock.now += 60
            asked = ada.post("/api/next")
            reply = asked.json()
            assert set(reply["question"]) == {"assignment", "prompt", "left", "right"}
            voted = ada.post("/api/vote", assignment=reply["question"]["assignment"], choice="left", seconds=30.0)
            shapes.add((frozenset(asked.json()), frozenset(voted.json()), frozenset(voted.headers)))
            assert reply["outlook"]["left"] % 5 == 0, "an exact number would tell which questions do not count"
            said += [asked.text, voted.text, json.dumps(dict(voted.headers))]
        for vote in site.store.votes():
            kinds[vote.kind] += 1
        assert min(kinds["gold"], kinds["repeat"], kinds["question"]) >= 3
        assert len(shapes) == 1, "a hidden question looks like any other"
        for text in said:
            lower = re.sub(r"[a-z-]+-policy", "", text.lower())  # names of headers
            assert [word for word in HIDDEN if word in lower] == []


def test_sides_are_those_of_the_screen_and_differ_between_people(site: Pages) -> None:
    sides: dict[str, set[str]] = {}
    for name in ("Ada", "Bob"):
        client = site.annotator(name)
        for _ in range(12):
            question = client.next()["question"]
            is_first_left = question["left"]["text"].startswith("first")
            sides.setdefault(name, set()).add(question["left"]["text"])
            client.vote("left", question["assignment"], ratings={"clear": 2, "correct": -1})
            vote = site.store.votes()[-1]
            assert vote.outcome == ("first" if is_first_left else "second")
            assert vote.ratings == ({"clear": 2, "correct": -1} if is_first_left else {"clear": -2, "correct": 1})
    assert sides["Ada"] != sides["Bob"]


def test_a_vote_that_is_sent_again_is_one_vote_and_says_what_stays(site: Pages) -> None:
    client = site.annotator()
    first = client.next()["question"]["assignment"]
    answers = [client.vote(choice, first).json() for choice in ("left", "left", "right")]
    assert [(a["saved"], a["earlier"]) for a in answers] == [(True, False), (True, False), (True, True)]
    assert len({a["question"]["assignment"] for a in answers}) == 1, "the next question stays the same too"
    assert len(site.store.votes()) == 1


def test_nobody_votes_with_what_somebody_else_holds(site: Pages) -> None:
    ada, bob = site.annotator("Ada"), site.annotator("Bob")
    held = ada.next()["question"]["assignment"]
    reply = bob.vote("left", held).json()
    assert not reply["saved"] and "not assigned to you" in reply["lost"]
    assert bob.post("/api/renew", assignment=held).json()["kept"] is False
    bob.post("/api/release", assignment=held)
    assert ada.vote("left", held).json()["saved"] is True
    assert len(site.store.votes()) == 1


def test_a_lease_that_ran_out_is_taken_up_again_while_the_question_is_free(site: Pages) -> None:
    client = site.annotator()
    held = client.next()["question"]["assignment"]
    site.clock.now += 10_000
    assert client.post("/api/renew", assignment=held).json() == {"kept": True}
    site.clock.now += 10_000
    assert client.vote("left", held).json()["saved"] is True


def test_a_lease_that_ran_out_and_went_to_others_is_lost_with_a_sentence(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=1, votes_per_question=1) as site:
        ada, bob = site.annotator("Ada"), site.annotator("Bob")
        held = ada.next()["question"]["assignment"]
        assert bob.next() == {"state": "waiting", "outlook": {"done": 0, "left": 5, "minutes": None}}
        site.clock.now += 10_000
        bob.vote("left")
        assert (
            ada.post("/api/renew", assignment=held).json()["lost"].startswith("Your time for this question had run out")
        )
        reply = ada.vote("left", held).json()
        assert not reply["saved"] and reply["lost"] and reply["state"] == "done"


def test_closing_the_page_gives_the_question_to_others(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=1, votes_per_question=1) as site:
        ada, bob = site.annotator("Ada"), site.annotator("Bob")
        ada.post("/api/release", assignment=ada.next()["question"]["assignment"])
        assert bob.next()["state"] == "question"


def test_the_end_of_the_server_gives_questions_back(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=5, votes_per_question=1) as site:
        people = [site.annotator(name) for name in ("Ada", "Bob", "Cyd")]
        for person in people:
            person.next()
        people[0].vote("left")
        assert site.store.progress(site.clock.now).num_leased == 3
        site.site.give_back_all()
        assert site.store.progress(site.clock.now).num_leased == 0


def test_undo_gives_the_question_back_as_it_was(site: Pages) -> None:
    client = site.annotator()
    before = client.next()["question"]
    client.vote("left", before["assignment"])
    again = client.post("/api/undo").json()["question"]
    assert {**again, "assignment": ""} == {**before, "assignment": ""}
    assert client.vote("right", again["assignment"]).json()["saved"]
    assert [v.status for v in site.store.votes()] == ["superseded", "counted"]
    client.post("/api/undo")
    reply = client.post("/api/undo")
    assert reply.status_code == 409 and reply.json()["error"] == "There is no vote of yours to undo."


def test_a_page_without_a_question_says_why(tmp_path: Path) -> None:
    with pages(tmp_path, votes_per_question=1) as site:
        ada = site.annotator("Ada")
        assert ada.next() == {"state": "empty"}
        site.store.pause("run", site.clock.now)
        assert ada.next() == {"state": "paused"}
        site.store.unpause("run", site.clock.now)
        pseudonym = site.store.annotators()[0].annotator.annotator
        site.store.exclude(pseudonym, "you answered 1 of 9 right", "run", site.clock.now)
        for reply in (ada.next(), ada.post("/api/undo").json(), ada.vote("left", "x").json()):
            assert reply["state"] == "excluded" and "you answered 1 of 9 right" in reply["why"]


def test_a_vote_that_is_too_fast_is_told(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=3, min_seconds=2.0) as site:
        client = site.annotator()
        held = client.next()["question"]["assignment"]
        site.clock.now += 60
        assert client.vote("left", held, seconds=1.0).json()["too_fast"] is True
        held = client.next()["question"]["assignment"]
        assert client.vote("left", held, seconds=600.0).json()["too_fast"] is True, (
            "the server's clock limits the page's"
        )


STRANGE: list[dict[str, object]] = [
    {"choice": "first"}, {"seconds": -1.0}, {"seconds": float("nan")}, {"ratings": {"clear": 3}}, {"extra": 1},
    {"ratings": {"other": 1}}, {"ratings": {"clear": "2"}}, {"comment": "x\ud800"},
]  # fmt: skip


@pytest.mark.parametrize("values", STRANGE, ids=str)
def test_what_no_page_sends_is_refused_and_saves_nothing(site: Pages, values: dict[str, object]) -> None:
    client = site.annotator()
    held = client.next()["question"]["assignment"]
    reply = client.post("/api/vote", **{"assignment": held, "choice": "left", "seconds": 1.0, **values})
    assert reply.status_code == 422 and reply.json()["error"]
    assert site.store.votes() == []


def test_an_administrator_sees_figures_and_links_once(site: Pages) -> None:
    root = site.administrator()
    invited = root.post("/api/admin/invite", name="Grace", days=2).json()
    grace = site.client().sign_in(invited["path"].removeprefix("/join#"))
    for _ in range(3):
        grace.vote("left")
    overview = root.get("/api/admin/overview")
    found = overview.json()
    assert found["progress"]["num_votes"] == 3 and found["alpha"] is None
    person = next(p for p in found["people"] if p["name"] == "Grace")
    assert (person["num_votes"], person["shown_first"]["share"], person["gold"]) == (3, 1.0, None)
    assert invited["path"][6:] not in overview.text
    whom = {"annotator": invited["annotator"]}
    assert root.post("/api/admin/exclude", **whom, reason="just so").status_code == 200
    assert grace.next()["state"] == "excluded"
    assert root.post("/api/admin/reinstate", **whom).json() == {"num_counted": 3}
    assert grace.next()["state"] == "question"
    root.post("/api/admin/revoke", **whom)
    assert grace.post("/api/next").status_code == 401
    again = root.post("/api/admin/invite-again", **whom, days=1).json()
    assert grace.sign_in(again["path"].removeprefix("/join#")).next()["state"] == "question"
    assert root.post("/api/admin/revoke", annotator=found["you"]).status_code == 409
    root.post("/api/admin/pause")
    assert grace.next() == {"state": "paused"}
    root.post("/api/admin/unpause")
    assert grace.next()["state"] == "question"


def test_stuck_questions_have_a_reason_and_a_way_out(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=2, votes_per_question=2) as site:
        root, ada = site.administrator(), site.annotator("Ada")
        ada.vote("left")
        found = root.get("/api/admin/overview").json()
        assert found["num_stuck"] == 2
        assert found["stuck"][0]["reason"] == "votes still wanted: 1; people who have not answered it: 0"
        assert found["stuck"][0]["prompt"].startswith("Prompt ")
        ids = [question["question_id"] for question in found["stuck"]]
        assert root.post("/api/admin/close", question_ids=ids).json() == {"num_closed": 2}
        assert root.get("/api/admin/overview").json()["num_stuck"] == 0
        assert ada.next()["state"] == "done"


def test_the_archive_of_the_export_holds_preferences_and_votes_and_no_name(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=2, votes_per_question=1) as site:
        root, ada = site.administrator(), site.annotator("Ada")
        ada.vote("left", comment="warmer")
        ada.vote("tie")
        reply = root.get("/api/admin/export?form=jsonl")
        assert "annotation-jsonl.zip" in reply.headers["content-disposition"]
        with ZipFile(BytesIO(reply.content)) as archive:
            texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert texts.keys() == {"preferences.jsonl", "votes.jsonl"} and "Ada" not in "".join(texts.values())
    [preference] = map(json.loads, texts["preferences.jsonl"].splitlines())  # the tie has no winner
    votes = [json.loads(line) for line in texts["votes.jsonl"].splitlines()]
    won = votes[0]["outcome"]
    assert (preference["chosen"], preference["rejected"]) == (
        votes[0][won], votes[0]["second" if won == "first" else "first"]
    )  # fmt: skip
    assert [vote["outcome"] == "tie" for vote in votes] == [False, True] and votes[0]["comment"] == "warmer"


def test_a_store_that_fails_is_told_without_its_path(site: Pages, tmp_path: Path) -> None:
    client = site.annotator()
    site.store.close()
    (tmp_path / FILE).rename(tmp_path / "gone")
    (tmp_path / FILE).mkdir()
    reply = client.post("/api/next")
    assert reply.status_code in (500, 503) and str(tmp_path) not in reply.text
    (tmp_path / FILE).rmdir()
    (tmp_path / "gone").rename(tmp_path / FILE)
