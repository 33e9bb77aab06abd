"""Votes of processes that are killed, that race, or whose disk or file is none to write on."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from annotation_kit import PLAIN, T0, ask, check_file, invite, make_store

from online_dpo.annotation.records import LeaseLost, Rules
from online_dpo.annotation.store import AnnotationStore
from online_dpo.annotation.tables.database import AnnotationStoreError, Database
from online_dpo.annotation.tables.schema import SCHEMA_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotation.sqlite"


def in_child(act: Callable[[int], None]) -> tuple[list[str], int]:
    """Run `act` in a forked process, which is given a pipe; what it wrote there by lines, and how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            act(write)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().split("\n")
    return [line for line in lines if line], os.waitpid(pid, 0)[1]


def answer_all(store: AnnotationStore, people: list[str], tell: Callable[[str], None], rounds: int = 12) -> None:
    """A page's work: question, vote, sometimes an undo. Tells of each vote once it is confirmed."""
    for number in range(rounds):
        person = people[number % len(people)]
        held = store.next_assignment(person, T0 + number)
        if held is None:
            continue
        vote = store.vote(held.assignment_id, person, "left", comment=f"number {number}", now=T0 + number)
        tell(f"voted {vote.vote_id} {person} {held.question.question_id}")
        if number % 3 == 2:
            again = store.undo(person, T0 + number)
            tell(f"undone {vote.vote_id}")
            vote = store.vote(again.assignment_id, person, "tie", now=T0 + number)
            tell(f"voted {vote.vote_id} {person} {held.question.question_id}")


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_wherever_a_process_is_killed_nothing_confirmed_is_lost_and_nothing_doubled(path: Path, step: int) -> None:
    """It dies right before a statement, `BEGIN` and `COMMIT` among them, or when it is about to confirm a vote."""
    num_places = 0
    for kill_at in range(0, 10_000, step):
        folder = path.parent / str(kill_at)
        folder.mkdir()
        make_store(folder / "a.sqlite", num_questions=3, votes_per_question=2).close()

        def act(pipe: int, file: Path = folder / "a.sqlite", kill_at: int = kill_at) -> None:
            store = AnnotationStore.open(file)
            people = invite(store, 2)
            for person in people:
                os.write(pipe, f"invited {person}\n".encode())
            seen = 0

            def count(statement: str) -> None:
                nonlocal seen
                seen += 1
                if seen > kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            def tell(text: str) -> None:
                count(text)
                os.write(pipe, f"{text}\n".encode())

            store._database._writer.set_trace_callback(count)
            answer_all(store, people, tell)
            os.write(pipe, f"places {seen}\n".encode())

        lines, status = in_child(act)
        told = [line.split() for line in lines]
        people = [line[1] for line in told if line[0] == "invited"]
        check_file(folder / "a.sqlite")
        with AnnotationStore.open(folder / "a.sqlite") as store:
            votes = {vote.vote_id: vote for vote in store.votes()}
            for kind, name, *rest in told:
                if kind == "voted":
                    assert [votes[name].annotator, votes[name].question_id] == rest
                elif kind == "undone":
                    assert votes[name].status == "superseded"
            confirmed = [line[1] for line in told if line[0] == "voted"]
            assert len(votes) - len(confirmed) in (0, 1)  # durable, and killed before it was said
            if len(votes) > len(confirmed):
                # The page sends it once more: still one vote.
                (name,) = votes.keys() - set(confirmed)
                sent_again = store.vote(name, votes[name].annotator, "right", now=T0 + 500)
                assert sent_again == votes[name] and len(store.votes()) == len(votes)
            # Whatever is left is answered as if nothing had happened.
            answer_all(store, people, lambda line: None)
            assert store.progress(T0).is_settled
            assert all(len(v) == 2 for v in store.answers([ask(i).question_id for i in range(3)]).values())
        check_file(folder / "a.sqlite")
        if status == 0:
            num_places = int(told[-1][1])
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert num_places > 60


@pytest.mark.exhaustive
def test_a_process_killed_at_any_moment_leaves_every_confirmed_vote(path: Path) -> None:
    """By the clock: also within a write or a sync of SQLite's own."""
    draw = random.Random(0)
    make_store(path, num_questions=4000, votes_per_question=2).close()
    with AnnotationStore.open(path) as store:
        people = invite(store, 2)
    confirmed: list[str] = []
    for _ in range(40):
        read, write = os.pipe()

        def tell(line: str, pipe: int = write) -> None:
            os.write(pipe, f"{line}\n".encode())

        pid = os.fork()
        if pid == 0:
            os.close(read)
            with AnnotationStore.open(path) as store, contextlib.suppress(BaseException):
                answer_all(store, people, tell, rounds=1000)
            os._exit(0)
        os.close(write)
        time.sleep(draw.uniform(0.005, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(read) as pipe:
            confirmed += [line.split()[1] for line in pipe if line.startswith("voted") and line.endswith("\n")]
        check_file(path)
    with AnnotationStore.open(path) as store:
        assert set(confirmed) <= {vote.vote_id for vote in store.votes()}
        assert len(confirmed) > 100


def test_of_many_threads_exactly_one_gets_the_last_slot(path: Path) -> None:
    store = make_store(path, num_questions=30, votes_per_question=1)
    people = invite(store, 8)
    got: list[tuple[str, str]] = []
    start = threading.Barrier(len(people))

    def work(person: str) -> None:
        start.wait()
        while (held := store.next_assignment(person, T0)) is not None:
            got.append((held.question.question_id, person))
            store.vote(held.assignment_id, person, "left", now=T0)

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(question for question, _ in got) == sorted(ask(i).question_id for i in range(30))
    assert {(v.question_id, v.annotator) for v in store.votes()} == set(got)
    check_file(path)


def test_processes_share_the_slots_and_a_vote_that_all_of_them_send_is_one(path: Path) -> None:
    store = make_store(path, num_questions=25, votes_per_question=2)
    people = invite(store, 3)
    held = store.next_assignment(people[0], T0)
    assert held is not None
    store.close()
    read, write = os.pipe()
    pids = []
    for person in people:
        pid = os.fork()
        if pid == 0:
            with AnnotationStore.open(path) as mine:
                same = mine.vote(held.assignment_id, people[0], "left", now=T0)
                os.write(write, f"{same.vote_id} {same.question_id} {people[0]}\n".encode())
                while (found := mine.next_assignment(person, T0)) is not None:
                    with contextlib.suppress(LeaseLost):
                        vote = mine.vote(found.assignment_id, person, "tie", now=T0)
                        os.write(write, f"{vote.vote_id} {vote.question_id} {person}\n".encode())
            os._exit(0)
        pids.append(pid)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = {tuple(line.split()) for line in pipe}
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    with AnnotationStore.open(path) as store:
        votes = store.votes()
        assert len(votes) == 50 and {(v.vote_id, v.question_id, v.annotator) for v in votes} == told
        assert store.progress(T0).is_settled
    check_file(path)


# ---- files that cannot be used: one sentence each


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(AnnotationStoreError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_files_that_are_none_of_ours(path: Path) -> None:
    assert "there is no" in refused(lambda: AnnotationStore.open(path))
    path.write_text("not a database, and long enough to have a header of one " * 10)
    assert "is not a SQLite database" in refused(lambda: AnnotationStore.open(path))
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text)")
    assert "not one of annotations" in refused(lambda: AnnotationStore.create(path, Rules(), T0))
    path.unlink()
    make_store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert f"schema version {SCHEMA_VERSION + 1}, and this version of online-dpo reads {SCHEMA_VERSION}" in refused(
        lambda: AnnotationStore.open(path)
    )
    assert "cannot be made" in refused(lambda: AnnotationStore.create(path / "within" / "a.sqlite", Rules(), T0))
    assert "cannot be opened" in refused(lambda: Database(path.parent / "absent" / "a.sqlite"))


def test_a_damaged_file(path: Path) -> None:
    make_store(path, num_questions=200).close()
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)

    def use() -> None:
        with AnnotationStore.open(path) as store:
            store.add_questions([ask(1000)], T0)

    assert "is damaged" in refused(use)


def test_file_systems_on_which_votes_could_be_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This way of SQLite's to lock files has no shared memory, as some file systems have none.
    assert "cannot have a write-ahead log" in refused(lambda: Database(path, options="vfs=unix-dotfile"))
    monkeypatch.setattr("online_dpo.annotation.tables.database._file_system", lambda path: "nfs4")
    assert "network file system (nfs4)" in refused(lambda: AnnotationStore.create(path, Rules(), T0))


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(path: Path) -> None:
    store = make_store(path, num_questions=1)
    (person,) = invite(store, 1)
    held = store.next_assignment(person, T0)
    assert held is not None
    store._database._writer.execute("PRAGMA max_page_count = 1")
    assert "the disk is full" in refused(lambda: store.add_questions([ask(i) for i in range(1, 500)], T0))
    assert store.progress(T0).num_questions == 1
    store._database._writer.execute("PRAGMA max_page_count = 1000000")
    assert store.vote(held.assignment_id, person, "left", now=T0).status == "counted"
    check_file(path)


def test_a_file_that_cannot_be_written(path: Path) -> None:
    """As another user, since root may write everything; and beyond a limit on the size of files."""
    store = make_store(path, num_questions=1)
    invite(store, 1)
    store.close()
    path.parent.chmod(0o755)
    path.chmod(0o444)

    def read_only(pipe: int) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        else:
            path.parent.chmod(0o555)
        try:
            AnnotationStore.open(path).add_questions([ask(5)], T0)
        except AnnotationStoreError as error:
            os.write(pipe, f"{error}\n".encode())

    def too_large(pipe: int) -> None:
        with AnnotationStore.open(path) as store:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            try:
                store.add_questions([ask(i) for i in range(5, 500)], T0)
            except AnnotationStoreError as error:
                os.write(pipe, f"{error}\n".encode())

    for parent in list(path.parents)[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    (line,), _ = in_child(read_only)
    assert "read-only" in line or "cannot be opened" in line
    path.parent.chmod(0o755)
    path.chmod(0o644)
    (line,), _ = in_child(too_large)
    assert "cannot be used" in line and "disk" in line
    with AnnotationStore.open(path) as store:
        assert store.progress(T0).num_questions == 1


def test_nothing_can_be_deleted(path: Path) -> None:
    store = make_store(path, num_questions=1)
    (person,) = invite(store, 1)
    held = store.next_assignment(person, T0)
    assert held is not None
    store.vote(held.assignment_id, person, "left", now=T0)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for table in ("votes", "questions", "events", "assignments", "annotators", "invitations"):
            with pytest.raises(sqlite3.IntegrityError, match="nothing is ever deleted"):
                db.execute(f"DELETE FROM {table}")
    assert Rules(**PLAIN) == store.rules  # type: ignore[arg-type]
