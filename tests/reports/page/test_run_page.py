"""A run's page against the run's own figures; also of runs that are damaged, under way, offline or labelled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from loop_runs import Kill, Run
from page_kit import GOLD, Page, column, page_of, played
from people_kit import HUMAN, answer

from online_dpo.commands.status import read_status
from online_dpo.reports.page.answers.cards import RoundAnswers, _verdict, card_of
from online_dpo.reports.page.charts import number
from online_dpo.reports.result_reading import read_initial, read_rounds
from online_dpo.reports.round_tables import rounds_table
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import Completion, Demonstration, Labelled, Pair, Prompt, Verdict, text_of_turns


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return played(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return page_of(run.path)


def test_the_figures_are_those_of_the_run(run: Run, page: Page) -> None:
    with RunStore.read(run.path) as store:
        lines = store.metrics()
    results, initial = read_rounds(lines), read_initial(lines)
    last = results[-1].evaluation["heldout"]
    gain = last.judges["gold"].gain
    assert gain is not None and last.kl_initial is not None
    assert "After round 2 of 2, " in page.text
    assert f"gold {gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]" in page.text
    assert f"KL to the initial policy {last.kl_initial:.3g} nats" in page.text
    rewards = [initial["heldout"], *(r.evaluation["heldout"] for r in results)]
    shown = column(page.tables["chart-reward"], "heldout")
    assert [cell.split(" ")[0] for cell in shown] == [number(e.judges["reward"].mean or 0.0) for e in rewards]
    assert column(page.tables["chart-loss"], "loss") == [number(r.learning.loss or 0.0) for r in results]
    kl = column(page.tables["chart-kl"], "to the reference, heldout")
    assert kl[1:] == [number(r.evaluation["heldout"].kl_reference or 0.0) for r in results]
    given = column(page.tables["chart-yield"], "paired")
    assert given == [number(r.pairs.outcomes["paired"]) for r in results]
    for stage, seconds in results[0].seconds.items():
        assert column(page.tables["chart-seconds"], stage)[0] == number(seconds)


def test_the_answers_are_those_that_were_committed(run: Run, page: Page) -> None:
    with RunStore.read(run.path) as store:
        for shown in page.data["rounds"]:
            part = store.round(shown["round"])
            pairs = {pair.prompt.prompt_id: pair for pair in part.get_records("pairs", Pair)}
            shards = part.names("completions/")
            texts = {(c.prompt_id, c.sample_index): c.text for n in shards for c in part.get_records(n, Completion)}
            assert Counter(card["o"] for card in shown["cards"]) == shown["outcomes"]
            assert len(shown["cards"]) == shown["num_prompts"] == 4 and shown["num_completions"] == 12
            for card in shown["cards"]:
                assert {(card["id"], a["i"]): a["t"] for a in card["a"]}.items() <= texts.items()
                assert (card["o"] == "paired") == (card["id"] in pairs)
                for found in card.get("p", ()):
                    pair = pairs[card["id"]]
                    assert (found["c"], found["r"]) == (pair.chosen.sample_index, pair.rejected.sample_index)
                    scores = {v["a"]: v["s"] for v in card["s"]}
                    assert found["m"] == pytest.approx(scores[found["c"]] - scores[found["r"]], rel=1e-4)
                    assert pair.chosen.sampler_logps is not None and pair.chosen_ref_logps is not None
                    ratio = sum(pair.chosen.sampler_logps) - pair.chosen_ref_logps
                    assert found["cr"] == pytest.approx(ratio, rel=1e-4, abs=1e-9)


def test_the_same_prompts_stand_side_by_side_with_their_scores(run: Run, page: Page) -> None:
    [found] = page.data["sets"]
    assert (found["set"], found["versions"], found["num_prompts"]) == ("heldout", [0, 1, 2], 2)
    assert [row["prompt"] for row in found["rows"]] == ["heldout 0", "heldout 1"]
    with RunStore.read(run.path) as store:
        part = store.round(1)
        texts = {
            c.prompt_id: c.text for c in part.get_records("evaluation/heldout/completions/shard-00000", Completion)
        }
        scores = part.get_json("evaluation/heldout/summary")["scores"]
    for row in found["rows"]:
        assert row["answers"].keys() == {"0", "1", "2"}
        assert row["answers"]["2"]["t"] == texts[row["id"]]
        assert row["answers"]["2"]["s"] == pytest.approx({j: s[row["id"]] for j, s in scores.items()}, rel=1e-4)


def test_a_page_loads_nothing_and_has_no_path_of_the_machine(run: Run, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "style", "onclick"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), f"<{tag} {name}={value}>"
    [policy] = [a["content"] or "" for t, a in page.tags if t == "meta" and "Policy" in (a.get("http-equiv") or "")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert str(run.path) not in page.text + json.dumps(page.data)


def test_a_run_under_way_and_one_that_has_only_begun(tmp_path: Path) -> None:
    run = Run.of(tmp_path, evaluation__judges=GOLD)
    begun = 0
    for kill_at in (2, 200, 45):
        (tmp_path / str(kill_at)).mkdir()
        other = run.at(tmp_path / str(kill_at) / "run")
        try:
            events = other.go_on(kill_at=kill_at).events
            assert kill_at == 200 and events[-1].kind == "run_done"
            continue
        except Kill:
            pass
        page = page_of(other.path)
        finished = len(page.data["rounds"])
        assert f"{finished} of 2 rounds are finished." in page.text
        assert ("is under way:" in page.text) or not finished
        begun += finished == 0
        if finished == 0:
            assert "No round is finished yet." in page.text
    assert begun


def test_damage_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = played(tmp_path)
    shard = run.path / "rounds/00000/completions/shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    page = page_of(run.path)
    assert "round 1, shard 1 is left out: rounds/00000/" in page.text and str(run.path) not in page.text
    assert "rounds/00000/completions/shard-00001.parquet does not match the sha256" in page.text
    cards = {card["id"]: card for card in page.data["rounds"][0]["cards"]}
    assert any(card["a"] for card in cards.values()) and len(page.data["rounds"][1]["cards"]) == 4
    (run.path / "rounds/00000/manifest.json").unlink()
    page = page_of(run.path)
    assert "rounds/00000/manifest.json is missing" in page.text
    assert "round 1 has no manifest, though later ones are there" in page.text
    assert [shown["round"] for shown in page.data["rounds"]] == [1]
    metrics = run.path / "metrics.jsonl"
    metrics.write_bytes(b"{broken\n" + metrics.read_bytes())
    page = page_of(run.path)
    assert "metrics.jsonl is damaged: line 1 is not JSON" in page.text
    assert "the figures of round 2 are missing from metrics.jsonl" in page.text
    assert len(page.data["rounds"][0]["cards"]) == 4


def test_a_run_without_samples_shows_the_pairs_of_its_data_set(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nothing: dict[str, Any] = {"prompts": None, "judge": None, "sampling": {}, "evaluation__sets": {}}
    pairs = {"source": str(tmp_path / "pairs.jsonl"), "per_round": 3}
    held_out = {"people": {"source": str(tmp_path / "pairs.jsonl"), "count": 2}}
    run = Run.of(tmp_path, **nothing, pairs=pairs, evaluation__pairs=held_out)
    run.go_on()
    page = page_of(run.path)
    cards = page.data["rounds"][0]["cards"]
    assert page.data["rounds"][0]["outcomes"] == {"from a data set": 3}
    for card in cards:
        assert [a["t"] for a in card["a"]] == [f" yes {card['id'][-1]}", f" no {card['id'][-1]}"]
    assert "the held-out preferences: on people it raised the preferred answer more in" in page.text
    assert (
        page.data["sets"] == [] and "The run has no evaluation set" in page.text and "The run has no judge" in page.text
    )
    assert "chart-preferences" in page.tables and "chart-yield" not in page.tables


def test_fine_tuning_is_told_by_the_loss_of_held_out_demonstrations(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "completion": f" yes {i}"} for i in range(6)]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(tmp_path / "shown.jsonl"), "format": "demonstrations"}
    alone: dict[str, Any] = {"prompts": None, "judge": None, "sampling": {}, "evaluation__sets": {}, "pairs": source}
    sft: dict[str, Any] = {"objective": {"type": "sft"}, "reference": {"type": "fixed"}}
    run = Run.of(tmp_path, **alone, **sft, evaluation__pairs={"kept": {**source, "count": 3}})
    run.go_on()
    page, status = page_of(run.path), read_status(run.path)
    last = status["preferences"][-1]
    words = "more likely" if last["loss_change_high"] < 0 else "less likely" if last["loss_change_low"] > 0 else "about"
    assert f"After round 2, held-out demonstrations are {words}" in page.text
    change = [f"{last[name]:+.3g}" for name in ("loss_change", "loss_change_low", "loss_change_high")]
    assert f"on kept the loss changed by {change[0]} [{change[1]}, {change[2]}] to {last['loss']:.3g} nats" in page.text
    assert f"nats per token, perplexity {last['perplexity']:.3g}" in page.text
    assert [column.header for column in rounds_table(status).columns] == [
        "round",
        "demonstrations",
        "dropped",
        "reward",
    ]
    blind = Run.of(tmp_path, "blind", **alone, **sft)
    blind.go_on()
    assert "no held-out set under evaluation.pairs" in page_of(blind.path).text


def test_a_conversation_is_shown_with_who_says_what() -> None:
    said = [("assistant", "Hello."), ("user", "And now?"), ("assistant", "Bye.")]
    turns = tuple({"role": role, "content": text} for role, text in said)
    prompt = Prompt(prompt_id="p", token_ids=(1,), messages=({"role": "user", "content": "Hi."},))
    completion = Completion(
        prompt_id="p", sample_index=0, token_ids=(4, 5, 6), text=text_of_turns(turns), finish_reason=None,
        sampler_logps=None, policy_version=None, seed=None,
    )  # fmt: skip
    item = Demonstration(prompt=prompt, completion=completion, trained=(True, False, True), turns=turns)
    card = card_of(RoundAnswers(index=0, prompts={"p": prompt}, items={"p": [item]}), "p", "from a data set")
    assert [answer["t"] for answer in card["a"]] == ["assistant: Hello.\n\nuser: And now?\n\nassistant: Bye."]


def test_labelled_answers_are_shown_as_such(tmp_path: Path) -> None:
    labels = {"objective": {"type": "kto"}, "pairing": {"labels": {"type": "quantile", "share": 0.4}}}
    run = played(tmp_path, **labels)
    page = page_of(run.path)
    with RunStore.read(run.path) as store:
        items = store.round(1).get_records("labelled", Labelled)
    wanted = {(i.prompt.prompt_id, i.completion.sample_index, i.desirable) for i in items}
    cards = page.data["rounds"][1]["cards"]
    assert {(card["id"], label["i"], label["d"]) for card in cards for label in card.get("l", ())} == wanted
    assert {card["o"] for card in cards} <= {"labelled", "not labelled"}


def test_a_run_without_evaluation_says_what_cannot_be_told(tmp_path: Path) -> None:
    run = Run.of(tmp_path, evaluation__sets={})
    run.go_on()
    page = page_of(run.path)
    assert "cannot be told: the run has no evaluation set" in page.text and "Reward of the last round" in page.text


def test_what_people_said_stands_with_the_answers(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge=HUMAN, run__rounds=1)
    while run.go_on().events[-1].kind != "run_done":
        assert answer(run.path), "somebody was asked"
    with RunStore.read(run.path) as store:
        commits = ShardCommits(store.round(0))
        votes = [vote for shard in range(2) for vote in commits.verdicts(shard, Asked()).votes]
    page = page_of(run.path)
    cards = page.data["rounds"][0]["cards"]
    [annotator] = {vote.annotator for vote in votes}
    assert column(page.tables["Each person in each round"], "annotator") == [annotator]
    assert column(page.tables["Each person in all rounds"], "votes") == [str(len(votes))]
    assert "people: 12 of 12 questions are settled" in page.text
    shown = [(card["id"], w["n"], w["a"], w["b"], w["o"]) for card in cards for w in card["w"]]
    assert Counter(shown) == Counter((v.prompt_id, v.annotator, v.first, v.second, v.outcome) for v in votes) != {}


def test_what_a_judge_wrote_stands_beside_its_verdict() -> None:
    said = Verdict(prompt_id="p", first=0, second=1, probability=1.0, rationale="A is warmer.")
    assert _verdict("kind", said) == {"j": "kind", "a": 0, "b": 1, "p": 1.0, "y": "A is warmer."}
    silent = Verdict(prompt_id="p", first=0, reason="cannot tell")
    assert _verdict("kind", silent)["y"] == "cannot tell"
