"""`online-dpo export --for`: what is written, and the written scripts run for real."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from handover_kit import JUDGE, PER_ROUND, write_handover_run
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_dpo import as_reward_function
from online_dpo.commands.export import export_for
from online_dpo.commands.handover.judging import write_judge_config
from online_dpo.commands.handover.starting_point import StartingPoint
from online_dpo.commands.handover.verl import write_verl
from online_dpo.config.loading import load_config, load_judges
from online_dpo.embedded import resolve
from online_dpo.errors import ConfigError, UserError
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Prompt

ROWS: list[dict[str, Any]] = [
    {"prompt": f"film {n} was", "bonus": n, "day": "2020-01-01", "mixed": n if n % 2 else str(n), "completion": "x"}
    for n in range(8)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handover")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_handover_run(folder, ROWS)
    return folder


@pytest.fixture
def ran(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run, which is the current one."""
    monkeypatch.chdir(made)
    return made


def grpo(out: Path, **changes: Any) -> tuple[int, list[str]]:
    asked: dict[str, Any] = {"round_number": None, "merge": False, "reference": "run"}
    return export_for("grpo", Path("runs/demo"), out, **asked | changes)


def test_a_script_continues_with_grpo_and_our_judge_is_the_reward(ran: Path, tmp_path: Path) -> None:
    assert grpo(tmp_path / "out")[0] == 2
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    train(moved)
    steps = [pq.read_table(moved / f"grpo/completions/completions_{n:05d}.parquet").to_pylist() for n in (1, 2)]
    rows = [row for step in steps for row in step]
    bonus = {row["prompt"]: row["bonus"] for row in ROWS}
    assert [row["judge"] for row in rows] == [0.5 * len(row["completion"]) + bonus[row["prompt"]] for row in rows]
    logged = json.loads(next(moved.glob("grpo/checkpoint-2/trainer_state.json")).read_text())["log_history"]
    assert [math.isclose(line["rewards/judge/mean"], sum(r["judge"] for r in step) / len(step), rel_tol=1e-6)
            for line, step in zip(logged, steps, strict=False)] == [True, True]  # fmt: skip
    assert logged[0]["judge/no_reward"] == 0.0
    prompts = [row["prompt"] for row in pq.read_table(moved / "prompts.parquet").to_pylist()]
    assert [row["prompt"] for row in rows] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    # Before the first update the policy is the run's, and so is the reference: the logged KL is the one between them.
    assert logged[0]["kl"] == pytest.approx(kl_of(moved, steps[0]), rel=0.05)
    trained = policy_of(moved, "grpo/policy").state_dict()
    assert any(trained[name].ne(weight).any() for name, weight in policy_of(moved).state_dict().items())


def train(folder: Path) -> None:
    """Two steps of the written script, started in another folder than its own."""
    options = "--max_steps 2 --log_completions True --gradient_accumulation_steps 1 --use_cpu True --save_steps 2"
    command = [sys.executable, str(folder / "train_grpo.py"), *options.split()]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def policy_of(folder: Path, name: str = "policy") -> torch.nn.Module:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), str(folder / name))


@torch.no_grad()
def kl_of(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean over tokens of the estimate that is never negative, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    policy, reference = policy_of(folder), policy_of(folder, "reference")
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        answer = tokenizer(row["completion"], add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + answer])
        logps = [
            torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], -1).gather(1, ids[0, len(prompt) :, None])
            for model in (policy, reference)
        ]
        d = logps[1] - logps[0]
        found.append(torch.exp(d) - 1 - d)
    return float(torch.cat(found).mean())


def test_prompts_come_as_the_next_rounds_would_draw_them(ran: Path, tmp_path: Path) -> None:
    _, notes = grpo(tmp_path / "out", round_number=1)
    rows = pq.read_table(tmp_path / "out/prompts.parquet").to_pylist()
    with RunStore.read(ran / "runs/demo") as store:
        second = [prompt.text for prompt in store.round(1).get_records("prompts", Prompt)]
    assert [row["prompt"] for row in rows[:PER_ROUND]] == second, "round 2 came after round 1"
    assert sorted(row["prompt"] for row in rows) == sorted(row["prompt"] for row in ROWS), "each once"
    assert {row["prompt"]: (row["bonus"], row["day"]) for row in rows} == {
        row["prompt"]: (row["bonus"], row["day"]) for row in ROWS
    }
    assert notes == [
        "the column mixed of the prompts is left out: its values are of several types",
        "the column completion of the prompts is left out: the trainer has a column of this name",
    ]


def test_prompts_of_a_mixture_come_in_its_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plays.jsonl").write_text("".join(f'{{"prompt": "play {n} was", "bonus": {n}}}\n' for n in range(40)))
    sources = [
        {"source": f"{tmp_path}/{name}.jsonl", "weight": weight} for name, weight in (("prompts", 1), ("plays", 2))
    ]
    write_handover_run(tmp_path, ROWS, prompts={"sources": sources, "per_round": PER_ROUND, "max_tokens": 64})
    grpo(tmp_path / "out", round_number=1)
    rows = pq.read_table(tmp_path / "out/prompts.parquet").to_pylist()
    texts = [row["prompt"] for row in rows]
    with RunStore.read(tmp_path / "runs/demo") as store:
        assert texts[:PER_ROUND] == [prompt.text for prompt in store.round(1).get_records("prompts", Prompt)]
    assert [row["domain"] for row in rows[:6]].count("plays") == 4, "two of three"
    assert sorted(texts) == sorted({*texts}) and {text for text in texts if "film" in text} == {
        r["prompt"] for r in ROWS
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("reference", ["run", "initial"])
def test_whole_models_and_the_base_as_reference(ran: Path, tmp_path: Path, reference: str) -> None:
    """The merged form against the adapters' form: the same start, so the same KL to the same reference."""
    found = []
    for merge in (False, True):
        out = tmp_path / f"out-{merge}"
        grpo(out, merge=merge, reference=reference)
        train(out)
        state = json.loads((out / "grpo/checkpoint-2/trainer_state.json").read_text())
        found.append(state["log_history"][0])
    assert found[0]["kl"] > 1e-4 and found[0]["reward"] == found[1]["reward"]
    assert found[0]["kl"] == pytest.approx(found[1]["kl"], rel=1e-3)


def test_the_folder_is_whole_without_the_machine(ran: Path, tmp_path: Path) -> None:
    grpo(tmp_path / "out")
    out = tmp_path / "out"
    script = (out / "train_grpo.py").read_text()
    compile(script, "train_grpo.py", "exec")
    assert 'as_reward_function("judge.yaml")' in script and len(script.splitlines()) < 35
    assert "'reference/adapter" in script.replace('"', "'")
    settings = yaml.safe_load((out / "train_grpo.yaml").read_text())
    assert (settings["beta"], settings["shuffle_dataset"], settings["chat_template_kwargs"]) == (0.04, False, None)
    assert isinstance(settings["learning_rate"], float)
    assert (out / "judge/mine.py").read_text() == JUDGE
    for name in ("policy", "reference"):
        with RunStore.read(ran / "runs/demo") as store:
            found = store.round(1).get_files("adapter" if name == "policy" else "reference")
        assert {file.name: file.read_bytes() for file in (out / name).iterdir()} == found
    whole = [
        file.read_bytes() for file in out.rglob("*") if file.suffix in (".py", ".yaml", ".md", ".json", ".parquet")
    ]
    assert len(whole) >= 8 and all(str(ran).encode() not in content for content in whole)
    for merge in (True, False):
        grpo(tmp_path / f"initial-{merge}", merge=merge, reference="initial")
        text = (tmp_path / f"initial-{merge}/train_grpo.py").read_text()
        compile(text, "train_grpo.py", "exec")
        assert ('delete_adapter("ref")' in text) is not merge and ("load_state_dict" in text) is merge
    initial, base = (
        AutoModelForCausalLM.from_pretrained(place).state_dict()
        for place in (tmp_path / "initial-True/reference", out / "base")
    )
    assert all(initial[name].equal(weight) for name, weight in base.items())


def test_the_judge_answers_from_the_folder_as_in_the_run(ran: Path, tmp_path: Path, monkeypatch: Any) -> None:
    grpo(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    assert as_reward_function("judge.yaml")(["p", "p"], ["ab", "abcd"], bonus=[1, 1]) == [2.0, 3.0]


SECRETS = {
    "type": "cached", "path": "/home/me/cache.sqlite",
    "judge": {"type": "ensemble", "judges": {
        "mine": {"type": "python", "target": "mine.py:score", "args": {}},
        "asked": {"type": "llm", "endpoint": {
            "base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key_file": "/home/me/key",
        }},
        "model": {"type": "process", "judge": {"type": "reward_model", "path": "reward-model"}},
    }},
}  # fmt: skip


def test_judges_take_their_files_along_and_no_secrets(ran: Path, tmp_path: Path) -> None:
    shutil.copytree(resolve("reward"), ran / "reward-model")
    section = load_judges({"judge": SECRETS}).judge
    notes = write_judge_config(section, tmp_path)
    shutil.rmtree(ran / "reward-model")
    text = (tmp_path / "judge.yaml").read_text()
    written = load_judges(tmp_path / "judge.yaml").judge
    assert "/home/me" not in text and written.path == ".cache/online-dpo/verdicts.sqlite"
    judges = written.judge.judges
    assert judges["mine"].target == "judge/judge/judges/mine/mine.py:score"
    assert (tmp_path / "judge/judge/judges/mine/mine.py").read_text() == JUDGE
    assert judges["asked"].endpoint.api_key_env == "JUDGE_API_KEY" and judges["asked"].endpoint.api_key_file is None
    assert (tmp_path / judges["model"].judge.path / "model.safetensors").is_file()
    assert notes == [
        "the key of judge.judge.judges.asked.endpoint was in a file; put it into the variable JUDGE_API_KEY"
    ]


def test_what_no_trainer_can_take_is_told(ran: Path, tmp_path: Path) -> None:
    for section, message in ((None, "the run has no judge"), ({"type": "human"}, "a trainer cannot ask people")):
        with pytest.raises(UserError, match=message):
            write_judge_config(load_judges({"judge": section}).judge, tmp_path)
    for change, message in {
        "prompts.jsonl": "prompts.source names something whose content changed",
        "mine.py": "judge.target names something whose content changed",
    }.items():
        before = (ran / change).read_bytes()
        (ran / change).write_bytes(before + b"\n")
        with pytest.raises(ConfigError, match=message):
            grpo(tmp_path / "out")
        (ran / change).write_bytes(before)
    with pytest.raises(UserError, match="prompts are plain text, and verl writes every prompt by the chat template"):
        export_for("verl", Path("runs/demo"), tmp_path / "out", round_number=None, merge=False, reference="run")
    assert not (tmp_path / "out").exists()


def test_the_files_for_verl_without_verl(ran: Path, tmp_path: Path) -> None:
    """The data has verl's columns, the function is called as verl calls it, and the script's keys are verl's."""
    config = load_config(ran / "runs/demo/config.yaml", ["run.name=it's $HOME `x`"])
    with RunStore.read(ran / "runs/demo") as store:
        policy = Adapter.from_files(2, store.round(1).get_files("adapter"))
    prompts = [
        Prompt(prompt_id=str(n), token_ids=(1,), messages=({"role": "user", "content": f"q{n}"},), metadata=metadata)
        for n, metadata in enumerate([{"bonus": 3}, {"bonus": -1, "note": "only here"}])
    ]
    start = StartingPoint(
        config=config, version=2, base=resolve("policy"), policy=policy, reference=None, prompts=prompts
    )
    assert write_verl(start, tmp_path) == []
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": f"q{n}"}] for n in (0, 1)]
    assert all(row.keys() == {"data_source", "prompt", "reward_model", "extra_info"} for row in rows)
    found: dict[str, Any] = {"__file__": str(tmp_path / "reward_function.py"), "__name__": "custom_module"}
    with chdir(tmp_path):
        exec(compile((tmp_path / "reward_function.py").read_text(), "reward_function.py", "exec"), found)
        scores = [
            found["compute_score"](
                data_source=row["data_source"], solution_str="abcd", ground_truth=row["reward_model"]["ground_truth"],
                extra_info={**row["extra_info"], "num_turns": 2}, further="keyword",
            )
            for row in rows
        ]  # fmt: skip
        assert scores == [5.0, 1.0]
        (tmp_path / "shy.py").write_text(
            "from online_dpo import Abstain\ndef score(prompt, completion):\n    return Abstain('no')\n"
        )
        found["judge"] = as_reward_function({"type": "python", "target": "shy.py:score"})
        with pytest.raises(ValueError, match=r"gave no reward to an answer.*'num_abstained': 1"):
            found["compute_score"]("online-dpo", "x", "", rows[0]["extra_info"])
        found["WITHOUT_REWARD"] = -1.0
        assert found["compute_score"]("online-dpo", "x", "", rows[0]["extra_info"]) == -1.0
    script = (tmp_path / "train_verl.sh").read_text()
    assert subprocess.run(["sh", "-n", tmp_path / "train_verl.sh"], check=False).returncode == 0
    known = set()
    for line in (Path(__file__).parents[1] / "kits/verl_keys.txt").read_text().splitlines():
        section, _, keys = line.partition(": ")
        known |= {f"{section}.{key}" for key in keys.split()} if not line.startswith("#") else set()
    given = re.findall(r"^ {4}([a-z_.]+)=", script, re.MULTILINE)
    assert len(given) > 20 and set(given) <= known
    assert load_judges(tmp_path / "judge.yaml").judge is not None
    shown = subprocess.run(
        ["sh", tmp_path / "train_verl.sh", "data.seed=1"], capture_output=True, text=True, check=True,
        env={"PATH": f"{fake_python(tmp_path)}:/usr/bin:/bin"},
    )  # fmt: skip
    assert f"data.train_files={tmp_path}/train.parquet" in shown.stdout.split("\n") and "data.seed=1" in shown.stdout


def fake_python(folder: Path) -> Path:
    """A folder with a `python3` that prints its arguments, a line each."""
    (folder / "bin").mkdir()
    (folder / "bin/python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "bin/python3").chmod(0o755)
    return folder / "bin"
