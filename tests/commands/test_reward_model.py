"""`online-dpo reward-model`: what it trains on, that it learns it, and that a judge reads it as training did."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from annotation_kit import PLAIN, T0, invite
from tiny_model import build_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from judges.protocol import Question
from judges.reward.reward_model import RewardModel
from online_dpo.annotation.records import Question as Asked
from online_dpo.annotation.records import Rules
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.commands.handover.folders import new_folder
from online_dpo.commands.reward_model import command
from online_dpo.commands.reward_model.command import REPORT, train_reward_model
from online_dpo.commands.reward_model.preferences import prepare_sides
from online_dpo.config.loading import load_reward_model
from online_dpo.errors import TrainingError, UserError
from online_dpo.models.tokenizer import load_tokenizer
from online_dpo.statistics.reward_models import describe_preferences
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Pair, Prompt

TEMPLATE = "<bos>{% for m in messages %}{{ m.role[0] }}: {{ m.content }}<eos>{% endfor %}"
MAX_TOKENS = 40
GOOD, BAD = ("great", "lovely", "superb"), ("awful", "boring", "dull")


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny", hidden=64)


def write_rows(file: Path, number: int, *, chat: bool = False) -> None:
    rng = random.Random(number)

    def answer(words: tuple[str, ...]) -> Any:
        text = " ".join([*rng.choices(("a", "film", "with", "the", "plot"), k=rng.randint(1, 6)), rng.choice(words)])
        return [{"role": "assistant", "content": text}] if chat else f" {text}"

    rows = []
    for index in range(number):
        prompt: Any = f"{index % (number // 2)} film?"
        if index == 2:
            prompt = "long " * 60 + prompt
        prompt = [{"role": "user", "content": prompt}] if chat else prompt
        rows.append({"prompt": prompt, "chosen": answer(GOOD), "rejected": answer(BAD)})
    rows += [{**rows[0], "rejected": rows[0]["chosen"]}, {**rows[0], "prompt": [] if chat else "  "}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[: number + 1 + (not chat)]))


def settings(base: Path, folder: Path, **further: Any) -> dict[str, Any]:
    return {
        "output": str(folder / "out"),
        "model": {"path": str(base)},
        "pairs": {"source": str(folder / "pairs.jsonl")},
        "heldout": {"share": 0.3},
        "max_tokens": MAX_TOKENS,
        **further,
    }


@pytest.fixture(scope="module", params=[False, True], ids=["text", "chat with LoRA"])
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> tuple[dict[str, Any], Path, Path]:
    """Config, folder of the model, and a folder in which the same was done twice."""
    folder, chat = tmp_path_factory.mktemp("reward"), request.param
    write_rows(folder / "pairs.jsonl", 120, chat=chat)
    training: dict[str, Any] = {"lr": 1e-2, "batch_pairs": 24, "epochs": 2, "autocast": "off"}
    model: dict[str, Any] = {"path": str(base)}
    if chat:
        training |= {"lora": {"r": 8, "dropout": 0.1}, "micro_batch_pairs": 6, "autocast": "bfloat16"}
        model["chat_template"] = TEMPLATE
    config = settings(base, folder, training=training, model=model)
    for name in ("out", "again"):
        (folder / f".partial-{name}").mkdir()
        (folder / f".partial-{name}" / "model.safetensors.index.json").write_text("left by a killed process")
        train_reward_model(load_reward_model({**config, "output": str(folder / name)}), silent)
    return config, folder / "out", folder / "again"


def test_it_learns_and_the_same_bytes_come_out_again(trained: Any) -> None:
    _, out, again = trained
    report = json.loads((out / REPORT).read_text())
    found, read = report["heldout"], report["data"]["read"]["pairs"]
    assert found["accuracy_low"] > 0.9 and found["longer_accuracy"] < 0.8
    assert report["data"]["num_training_pairs"] + report["data"]["num_heldout_pairs"] == read["kept"] == 120
    assert read["equal"] == 1 and read["num_truncated_inputs"] == 2
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert files == {file.name: file.read_bytes() for file in again.iterdir()}
    assert "model.safetensors.index.json" not in files and "training_args.bin" not in files
    assert {file.name for file in out.parent.iterdir()} == {"pairs.jsonl", "out", "again"}
    place = str(out.parent).encode()
    assert not any(place in content for content in files.values()), "a path of this machine"


def test_the_judge_takes_the_folder_as_it_is_and_agrees_with_transformers(trained: Any) -> None:
    """Each sequence alone in plain transformers, which reads the score at the last token that is no padding."""
    config, out, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    is_chat = "chat_template" in config["model"]
    texts = ["a great film", "dull", "long " * 60 + "lovely"]
    asked = "Was it?"
    prompt: Any = [{"role": "user", "content": asked}] if is_chat else asked
    [verdicts] = asyncio.run(
        RewardModel(str(out)).judge([Question(prompt_id="p", prompt=prompt, completions=tuple(texts))])
    )
    for text, verdict in zip(texts, verdicts, strict=True):
        whole = f"<bos>u: {asked}<eos>a: {text}<eos>" if is_chat else f"<bos>{asked}{text}"
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        if len(ids) > MAX_TOKENS:
            ids = [ids[0], *ids[len(ids) - MAX_TOKENS + 1 :]]
        with torch.no_grad():
            assert verdict.score == pytest.approx(model(input_ids=torch.tensor([ids])).logits.item(), abs=1e-5)
    assert verdicts[0].score > verdicts[1].score


def test_the_loss_is_bradley_terry_s(base: Path, tmp_path: Path) -> None:
    """The first step's, computed by hand from sequences that are scored alone under the same new head."""
    write_rows(tmp_path / "pairs.jsonl", 12)
    further = {"seed": 3, "training": {"batch_pairs": 64, "center_rewards": 0.5, "autocast": "off"}}
    config = load_reward_model(settings(base, tmp_path, **further))
    report = train_reward_model(config, silent)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(base)
    losses = []
    for pair in prepare_sides(config, tokenizer, MAX_TOKENS).training:
        with torch.no_grad():
            chosen, rejected = (
                model(input_ids=torch.tensor([ids])).logits.item() for ids in (pair.chosen_ids, pair.rejected_ids)
            )
        losses.append(math.log1p(math.exp(rejected - chosen)) + 0.5 * (chosen + rejected) ** 2)
    assert report["training"]["progress"][0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert report["training"]["num_steps"] == 1


def test_no_prompt_is_on_both_sides_and_more_rows_move_none(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", 40)
    config = load_reward_model(settings(base, tmp_path))
    tokenizer = load_tokenizer(base)

    def sides(config: Any) -> tuple[set[str], set[str]]:
        found = prepare_sides(config, tokenizer, 512)
        return {p.preference.key for p in found.training}, {p.preference.key for p in found.heldout}

    training, heldout = sides(config)
    assert training and heldout and not training & heldout and len(training | heldout) == 21
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    more = [json.dumps({**json.loads(row), "prompt": f"new {i}"}) for i, row in enumerate(rows)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(more + rows[::-1]))
    grown = sides(config)
    assert training <= grown[0] and heldout <= grown[1]
    (tmp_path / "own.jsonl").write_text("\n".join(rows[5:8]))
    own = load_reward_model(settings(base, tmp_path, heldout={"pairs": {"source": str(tmp_path / "own.jsonl")}}))
    training, heldout = sides(own)
    assert len(heldout) == 3 and not training & heldout
    assert prepare_sides(own, tokenizer, 512).counts["pairs"]["prompt_is_held_out"] == 6


def test_the_pairs_of_a_run(base: Path, tmp_path: Path) -> None:
    def pair(number: int) -> Pair:
        name = f"p{number}"
        answers = [
            Completion(
                prompt_id=name, sample_index=i, token_ids=(5 + i,), text=text, finish_reason="stop",
                sampler_logps=(-1.0,), policy_version=0, seed=i,
            )
            for i, text in enumerate((" good", f" bad {number}"))
        ]  # fmt: skip
        prompt = Prompt(prompt_id=name, token_ids=(4,), text=f"Prompt {number}")
        return Pair(prompt=prompt, chosen=answers[0], rejected=answers[1], margin=1.0, probability=0.7)

    with RunStore.create(tmp_path / "run", config_yaml="a: 1\n", info={}) as store:
        for index in (0, 1):
            store.round(index).put_records("pairs", [pair(10 * index + i) for i in range(10)])
            store.finish_round(index, {"metrics": store.metrics_position()})
        store.round(2).put_records("labelled", [])
    common: dict[str, Any] = {"output": "out", "model": {"path": str(base)}, "heldout": {"share": 0.3}}

    def rejected(**run: Any) -> set[str]:
        config = load_reward_model({**common, "run": {"dir": str(tmp_path / "run"), **run}})
        found = prepare_sides(config, load_tokenizer(base), 512)
        return {one.preference.rejected for one in (*found.training, *found.heldout)}

    assert rejected() == {f" bad {i}" for i in range(20)}
    assert rejected(rounds=[2]) == {f" bad {i}" for i in range(10, 20)}
    with pytest.raises(UserError, match=r"run.rounds has 3 and 2 rounds of .* are finished"):
        rejected(rounds=[1, 3])


def test_people_s_votes(base: Path, tmp_path: Path) -> None:
    """Ties, skips and open questions make no preference, and are counted."""
    with AnnotationStore.create(tmp_path / FILE, Rules(**PLAIN), T0) as store:  # type: ignore[arg-type]
        asked = [
            Asked(
                purpose="reward", round_index=0, prompt_id=f"p{i}", prompt=f"Prompt {i}", first=0, second=1,
                first_text=" one", second_text=" two",
            )
            for i in range(12)
        ]  # fmt: skip
        store.add_questions(asked, T0)
        for person in invite(store, 3):
            while (given := store.next_assignment(person, T0)) is not None:
                number = int(given.question.prompt_id[1:])
                outcome = "tie" if number == 0 else "skip" if number == 1 else "second" if number % 2 else "first"
                sides = ("second", "first") if given.swapped else ("first", "second")
                choice: Any = ("left", "right")[sides.index(outcome)] if outcome in sides else outcome
                store.vote(given.assignment_id, person, choice, now=T0 + 2)
    config = load_reward_model(
        {"output": "out", "model": {"path": str(base)}, "votes": {"dir": str(tmp_path)}, "heldout": {"share": 0.3}}
    )
    found = prepare_sides(config, load_tokenizer(base), 512)
    chosen = {one.preference.prompt: one.preference.chosen for one in (*found.training, *found.heldout)}
    assert chosen == {f"Prompt {i}": " two" if i % 2 else " one" for i in range(2, 12)}
    counts = dict(found.counts["votes"])
    assert counts.pop("kept") == 10 and counts.pop("num_truncated_inputs") == 0 and sum(counts.values()) == 2


def test_figures_by_hand() -> None:
    """Margins 2, -1, 0 and 1 with the chosen answer longer, equally long, shorter and shorter; three prompts."""
    scores, lengths = [(3.0, 1.0), (0.0, 1.0), (1.0, 1.0), (2.0, 1.0)], [(5, 3), (4, 4), (1, 2), (2, 5)]
    found = describe_preferences(scores, lengths, ["a", "a", "b", "c"], seed=0)
    assert (found["num_pairs"], found["num_prompts"], found["num_tied"]) == (4, 3, 1)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    losses = [math.log(1 + math.exp(-margin)) for margin in (2, -1, 0, 1)]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    at_2, at_1 = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert [(b["number"], b["accuracy"]) for b in found["calibration"]] == [(2, 0.5), (1, 1.0)]
    assert found["ece"] == pytest.approx((2 * abs(at_1 - 0.5) + abs(at_2 - 1)) / 3)
    assert found["longer_accuracy"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert (found["num_where_shorter"], found["accuracy_where_shorter"]) == (2, 0.75)
    both = torch.tensor([[2.0, -1, 0, 1, -2, 1, 0, -1], [2.0, 0, -1, -3, -2, 0, 1, 3]])
    assert found["length_correlation"] == pytest.approx(torch.corrcoef(both)[0, 1].item(), abs=1e-6)
    assert describe_preferences([(800.0, -800.0)], [(1, 1)], ["a"], seed=0)["length_correlation"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": None}, "pairs, run, votes are missing; set exactly one"),
        ({"run": {"dir": "x"}}, "pairs and run are set; set exactly one"),
        ({"training": {"batch_pairs": 8, "micro_batch_pairs": 3}}, "which is no multiple of it"),
        ({"model": {"path": "x", "dtype": "bfloat16"}}, "set model.dtype to float32"),
        ({"pairs": {"source": "x", "format": "labelled"}}, "pairs.format is \"labelled\"; it must be 'pairs'"),
        ({"heldout": {"shar": 0.1}}, "heldout.shar is not a known key; did you mean share?"),
        ({"max_tokens": 4096}, "max_tokens is 4096 and "),
        ({"model": {"path": "embedded:policy"}, "pairs": {"source": "chat"}}, "set model.chat_template"),
        ({"heldout": {"share": 1e-9}}, "no pair is left to hold out (pairs: "),
        ({"output": "full"}, "output is full, which is not empty"),
        ({"model": {"path": "beyond"}}, "whose embedding has 512 rows (1 ids are beyond them)"),
        ({"training": {"lora": {"targets": ["q_prok"]}}}, "training.lora.targets contains q_prok"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", 12)
    write_rows(tmp_path / "chat.jsonl", 12, chat=True)
    shutil.copytree(base, tmp_path / "beyond")
    larger = AutoTokenizer.from_pretrained(base)
    larger.add_tokens(["beyond"])
    larger.save_pretrained(tmp_path / "beyond")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    config = settings(base, tmp_path, **change)
    if (config["pairs"] or {}).get("source") == "chat":
        config["pairs"] = {"source": "chat.jsonl"}
    with pytest.raises(UserError) as error:
        train_reward_model(load_reward_model(config), silent)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".partial-out").exists()


def test_without_trl_or_with_a_loss_that_is_no_number_nothing_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "pairs.jsonl", 12)
    hot = {"lr": 1e30, "batch_pairs": 4, "epochs": 3, "schedule": "constant", "autocast": "off"}
    config = load_reward_model(settings(base, tmp_path, training=hot))
    with pytest.raises(TrainingError, match=r"not finite; lower training.lr, which is 1e"):
        train_reward_model(config, silent)
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "trl" else importlib.util.find_spec(name))
    with pytest.raises(UserError, match=r"which is not installed; pip install 'online-dpo\[trl\]'"):
        train_reward_model(config, silent)
    assert {file.name for file in tmp_path.iterdir()} == {"pairs.jsonl"}


def test_the_folder_that_one_stands_in_can_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path()) as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
