"""Links, sessions, and who may do what."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from annotation_kit import T0, invite, make_store

from online_dpo.annotation.records import Excluded, Refused, SignInRefused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotation.sqlite"


def test_links_are_random_hashed_expiring_and_revocable(path: Path) -> None:
    store = make_store(path, num_questions=1)
    invitation = store.invite("Ada Lovelace", expires_at=T0 + 100, now=T0)
    admin = store.invite("Chief", expires_at=T0 + 100, now=T0, role="administrator")
    person = invitation.annotator.annotator
    assert person.startswith("annotator-") and len(person) == len("annotator-3f2a") and "Ada" not in person
    assert len(invitation.token) >= 43 and invitation.token != admin.token  # 256 bits
    assert store.sign_in(invitation.token, T0 + 99) == invitation.annotator
    assert store.sign_in(admin.token, T0).role == "administrator"
    for token in (invitation.token[:-1], invitation.token + "x", "", "é\ud800"):
        with pytest.raises(SignInRefused, match="not known"):
            store.sign_in(token, T0)
    with pytest.raises(SignInRefused, match="has run out"):
        store.sign_in(invitation.token, T0 + 100)
    session = store.open_session(person, T0 + 50, T0)
    assert store.session(session, T0 + 49) == invitation.annotator
    assert store.session(session, T0 + 50) is None and store.session(invitation.token, T0) is None
    held = store.next_assignment(person, T0)
    assert held is not None
    store.revoke(person, admin.annotator.annotator, T0)
    assert store.session(session, T0) is None and store.progress(T0).num_leased == 0
    with pytest.raises(SignInRefused, match="revoked"):
        store.sign_in(invitation.token, T0)
    with pytest.raises(SignInRefused, match="revoked"):
        store.vote(held.assignment_id, person, "left", now=T0)
    again = store.invite_again(person, expires_at=T0 + 100, by=admin.annotator.annotator, now=T0)
    assert again.annotator.annotator == person and store.sign_in(again.token, T0).status == "active"
    with pytest.raises(SignInRefused):
        store.sign_in(invitation.token, T0)
    assert store.next_assignment(person, T0) is not None
    # Neither token nor session is in the file or its log.
    contents = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in (invitation.token, again.token, session):
        assert secret.encode() not in contents
    told = [(event.who, event.what) for event in store.events() if event.what in ("revoked", "invited again")]
    assert told == [(admin.annotator.annotator, "revoked")] * 2 + [(admin.annotator.annotator, "invited again")]


def test_nobody_else_on_the_machine_reads_peoples_names(path: Path) -> None:
    with make_store(path):
        assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}-wal", f"{path.name}-shm"}
        assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.iterdir())


def test_signing_out_ends_one_session(path: Path) -> None:
    store = make_store(path)
    (person,) = invite(store, 1)
    one, two = (store.open_session(person, T0 + 50, T0) for _ in range(2))
    store.close_session(one, T0)
    store.close_session("unknown", T0)
    assert store.session(one, T0) is None and store.session(two, T0) is not None


def test_an_excluded_person_is_told_and_can_still_sign_in(path: Path) -> None:
    store = make_store(path, num_questions=1)
    invitation = store.invite("Ada", expires_at=T0 + 100, now=T0)
    person = invitation.annotator.annotator
    store.exclude(person, "of 20 you answered 3 right", "admin", T0)
    found = store.sign_in(invitation.token, T0)
    assert (found.status, found.reason) == ("excluded", "of 20 you answered 3 right")
    with pytest.raises(Excluded, match="no further questions: of 20 you answered 3 right"):
        store.next_assignment(person, T0)
    store.reinstate(person, "admin", T0)
    assert store.next_assignment(person, T0) is not None


def test_names_and_pseudonyms(path: Path) -> None:
    store = make_store(path)
    for name in ("", "  ", "x" * 201):
        with pytest.raises(Refused, match="1 to 200 characters"):
            store.invite(name, expires_at=T0, now=T0)
    with pytest.raises(Refused, match="there is no annotator annotator-0"):
        store.next_assignment("annotator-0", T0)
    names = invite(store, 400)
    # Four digits are taken twice sooner or later; then there is one more.
    assert len(set(names)) == 400
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET who = who")  # the file is not locked by anybody
    db.close()
