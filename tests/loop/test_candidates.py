"""Answers of further writers in whole rounds: what joins what, what is counted, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from candidates_kit import COLUMN, OWN, asks, run_with, short_word, stages_of
from crashing_disk import EVERY, instants
from judge_servers import Answer, completion, serve
from kill_kit import WORK, Camera, go_on_and_compare, restore
from loop_kit import EOS, FakeGenerator, by_text, shuffled
from loop_runs import PlainTokenizer, Run, comparable, records

from online_dpo.commands.preparing.fork_stages import is_taken
from online_dpo.errors import DataError, JudgingStopped
from online_dpo.reports.page.answers.cards import card_of, outcome_of, read_answers
from online_dpo.store.candidates import CandidateCommits, candidates_counted
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import Completion, Labelled, Pair, Prompt, group_by_prompt


def rounds_of(run: Run) -> list[dict[str, Any]]:
    return [record for record in records(run.path) if record["kind"] == "round_done"]


def read(run: Run, index: int = 0) -> tuple[list[Completion], list[Pair], dict[str, Prompt]]:
    """What the judge saw, the pairs and the prompts of a round."""
    with RunStore.read(run.path) as store:
        part = store.round(index)
        shards = range(len(part.names("completions/")))
        seen = [c for shard in shards for c in ShardCommits(part).completions(shard)]
        prompts = {prompt.prompt_id: prompt for prompt in part.get_records("prompts", Prompt)}
        return seen, part.get_records("pairs", Pair), prompts


def test_candidates_join_the_samples_and_leave_their_figures_alone(tmp_path: Path) -> None:
    """Would catch a candidate that passes for a sample: in length, diversity, log-probs, reward or version checks."""
    plain = Run.of(tmp_path, "plain", prompts__per_round=5)
    plain.go_on()
    with serve(short_word) as server:
        run = run_with(
            tmp_path, COLUMN, OWN, asks(server, "teacher", name="t"), asks(server, "revise", name="r"),
            prompts__per_round=5,
        )  # fmt: skip
        tape = run.go_on(stages_of(run)).tape
        asked = [body["messages"] for body in server.requests]
    seen, pairs, prompts = read(run)
    first, without = rounds_of(run)[0], rounds_of(plain)[0]
    # The policy's own figures are those of a run without candidates, to the last bit.
    names = ("length_mean", "eos_rate", "distinct_1", "self_bleu", "duplicate_rate", "sampler_logp_mean", "reward")
    assert {name: first[name] for name in names} == {name: without[name] for name in names}
    # All answers of a prompt stand together, samples first, then the writers in the order of the config.
    sources = [None, None, None, "column", "own", "t", "r"]
    for name, group in group_by_prompt(seen).items():
        assert [c.sample_index for c in group] == [i for i in range(7) if not (i == 3 and name == "p5")]
        assert [c.source for c in group] == [sources[c.sample_index] for c in group]
    assert [c.prompt_id for c in seen] == sorted((c.prompt_id for c in seen), key=list(prompts).index)
    # Written text is tokenised after its prompt and ends; the policy's revision has the tokens that it sampled.
    tokens = PlainTokenizer()
    for answer in (c for c in seen if c.source in ("column", "t", "r")):
        assert answer.token_ids == (*tokens(answer.text)["input_ids"], EOS)
        assert (answer.finish_reason, answer.sampler_logps, answer.policy_version, answer.seed) == ("stop", *[None] * 3)
    own = [c for c in seen if c.source == "own"]
    assert all(c.text == " ".join(f"w{token}" for token in c.token_ids) for c in own)
    assert {c.finish_reason for c in own} == {"stop", "length"}
    assert len(tape.calls("sample")) == 2 * 3 * 3 + 3, (
        "samples, critiques and revisions of three shards, three evaluations"
    )
    # A teacher is asked with the prompt; who revises, with the answer, then with the critique.
    some = next(iter(prompts.values()))
    sample = next(c for c in seen if c.prompt_id == some.prompt_id)
    assert [m["content"] for m in asked[-1]][0::2] and any(m[-1]["content"] == some.text for m in asked)
    assert any([m["content"] for m in turns[:2]] == [some.text, sample.text] and len(turns) == 3 for turns in asked)
    assert sum(len(turns) == 5 for turns in asked) == 10 == sum(len(turns) == 3 for turns in asked)
    # The judge sees all of them, and a strategy pairs them like others.
    with RunStore.read(run.path) as store:
        scored = {
            (v.prompt_id, v.first)
            for shard in range(3)
            for v in ShardCommits(store.round(0)).verdicts(shard, Asked()).verdicts
        }
    assert scored == {(c.prompt_id, c.sample_index) for c in seen}
    for pair in pairs:
        scores = {c.sample_index: by_text(c.text) for c in seen if c.prompt_id == pair.prompt.prompt_id}
        assert scores[pair.chosen.sample_index] == max(scores.values())
        assert pair.margin == pytest.approx(max(scores.values()) - min(scores.values()))
    sides = Counter(answer.source for pair in pairs for answer in (pair.chosen, pair.rejected))
    assert first["on_policy_share"] == sides[None] / sides.total() and 0 < sides[None] < sides.total()
    chosen = Counter(pair.chosen.source for pair in pairs)
    assert {s: f["num_chosen"] for s, f in first["candidates"].items()} == {
        s: chosen[s] for s in ("column", "own", "t", "r")
    }
    # The page shows who wrote what.
    with RunStore.read(run.path) as store:
        answers = read_answers(store.round(0))
    card = card_of(answers, some.prompt_id, outcome_of(run.config, answers, some.prompt_id))
    assert {answer["i"]: answer.get("w") for answer in card["a"]}.items() <= dict(enumerate(sources)).items()
    assert all(("g" in answer) == ("w" not in answer) for answer in card["a"])
    lacking = int("p5" in prompts)
    assert first["candidates"]["column"]["outcomes"] == {"kept": 5 - lacking, **({"missing": 1} if lacking else {})}
    assert first["candidates"]["t"]["counters"]["num_prompt_tokens"] == 30 * 5


def test_a_run_without_candidates_has_no_column_or_figure_of_them(tmp_path: Path) -> None:
    run = Run.of(tmp_path)
    run.go_on()
    assert "candidates" not in rounds_of(run)[0] and rounds_of(run)[0]["on_policy_share"] == 1.0
    import pyarrow.parquet as pq

    tables = [pq.read_schema(file).names for file in run.path.rglob("*.parquet")]
    assert tables and not [name for names in tables for name in names if "source" in name]


@EVERY
def test_a_kill_at_any_change_of_the_disk_asks_nothing_twice(every: bool, tmp_path: Path) -> None:
    """Would catch an answer that is paid for again, tokens that differ, and a push that is forgotten for a revision."""
    with serve(short_word) as server:
        writers = (OWN, asks(server, "teacher", budget={"calls": 1000}))
        run = run_with(tmp_path, *writers, evaluation={}, run__rounds=1, prompts__per_round=3)
        with Camera(run.path) as camera:
            work = run.go_on(stages_of(run)).tape.calls(*WORK)
        assert Counter(call.split()[0] for call in work)["write"] == 2 and len(server.requests) == 3
        expected = comparable(run.path)
        for number in instants(camera.picture_kinds, every=every):
            killed = run.at(tmp_path / "killed")
            restore(killed.path, {**camera.pictures[number], "lock": b""})
            go_on_and_compare(killed, work, expected, f"killed at change {number} of {len(camera.pictures)}", stages_of)
            shutil.rmtree(killed.path)


def test_a_writer_that_fails_leaves_its_prompt_to_the_samples(tmp_path: Path) -> None:
    """Refused, broken, empty, too long and control tokens: each is counted, and every prompt is paired all the same."""
    answers = {
        "train 9": Answer(status=500), "train 6": Answer(completion("")), "train 3": Answer(completion("tttttt")),
        "train 1": Answer(completion("no", finish="content_filter")),
    }  # fmt: skip
    with serve(lambda body, _: answers.get(body["messages"][-1]["content"], Answer(completion("yes")))) as server:
        run = run_with(tmp_path, asks(server, "teacher"), evaluation={})
        run.go_on(stages_of(run))
    first, second = rounds_of(run)
    found = first["candidates"]["teacher"]
    assert found["outcomes"] == {"failed": 1, "empty": 1, "too_long": 1, "refused": 1}
    assert found["reasons"] == {"status N": 1} and found["counters"]["num_request_retries"] == 1
    assert first["outcomes"]["paired"] == 4 and first["on_policy_share"] == 1.0
    [told] = first["warnings"]
    assert told.endswith("none of the 4 answers that were wanted of it (empty 1, failed 1, refused 1, too_long 1)")
    assert second["candidates"]["teacher"]["outcomes"] == {"kept": 4}


def test_a_budget_that_is_used_up_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    with serve(short_word) as server:
        run = run_with(tmp_path, asks(server, "teacher", budget={"calls": 6}), evaluation={}, run__rounds=4)
        run.go_on(stages_of(run))
        assert len(server.requests) == 6
    rounds = rounds_of(run)
    assert [r["candidates"]["teacher"]["outcomes"] for r in rounds] == [
        {"kept": 4}, {"kept": 2, "over_budget": 2}, {"over_budget": 4}, {"over_budget": 4},
    ]  # fmt: skip
    told = [warning for r in rounds for warning in r["warnings"] if "budget" in warning]
    assert told == [
        "the budget of the writer teacher is used up: 2 of 4 answers were not asked for, and the run goes on without "
        "it; raise its budget and resume to have it again"
    ]


def test_an_endpoint_that_cannot_be_used_stops_the_run_and_what_was_paid_for_is_kept(tmp_path: Path) -> None:
    """A key that is revoked in the middle of a shard; the continuation asks for the rest, and ends as if it had not."""
    with serve(short_word) as server:
        whole = run_with(tmp_path, asks(server, "teacher", concurrency=1), evaluation={}, name="whole")
        whole.go_on(stages_of(whole))
    refused = {"train 3", "train 1"}
    asked: Counter[str] = Counter()

    def handler(body: dict[str, Any], before: int) -> Answer:
        text = body["messages"][-1]["content"]
        if text in refused:
            return Answer(status=401)
        asked[text] += 1
        return short_word(body, before)

    with serve(handler) as server:
        section = asks(server, "teacher", concurrency=1)
        run = run_with(tmp_path, section, evaluation={}, generator={"shard_prompts": 4})
        with pytest.raises(
            JudgingStopped, match=r"round 1: candidates\.0\.endpoint\.base_url .* refused the key .* resume"
        ):
            run.go_on(stages_of(run))
        with RunStore.read(run.path) as store:
            kept = CandidateCommits(store.unfinished_rounds()[0]).parts("teacher", 0)
            assert {c.prompt_id for c in kept.completions} == {"p9", "p6"} == set(kept.prompt_ids)
            assert candidates_counted(store, ["teacher"])["candidates/teacher"]["num_charged_calls"] == 2
        refused.clear()
        run.go_on(stages_of(run))
    assert set(asked.values()) == {1} and len(asked) == 8
    assert [c.text for c in read(run)[0]] == [c.text for c in read(whole)[0]]
    assert not list(run.path.rglob("candidate-parts*/*"))


@pytest.mark.parametrize("is_judged", [False, True], ids=["no judge", "beside a judge"])
def test_an_answer_that_is_assumed_to_be_better_is_chosen(is_judged: bool, tmp_path: Path) -> None:
    column = {**COLUMN, "assume": "better"}
    more: dict[str, Any] = {} if is_judged else {"judge": None, "sampling": {"num_samples": 1, "max_tokens": 5}}
    run = run_with(tmp_path, column, evaluation={}, prompts__per_round=10, run__rounds=1, **more)
    tape = run.go_on(stages_of(run)).tape
    seen, pairs, _ = read(run)
    by_prompt = {pair.prompt.prompt_id: pair for pair in pairs}
    for name, pair in by_prompt.items():
        if name == "p5":
            continue
        assert (pair.chosen.source, pair.rejected.source) == ("column", None)
        assert (pair.margin, pair.probability) == (None, None), "nobody said by how much it is better"
        samples = {c.sample_index: by_text(c.text) for c in seen if c.prompt_id == name and c.source is None}
        assert pair.rejected.sample_index == (min(samples, key=lambda i: samples[i]) if is_judged else 0)
    [only] = rounds_of(run)
    assert only["num_assumed_pairs"] == 9 and only["candidates"]["column"]["num_chosen"] == 9
    if is_judged:
        assert by_prompt["p5"].margin is not None and only["outcomes"]["paired"] == 10
        assert only["on_policy_share"] == 11 / 20
        assert "column" not in {c.source for c in judged_by(run)}
    else:
        assert not tape.calls("judge") and only["judges"] == {} and only["reward"] is None
        assert {name: n for name, n in only["outcomes"].items() if n} == {"paired": 9, "too_few_completions": 1}
        assert only["on_policy_share"] == 0.5


@pytest.mark.parametrize("overlap", [0, 1])
def test_neither_the_order_of_calls_nor_the_number_of_engines_changes_a_byte(overlap: int, tmp_path: Path) -> None:
    """Would catch a revision by another policy than the one that sampled, and an order in which writers must answer."""
    with serve(short_word) as server:
        writers = (OWN, COLUMN, asks(server, "teacher"), asks(server, "revise", name="r", num_samples=2))
        options: dict[str, Any] = {"overlap": overlap, "run__rounds": 3, "evaluation": {}}
        runs = [run_with(tmp_path, *writers, name=name, **options) for name in ("plain", "shuffled")]
        runs[0].go_on(stages_of(runs[0]))
        engines = [FakeGenerator(), FakeGenerator()]
        listener = runs[1].go_on(stages_of(runs[1], order=shuffled(overlap), generators=engines))
    assert comparable(runs[1].path) == comparable(runs[0].path)
    sampled = [call.split()[1] for call in listener.tape.calls("sample")]
    assert Counter(sampled) == ({"v0": 12, "v1": 6} if overlap else {"v0": 6, "v1": 6, "v2": 6})
    assert rounds_of(runs[0])[2]["on_policy_share"] < 1.0


def test_a_column_that_can_give_nothing_is_said(tmp_path: Path) -> None:
    """Before the run where the first row shows it, after each round where the others do."""
    for rows, message in (
        ([{"prompt": "x", "answer": 7}], "which is int 7 in a row of the prompts; a reference answer is text"),
        (
            [{"prompt": "x", "reply": "y"}],
            r"candidates.0.column is answer, and no prompt has such a column .*reply.*; name",
        ),
    ):
        path = tmp_path / "other.jsonl"
        path.write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for row in rows for i in range(9)))
        run = run_with(tmp_path, COLUMN, name="refused", prompts__source=str(path))
        with pytest.raises(DataError, match=message):
            run.go_on()
    # A mixture may have it in one data set alone; then the answers of the others are missing, and counted.
    (tmp_path / "with.jsonl").write_text("".join(f'{{"prompt": "a {i}", "answer": "yes"}}\n' for i in range(9)))
    (tmp_path / "without.jsonl").write_text("".join(f'{{"prompt": "b {i}"}}\n' for i in range(9)))
    sources = [{"source": str(tmp_path / f"{name}.jsonl"), "weight": 1} for name in ("without", "with")]
    mixed = run_with(
        tmp_path, COLUMN, name="mixed", evaluation={}, run__rounds=1, prompts={"sources": sources, "per_round": 4}
    )
    mixed.go_on(stages_of(mixed))
    assert rounds_of(mixed)[0]["candidates"]["column"]["outcomes"] == {"kept": 2, "missing": 2}
    blank = run_with(tmp_path, {**COLUMN, "separator": " so much "}, evaluation={}, run__rounds=1)
    blank.go_on(stages_of(blank))
    [only] = rounds_of(blank)
    assert only["warnings"] == ["the writer column gave none of the 4 answers that were wanted of it (too_long 4)"]


def test_labels_count_candidates_as_desirable_or_not(tmp_path: Path) -> None:
    labels = {"objective": {"type": "kto"}, "pairing": {"labels": {"type": "threshold", "value": 2.0}}}
    run = run_with(tmp_path, COLUMN, evaluation={}, run__rounds=1, prompts__per_round=6, **labels)
    run.go_on(stages_of(run))
    with RunStore.read(run.path) as store:
        items = store.round(0).get_records("labelled", Labelled)
    [only] = rounds_of(run)
    found, of_column = only["candidates"]["column"], [item for item in items if item.completion.source == "column"]
    assert 0 < len(of_column) == found["num_candidates"] == found["num_chosen"] + found["num_rejected"]
    assert found["num_chosen"] == sum(item.desirable for item in of_column)
    assert only["on_policy_share"] == 1 - len(of_column) / len(items)


def test_a_fork_takes_what_was_paid_for() -> None:
    names = ("completions/shard-00000", "candidates-teacher/shard-00000", "candidate-parts-teacher/shard-00001-000")
    assert all(is_taken(name, "judge", changed=("judge.path",)) for name in names)
    assert not any(is_taken(name, "sample", changed=("candidates.0.temperature",)) for name in names)


def judged_by(run: Run) -> list[Completion]:
    """What the judge was asked about in the first round."""
    with RunStore.read(run.path) as store:
        commits = ShardCommits(store.round(0))
        found = []
        for shard in range(len(store.round(0).names("completions/"))):
            known = {(v.prompt_id, v.first) for v in commits.verdicts(shard, Asked()).verdicts}
            found += [c for c in commits.completions(shard) if (c.prompt_id, c.sample_index) in known]
        return found
