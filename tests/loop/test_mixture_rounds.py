"""Rounds over a mixture of prompts: killed, overlapped and rewound runs, and figures by domain."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from kill_kit import WORK, event_kinds, go_on_and_compare
from loop_kit import BASE, by_text, token_logps, weights_of
from loop_runs import Kill, Run, comparable, records
from rich.console import Console

from online_dpo.commands.status import read_status, show_status
from online_dpo.reports.domains.tables import domain_tables
from online_dpo.reports.page.report import run_page
from online_dpo.reports.page.run_charts import run_charts
from online_dpo.reports.page.run_record import collect_record
from online_dpo.reports.result_reading import read_initial, read_rounds
from online_dpo.statistics.samples import kl_per_completion
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Pair, Prompt, Row, Verdict

GOLD = {"gold": {"type": "python", "target": "none:none"}}


def mixed(folder: Path, name: str = "run", **overrides: Any) -> Run:
    """3 rounds of 4 prompts: three of `maths`, which has 7, and one of `code`, which has 3; an evaluation of both."""
    for file, num_rows in (("maths", 7), ("code", 3), ("held-maths", 3), ("held-code", 2)):
        rows = [{"prompt": f"{file} {i}", "id": f"{file[:4]}{i}"} for i in range(num_rows)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"source": str(folder / "maths.jsonl"), "weight": 3}, {"source": str(folder / "code.jsonl")}]
    held = [
        {"source": str(folder / f"held-{domain}.jsonl"), "domain": domain, "count": count}
        for domain, count in (("maths", 3), ("code", 2))
    ]
    return Run.of(folder, name, **{
        "prompts": {"sources": parts, "per_round": 4},
        "evaluation": {"sets": {"held": {"sources": held}}, "judges": GOLD},
        "run__rounds": 3,
        **overrides,
    })  # fmt: skip


def drawn(path: Path) -> list[list[str]]:
    with RunStore.read(path) as store:
        return [
            [prompt.prompt_id for prompt in store.round(index).get_records("prompts", Prompt)]
            for index in store.finished_rounds()
        ]


@EVERY
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_kill_at_any_event(every: bool, overlap: int, tmp_path: Path) -> None:
    """Would catch a share that is counted anew, or counted twice, where a run goes on."""
    run = mixed(tmp_path, overlap=overlap)
    whole = run.go_on()
    work, expected = whole.tape.calls(*WORK), comparable(run.path)
    for number in instants(event_kinds(whole.events), every=every)[:: 1 if every else 6]:
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):
            killed.go_on(kill_at=5 * number % 17)
        go_on_and_compare(killed, work, expected, f"killed before event {number}")


def test_shares_over_rounds_a_longer_run_and_a_rewound_one(tmp_path: Path) -> None:
    run = mixed(tmp_path, run__rounds=5, run__keep_optimizer="all")
    run.go_on()
    rounds = drawn(run.path)
    assert [Counter(prompt.split("/")[0] for prompt in ids) for ids in rounds] == [{"maths": 3, "code": 1}] * 5
    assert sorted(prompt for ids in rounds for prompt in ids if prompt.startswith("code"))[::2] == [
        "code/code0", "code/code1", "code/code2"
    ]  # fmt: skip
    shorter = mixed(tmp_path, "shorter", run__keep_optimizer="all")
    shorter.go_on()
    run.at(shorter.path).go_on()
    assert drawn(shorter.path) == rounds
    expected = comparable(run.path)
    RunStore.rewind(run.path, num_kept=2)
    run.go_on()
    assert {name: data for name, data in comparable(run.path).items() if not name.startswith("set-aside")} == expected
    figures = records(run.path)[-1]
    assert figures["prompt_sources"]["code"] == {
        "num_prompts": 1, "num_drawn": 5, "epochs": pytest.approx(5 / 3),
        "num_prompts_too_long": 0, "num_prompts_empty": 0, "num_prompts_duplicate": 0,
    }  # fmt: skip
    assert figures["num_prompts_duplicate"] == 0 and "num_prompts_contaminated" not in figures


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_figures_by_domain_are_those_of_the_committed_samples(tmp_path: Path) -> None:
    run = mixed(tmp_path)
    run.go_on()
    with RunStore.read(run.path) as store:
        results, initial = read_rounds(store.metrics()), read_initial(store.metrics())["held"]
        lines = [line for line in store.metrics() if line["kind"] == "round_done"]
        part = store.round(1)
        completions = [c for i in range(2) for c in part.get_records(f"completions/shard-{i:05d}", Completion)]
        verdicts = [v for i in range(2) for v in part.get_records(f"verdicts/shard-{i:05d}", Verdict)]
        pairs = part.get_records("pairs", Pair)
        fresh = part.get_records("evaluation/held/completions/shard-00000", Completion)
        fresh += part.get_records("evaluation/held/completions/shard-00001", Completion)
        fresh += part.get_records("evaluation/held/completions/shard-00002", Completion)
        asked = {p.prompt_id: p for p in store.round(0).get_records("evaluation-initial/held/prompts", Prompt)}
        before = [
            c
            for i in range(3)
            for c in store.round(0).get_records(f"evaluation-initial/held/completions/shard-{i:05d}", Completion)
        ]
        policy = weights_of(Adapter.from_files(2, part.get_files("adapter")))
    assert [list(line["domains"]) for line in lines] == [["code", "maths"]] * 3
    for domain, num_prompts in (("maths", 3), ("code", 1)):
        found, own = results[1].domains[domain], [c for c in completions if c.prompt_id.startswith(domain)]
        used = [pair.prompt.prompt_id for pair in pairs if pair.prompt.prompt_id.startswith(domain)]
        assert (found.sampling.num_prompts, found.sampling.num_completions) == (num_prompts, 3 * num_prompts)
        assert (found.num_items, found.num_prompts_used) == (len(used), len(set(used)))
        assert found.sampling.length_mean == mean([len(c.token_ids) for c in own])
        assert found.sampling.num_truncated_completions == sum(c.finish_reason == "length" for c in own)
        assert found.reward == mean([v.score for v in verdicts if v.prompt_id.startswith(domain)])
    assert results[1].judging.reward == pytest.approx(
        (3 * results[1].domains["maths"].reward + results[1].domains["code"].reward) / 4
    )
    for domain, num_prompts in (("maths", 3), ("code", 2)):
        evaluated = results[1].evaluation["held"].domains[domain]
        own = [c for c in fresh if c.prompt_id.startswith(domain)]
        start = {c.prompt_id: c for c in before}
        assert len(own) == evaluated.sampling.num_prompts == evaluated.sampling.num_completions == num_prompts
        rows = [Row(prompt_ids=asked[c.prompt_id].token_ids, completion_ids=c.token_ids) for c in own]
        kls = [kl_per_completion(token_logps(row, policy), token_logps(row, BASE))[0] for row in rows]
        assert evaluated.kl_initial == pytest.approx(mean(kls)) and evaluated.kl_initial > 0
        assert evaluated.entropy == pytest.approx(mean([-x for row in rows for x in token_logps(row, policy)]))
        assert evaluated.sampling.length_mean == mean([len(c.token_ids) for c in own])
        for judge, text in (("reward", "{}"), ("gold", "gold {}")):
            said = evaluated.judges[judge]
            scores = [by_text(text.format(c.text)) for c in own]
            gains = [s - by_text(text.format(start[c.prompt_id].text)) for s, c in zip(scores, own, strict=True)]
            assert said.mean == pytest.approx(mean(scores)) and said.num_abstained == 0
            assert said.gain is not None and said.gain.value == pytest.approx(mean(gains))
            assert said.gain.low <= said.gain.value <= said.gain.high
            assert said.win_rate is not None and said.win_rate.value == mean([(g > 0) + (g == 0) / 2 for g in gains])
            assert initial.domains[domain].judges[judge].gain is None
    assert results[1].extra == {} and all(found.extra == {} for found in results[1].evaluation["held"].domains.values())


def test_status_and_the_report_show_domains_where_there_are_several(tmp_path: Path) -> None:
    rows = [{"prompt": f"held {i}", "id": f"h{i}", "topic": "[red]\x1b[31m" if i else "sea"} for i in range(3)]
    (tmp_path / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"held": {"source": str(tmp_path / "topics.jsonl"), "count": 3, "domain_field": "topic"}}
    run = mixed(tmp_path, evaluation={"sets": sets, "judges": GOLD})
    run.go_on()
    console = Console(width=160, file=io.StringIO())
    show_status(read_status(run.path), console, as_json=False)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "round 3 by domain" in shown and "fresh samples after round 3, by domain" in shown
    assert re.search(r"^ code +1 +(0|100) % ", shown, re.MULTILINE) and re.search(r"^ maths +3 ", shown, re.MULTILINE)
    assert re.search(r"^ held +\[red\]\\x1b\[31m +2 ", shown, re.MULTILINE) and "\x1b" not in shown
    with RunStore.read(run.path) as store:
        record = collect_record(store)
        charts = {chart.key: chart for chart in run_charts(record.results, record.initial)}
        page = run_page(store)
    assert [series.name for series in charts["domains-reward"].series] == ["code", "maths"]
    first = charts["domains-reward"].series[1].points[0]
    assert (first.x, first.y) == (1, record.results[0].domains["maths"].reward)
    assert [point.x for point in charts["domains-held-judge-gold"].series[1].points] == [0, 1, 2, 3]
    assert "Reward by domain" in page and "gold on held by domain" in page and "KL on held by domain" in page
    alone = Run.of(tmp_path, "alone")
    alone.go_on()
    with RunStore.read(alone.path) as store:
        assert "by domain" not in run_page(store)
        assert list(domain_tables([r for r in records(alone.path) if r["kind"] == "round_done"])) == []


def test_a_domain_column_of_training_data_changes_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    run = Run.of(tmp_path)
    rows = [{"prompt": f"train {i}", "id": i, "domain": "x"} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.go_on()
    for record in records(run.path):
        assert not {"domains", "prompt_sources", "num_prompts_duplicate", "num_prompts_contaminated"} & record.keys()
    with RunStore.read(run.path) as store:
        assert set(store.round(0).get_json("draw")) == {"cursor", "too_long", "empty"}
