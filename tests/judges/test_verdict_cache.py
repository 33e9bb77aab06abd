"""The verdict cache: nobody pays twice, failures are asked again, and nothing else answers for a question."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_kit import ask, brief, caller_of, python, question

import online_dpo
from actors.judge_host import JudgeHost
from judges.fingerprint import fingerprint
from judges.outer.cache import Cached, VerdictStore
from judges.registry import make_spec
from online_dpo.config.loading import load_judges
from online_dpo.data.completion_files import answers
from online_dpo.errors import JudgeError
from online_dpo.types import Prompt, Shard, Verdict

SOURCE = """
from judges import Abstain
from pathlib import Path
LOG = Path(__file__).parent / "asked.txt"
class Judge:
    def __init__(self, tone=0): self.tone = tone
    def score(self, prompt, completion, metadata):
        with open(metadata["log"], "a") as log: log.write(completion + "\\n")
        if completion == "down" and not metadata.get("up"): raise OSError("down")
        return Abstain("mute") if completion == "mute" else len(completion) / 3 + self.tone
class Compare:
    def compare(self, prompt, a, b): return 1 / 3
"""


def cached(**more: Any) -> dict[str, Any]:
    return {"type": "cached", "path": "cache/v.sqlite", "judge": python("Judge", retries=0), **more}


def asked(folder: Path) -> list[str]:
    log = folder / "asked.txt"
    return log.read_text().split() if log.exists() else []


def test_nothing_is_asked_twice_across_processes_and_answers_are_the_same(tmp_path: Path) -> None:
    log = str(tmp_path / "asked.txt")
    first = [question("a", "bb", log=log), question("mute", name="q", log=log)]
    paid, counts = ask(caller_of(tmp_path, cached(), SOURCE), *first)
    assert (counts["num_cache_hits"], counts["num_cache_misses"], counts["num_judge_calls"]) == (0, 2, 2)
    again = [question("mute", name="other", log=log), question("new", name="n", log=log), question("a", "bb", log=log)]
    free, counts = ask(caller_of(tmp_path, cached()), *again)
    assert (counts["num_cache_hits"], counts["num_cache_misses"], counts["num_judge_calls"]) == (2, 1, 1)
    assert asked(tmp_path) == ["a", "bb", "mute", "new"]
    assert free[2] == paid[0], "exactly: scores are thirds"
    assert (brief(free[0]), free[0][0].prompt_id) == (["mute"], "other")
    comparing, _ = ask(caller_of(tmp_path, cached(judge=python("Compare"))), question("a", "b"))
    assert ask(caller_of(tmp_path, cached(judge=python("Compare"))), question("a", "b"))[0] == comparing


def test_the_same_question_twice_in_a_shard_is_asked_once(tmp_path: Path) -> None:
    log = str(tmp_path / "asked.txt")
    said, counts = ask(
        caller_of(tmp_path, cached(), SOURCE), *(question("same", name=n, log=log) for n in ("p", "q", "r"))
    )
    assert [(v[0].prompt_id, v[0].score) for v in said] == [("p", 4 / 3), ("q", 4 / 3), ("r", 4 / 3)]
    assert asked(tmp_path) == ["same"]
    assert (counts["num_cache_hits"], counts["num_cache_misses"]) == (2, 1)


def test_failures_are_never_kept(tmp_path: Path) -> None:
    log = str(tmp_path / "asked.txt")
    for _ in range(2):
        (said,), counts = ask(caller_of(tmp_path, cached(), SOURCE), question("down", log=log))
        assert said[0].failed and counts["num_cache_misses"] == 1
    assert asked(tmp_path) == ["down", "down"]


@pytest.mark.parametrize(
    ("judge", "changed"),
    [
        ({}, {}),
        ({"judge": python("Judge", retries=9, timeout_s=3.0, concurrency=1, batch_size=2, threads=1)}, {}),
        ({"version": "2"}, None),
        ({"judge": python("Judge", args={"tone": 0})}, None),
        ({}, {"prompt": "Ask:"}),
        ({}, {"prompt": [{"role": "user", "content": "Say:"}]}),
        ({}, {"up": True}),
        ({}, {"completions": ("bb", "a")}),
    ],
)
def test_what_an_answer_depends_on(judge: dict[str, Any], changed: dict[str, Any] | None, tmp_path: Path) -> None:
    """Only how a judge is called may differ between an answer and the question it is given for."""
    log = str(tmp_path / "asked.txt")
    ask(caller_of(tmp_path, cached(), SOURCE), question("a", "bb", log=log))
    completions = (changed or {}).pop("completions", ("a", "bb"))
    _, counts = ask(caller_of(tmp_path, cached(**judge)), question(*completions, log=log, **(changed or {})))
    is_the_same = changed == {} and completions == ("a", "bb") and "version" not in judge
    assert counts["num_cache_hits"] == is_the_same


def test_another_text_of_the_file_is_another_judge(tmp_path: Path) -> None:
    log = str(tmp_path / "asked.txt")
    ask(caller_of(tmp_path, cached(), SOURCE), question("a", log=log))
    (said,), counts = ask(caller_of(tmp_path, cached(), SOURCE.replace("/ 3", "/ 4")), question("a", log=log))
    assert (brief(said), counts["num_cache_hits"]) == ([0.25], 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/other.py").write_text(SOURCE)
    moved = {"type": "python", "target": "elsewhere/other.py:Judge"}
    (said,), counts = ask(caller_of(tmp_path, cached(judge=moved)), question("a", log=log))
    assert (brief(said), counts["num_cache_hits"]) == ([1 / 3], 1), "the same text in another place"
    moved["target"] = "elsewhere/other.py:Compare"
    assert ask(caller_of(tmp_path, cached(judge=moved)), question("a", "b", log=log))[1]["num_cache_hits"] == 0
    embedded = {"type": "reward_model", "path": "embedded:reward"}
    by_name, by_path = (
        fingerprint(make_spec(load_judges({"judge": {**embedded, **place}}).judge, field="judge", base_dir=tmp_path))
        for place in ({}, {"path": str(Path(online_dpo.__file__).parent / "embedded/reward")})
    )
    assert by_name == by_path


def test_what_was_paid_before_a_kill_is_kept(tmp_path: Path) -> None:
    class Slow:
        async def judge(self, questions: Any) -> Any:
            if questions[0].completions[0] == "never":
                await asyncio.sleep(600)
            return [[q.score(0, 1.0)] for q in questions]

    caller = caller_of(tmp_path, cached(judge=python("Judge", batch_size=1)), SOURCE)
    caller.inner[0].judge = Slow()
    questions = [question(text, name=text) for text in ("one", "two", "never")]

    async def killed() -> None:
        task = asyncio.create_task(caller.ask(questions))
        while sqlite3.connect(tmp_path / "cache/v.sqlite").execute("SELECT count(*) FROM verdicts").fetchone()[0] < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(killed())
    _, counts = ask(caller_of(tmp_path, cached(judge=python("Judge", batch_size=1))), *questions[:2])
    assert (counts["num_cache_hits"], counts["num_judge_calls"]) == (2, 0)


def test_several_processes_share_a_file(tmp_path: Path) -> None:
    """Each writes its own entries and one that all have; none is lost, and the first answer to that one stays."""
    program = """
import sys
from pathlib import Path
from judges.outer.cache import VerdictStore
from online_dpo.types import Verdict
store, me = VerdictStore(Path(sys.argv[1]), field="judge.path"), int(sys.argv[2])
for i in range(40):
    store.put({f"{me}-{i}": [Verdict(prompt_id="x", first=0, score=me + i / 7)]})
    store.put({f"all-{i}": [Verdict(prompt_id="x", first=0, score=float(me))]})
    assert store.get([f"{me}-{i}"])[f"{me}-{i}"][0].score == me + i / 7
"""
    path = tmp_path / "shared.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), str(n)]) for n in range(3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    store = VerdictStore(path, field="judge.path")
    names = [f"{me}-{i}" for me in range(3) for i in range(40)] + [f"all-{i}" for i in range(40)]
    assert len(store.get(names)) == 160
    before = store.get(["all-0"])
    store.put({"all-0": [Verdict(prompt_id="", first=0, score=99.0)]})
    assert store.get(["all-0"]) == before


def test_a_path_that_is_no_cache_is_refused_and_a_cache_that_breaks_loses_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/v.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(JudgeError, match=r"^judge\.path is .*, which cannot be used as a verdict cache: "):
        caller_of(tmp_path, cached(), SOURCE)
    (tmp_path / "cache/v.sqlite").unlink()
    caller = caller_of(tmp_path, cached(), SOURCE)
    assert isinstance(caller.judge, Cached)
    caller.judge._store._connection.close()
    (said,), counts = ask(caller, question("a", log=str(tmp_path / "asked.txt")))
    assert (brief(said), counts["num_cache_errors"]) == ([1 / 3], 2)


def test_a_host_counts_hits(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    section = load_judges({"judge": cached()}).judge
    metadata = {"log": str(tmp_path / "asked.txt")}
    shard = Shard(index=0, prompts=(Prompt(prompt_id="p", token_ids=(1,), text="Say:", metadata=metadata),))
    hits = []
    for _ in range(2):
        host = JudgeHost(make_spec(section, field="judge", base_dir=tmp_path))
        judged = asyncio.run(host.judge_shard(shard, answers("p", ["a", "bb"])))
        hits.append((judged.counters["num_cache_hits"], judged.counters["num_judge_calls"]))
    assert hits == [(0, 1), (1, 0)]


MALFORMED = [
    "", "{}", "null", "7", "[1]", "[[0]]", "[" * 100_000, b"\xff\xfe[[", '[[0, null, "5", null, null, null, null]]',
    "[[0, null, 1e999, null, null, null, null]]", "[[0, null, NaN, null, null, null, null]]",
    f"[[0, null, {'9' * 400}, null, null, null, null]]", "[[true, null, 1.0, null, null, null, null]]",
    '[["0", null, 1.0, null, null, null, null]]', "[[0, null, null, null, 5, null, null]]",
    '[[0, null, null, null, "x", "no such kind", null]]', "[[7, null, 1.0, null, null, null, null]]",
    "[[0, null, 1.0, null, null, null, null], [0, null, 2.0, null, null, null, null]]", "[]",
    "[[0, null, true, null, null, null, null]]", '[[0, null, null, null, "down", "failed", null]]',
]  # fmt: skip


def test_a_malformed_entry_costs_one_call_and_no_other_entry(tmp_path: Path) -> None:
    """It is counted and asked again, and the new answer takes its place."""
    log = str(tmp_path / "asked.txt")
    questions = [question(f"{i}", name=str(i), log=log) for i in range(len(MALFORMED) + 3)]
    right, _ = ask(caller_of(tmp_path, cached(), SOURCE), *questions)
    file = sqlite3.connect(tmp_path / "cache/v.sqlite", isolation_level=None)
    keys = [key for (key,) in file.execute("SELECT key FROM verdicts ORDER BY rowid")]
    for key, said in zip(keys, MALFORMED, strict=False):
        file.execute("UPDATE verdicts SET said = ? WHERE key = ?", (said, key))
    said, counts = ask(caller_of(tmp_path, cached()), *questions)
    assert said == right and "num_cache_errors" not in counts
    assert (counts["num_cache_malformed"], counts["num_cache_hits"]) == (len(MALFORMED), 3)
    _, counts = ask(caller_of(tmp_path, cached()), *questions)
    assert counts["num_cache_hits"] == len(questions) and "num_cache_malformed" not in counts
