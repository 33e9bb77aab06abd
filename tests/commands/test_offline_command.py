"""A run on data sets as a user makes it: SFT, then preferences; real Ray and learner, and no engine anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called, online_dpo

from online_dpo.store.run_store import RunStore
from online_dpo.types import Pair

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_pairs(path: Path, numbers: range) -> None:
    """Chats whose preferred answer is kind; one row of equal answers among them, and one that is too long."""
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"film {i}?"}], "chosen": "kind words", "rejected": "a rude remark"}
        for i in numbers
    ]
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["prompt"][0]["content"] *= 30
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path) -> Path:
    write_pairs(tmp_path / "train.jsonl", range(26))
    write_pairs(tmp_path / "heldout.jsonl", range(100, 110))
    config = {
        "run": {"name": "demo", "rounds": 2},
        "model": {"path": str(tiny_model)},
        "pairs": {
            "source": "train.jsonl",
            "max_prompt_tokens": 64,
            "max_completion_tokens": 32,
            "chat_template_kwargs": {"chat_template": TEMPLATE},
        },
        "sft": {
            "pairs": {
                "source": "train.jsonl",
                "format": "demonstrations",
                "completion": "chosen",
                "max_prompt_tokens": 300,
                "max_completion_tokens": 32,
            },
            "rounds": 2,
            "lr": 1e-2,
        },
        "evaluation": {
            "pairs": {
                "people": {"source": "heldout.jsonl", "count": 8},
                "shown": {
                    "source": "heldout.jsonl",
                    "format": "demonstrations",
                    "completion": "chosen",
                    "count": 8,
                },
            }
        },
        "learner": {"lr": 5e-3, "lora": {"r": 8, "alpha": 16}, "batch_pairs": 8},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    trap = tmp_path / "trap" / "vllm"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise RuntimeError('an engine was started')\n")
    return tmp_path


def test_pairs_alone_teach_preferences_without_an_engine(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch generators or judges that start for nothing, a step the wrong way, and rows that go uncounted."""
    told = called("validate", "config.yaml", "--deep", cwd=work)
    assert "pairs: 24 usable of 26 rows (dropped: equal 1, prompt_too_long 1; 0 truncated_answers" in told.out
    assert "sft.pairs: 26 usable of 26 rows" in told.out
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(work / "trap"), os.environ.get("PYTHONPATH", "")]))
    done = online_dpo("run", "config.yaml", cwd=work)
    assert done.code == 0, done
    assert "starting the learner" in done.out and "generators" not in done.out
    assert "24 pairs, 24 rows of the data set (dropped: equal 1, prompt_too_long 1)" in done.out
    with RunStore.read(work / "runs" / "demo") as store:
        evaluated = [record for record in store.metrics() if record["kind"] == "evaluated_pairs"]
        found, shown = ([r for r in evaluated if r["set"] == name] for name in ("people", "shown"))
        pairs = store.round(1).get_records("pairs", Pair)
        assert not [name for name in store.round(0).names() if "completions" in name or "verdicts" in name]
        initial = store.round(0).get_files("initial-policy")
    # What SFT made is what the pairs begin with: the same adapter, and the same loss of held-out demonstrations.
    with RunStore.read(work / "runs" / "demo" / "sft") as store:
        assert store.round(1).get_files("adapter") == initial
        last = [record for record in store.metrics() if record["kind"] == "evaluated_pairs"][-1]
    assert last["set"] == "shown" and last["loss_change_high"] < 0.0
    assert shown[0]["loss"] == last["loss"] and "loss_change" not in shown[0]
    assert [record["policy_version"] for record in found] == [0, 1, 2]
    assert found[2]["reward_accuracy"] == found[2]["reward_accuracy_low"] == 1.0
    assert found[2]["log_ratio_margin"] > found[1]["log_ratio_margin"] > 0.0
    assert {pair.chosen.token_ids[-1] for pair in pairs} == {2} and len(pairs) == 24
    status = called("status", "runs/demo", cwd=work)
    assert "policy 2 on people: accuracy" in status.out and "over the initial policy 1.000 [1.000, 1.000]" in status.out
    assert "supervised fine-tuning before: 2 of 2 rounds finished, loss " in status.out
    assert "sft: all is whole" in called("verify", "runs/demo", cwd=work).out
    again = online_dpo("resume", "runs/demo", cwd=work)
    assert again.code == 0 and "all 2 rounds of runs/demo are finished already" in again.out
    (work / "train.jsonl").write_text("")
    message = called("resume", "runs/demo", "run.rounds=3", cwd=work).refusal
    assert message.startswith("pairs.source is train.jsonl, which has no rows; give a source with at least one pair")
