"""Runs with a view: thoughts are trained on and judged by nobody, and a run that is killed ends with the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import instants
from kill_kit import WORK, event_kinds, go_on_and_compare
from loop_kit import FakeStages
from loop_runs import Kill, PlainTokenizer, Run, comparable

from online_dpo.pairing.answers import for_judges, read_answer
from online_dpo.reports.page.answers.sampling import sample_round
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import ShardCommits
from online_dpo.types import Completion, Judged, Pair, Shard

VIEW = {"tags": [{"open": "w1", "close": "w2"}]}  # the fake texts are words such as w17


class Stages(FakeStages):
    """The usual fake judge, behind a host's view."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.view = config.view
        self.texts: list[str] = []

    def judged(self, judge: str, shard: Shard, completions: Sequence[Completion], again: bool) -> Judged:
        seen, settled = for_judges(completions, self.view)
        self.texts += [completion.text for completion in seen]
        found = super().judged(judge, shard, seen, again)
        said = (*found.verdicts, *(verdict for verdicts in settled.values() for verdict in verdicts))
        return Judged(verdicts=said, counters={"num_unclosed_completions": len(completions) - len(seen)})


@pytest.fixture(autouse=True)
def decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Any, ids: Sequence[int], **_: Any) -> str:
        return " ".join(f"w{token}" for token in ids)

    monkeypatch.setattr(PlainTokenizer, "decode", decode, raising=False)
    monkeypatch.setattr(PlainTokenizer, "added_tokens_decoder", {}, raising=False)


def run_of(tmp_path: Path, **options: Any) -> Run:
    judge = {"type": "python", "target": "none:none", "view": {**VIEW, **options}}
    return Run.of(tmp_path, judge=judge, sampling={"num_samples": 6, "max_tokens": 8})


def test_a_kill_at_any_event_changes_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, unclosed="worst")
    stages = Stages(run.config)
    listener = run.go_on(stages)
    work, expected = listener.tape.calls(*WORK), comparable(run.path)
    summaries = [event.data for event in listener.events if event.kind == "round_done"]
    with RunStore.read(run.path) as store:
        part = store.round(0)
        completions = [c for shard in (0, 1) for c in ShardCommits(part).completions(shard)]
        pairs = part.get_records("pairs", Pair)
        sample = sample_round(run.config, part)
    read = [read_answer(completion.text, run.config.view) for completion in completions]
    num_open = sum(not answer.is_closed for answer in read)
    assert 0 < num_open < len(read) == 24 and any(
        answer.is_closed and answer.text != c.text for answer, c in zip(read, completions, strict=True)
    )
    first = summaries[0]
    assert first["num_unclosed_completions"] == num_open and first["unclosed_rate"] == num_open / 24
    lengths = [c.answer_tokens for c in completions]
    assert first["answer_length_mean"] == sum(lengths) / 24 < first["length_mean"]  # type: ignore[arg-type]
    assert not any("w1" in text or "w2" in text for text in stages.texts)
    # Every token is trained on, and whole texts are committed.
    whole = {(c.prompt_id, c.sample_index): c for c in completions}
    assert pairs and all(
        whole[p.prompt.prompt_id, p.chosen.sample_index].token_ids == p.chosen.token_ids for p in pairs
    )
    assert all(whole[p.prompt.prompt_id, p.chosen.sample_index].text == p.chosen.text for p in pairs)
    shown = {(card["id"], a["i"]): a for card in sample["cards"] for a in card["a"]}
    for completion, answer in zip(completions, read, strict=True):
        card = shown[completion.prompt_id, completion.sample_index]
        assert card["t"] == answer.text and card["m"] == completion.answer_tokens
        assert card.get("un", False) is not answer.is_closed
        assert len(card.get("th", "")) > 0 or answer.text == completion.text
    for number in instants(event_kinds(listener.events), every=False)[::4]:
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(Stages(run.config), kill_at=number)
        go_on_and_compare(killed, work, expected, f"killed before event {number}", lambda run: Stages(run.config))


def test_a_round_in_which_no_thought_ends_is_no_pair_by_accident(tmp_path: Path) -> None:
    tags = {"open": "w", "close": "never"}
    run = Run.of(tmp_path, judge={"type": "python", "target": "none:none", "view": {"tags": [tags]}},
                 verdicts={"min_coverage": 0.0})  # fmt: skip
    with pytest.raises(Exception, match=r"gave no pair from 4 prompts: unclosed_thought 4"):
        run.go_on(Stages(run.config))
