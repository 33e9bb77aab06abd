"""The embedded models, openings and card."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from online_dpo.embedded import resolve
from online_dpo.embedded.gold import GoldJudge
from tools.embedded.card import model_card
from tools.embedded.training import (
    BOS_ID,
    EOS_ID,
    IGNORED,
    PAD_ID,
)

ROOT = resolve("policy").parent


def opening_prompts(name: str) -> list[str]:
    lines = resolve(f"openings/{name}").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"prompt"} for row in rows)
    return [row["prompt"] for row in rows]


# --- names


def test_resolve_knows_what_is_embedded_and_lists_it_for_other_names() -> None:
    assert resolve("openings/train").name == "train.jsonl"
    for name in ("policy", "reward", "gold"):
        assert resolve(name).is_dir()
    with pytest.raises(LookupError, match=r"'polcy'.*policy, reward, gold, openings/train, openings/heldout"):
        resolve("polcy")


def test_resolving_imports_no_tensor_library() -> None:
    code = "import sys, online_dpo.embedded as e; e.resolve('policy'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- openings


def test_openings_are_well_formed_and_disjoint() -> None:
    train, heldout = opening_prompts("train"), opening_prompts("heldout")
    assert len(train) >= 400 and len(heldout) >= 100
    everything = [" ".join(prompt.casefold().split()) for prompt in train + heldout]
    assert len(set(everything)) == len(everything)
    for prompt in train + heldout:
        assert prompt == prompt.lower() == prompt.strip()
        assert 3 <= len(prompt.split()) <= 9


# --- the gold judge


def test_embedded_gold_judge_knows_praise_from_blame_and_has_no_pickle() -> None:
    judge = GoldJudge()
    assert judge.score("", "a wonderful, moving film with a great performance") > 0.3
    assert judge.score("", "a boring mess, the worst script and bad acting") < -0.3
    assert {path.suffix for path in (ROOT / "gold").iterdir()} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in (ROOT / "gold").iterdir()) < 1_500_000


# --- the models


def test_models_fit_the_size_limit() -> None:
    files = [path for name in ("policy", "reward") for path in (ROOT / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert not [path for path in ROOT.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".joblib"}]


@pytest.mark.parametrize("name", ["policy", "reward"])
def test_tokenizers_prepend_bos_once_and_round_trip(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    text = 'the film begins with " it ", a thriller -- and doesn\'t stop (much) .'
    ids = tokenizer(text)["input_ids"]
    assert ids.count(BOS_ID) == 1 and ids[0] == BOS_ID and EOS_ID not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [PAD_ID, BOS_ID, EOS_ID]
    assert len(tokenizer) == 4096


def test_policy_loads_and_its_loss_is_far_below_chance() -> None:
    policy = AutoModelForCausalLM.from_pretrained(resolve("policy"), dtype=torch.float32).eval()
    assert policy.config.architectures == ["LlamaForCausalLM"]
    assert json.loads((ROOT / "policy" / "config.json").read_text())["dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(resolve("policy"))
    ids = tokenizer("the film begins with a young man who is in love with the daughter of", return_tensors="pt")
    with torch.no_grad():
        logits = policy(**ids).logits
    assert torch.isfinite(logits).all()
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids["input_ids"][0, 1:], ignore_index=IGNORED)
    assert loss < 0.6 * math.log(4096)


def test_policys_generation_config_sets_nothing_but_special_tokens() -> None:
    stored = json.loads((ROOT / "policy" / "generation_config.json").read_text())
    stored.pop("transformers_version", None)
    stored.pop("_from_model_config", None)
    assert stored == {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}


def test_reward_loads_and_its_logit_follows_sentiment_whatever_the_padding() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(resolve("reward"), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve("reward"))
    assert model.config.num_labels == 1 and model.config.pad_token_id == PAD_ID
    praise = "the film begins with a wonderful scene, and the performances are perfect and moving throughout"
    blame = "the film begins with a boring, stupid scene, and the acting is bad"
    with torch.no_grad():
        both = model(**tokenizer([praise, blame], padding=True, return_tensors="pt")).logits[:, 0]
        alone = model(**tokenizer([blame], return_tensors="pt")).logits[0, 0]
    assert torch.isfinite(both).all()
    assert both[0] > both[1]
    torch.testing.assert_close(both[1], alone, atol=1e-4, rtol=1e-4)


# --- the card


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return json.loads((ROOT / "measured.json").read_text(encoding="utf-8"))


def test_card_is_the_one_the_figures_give(measured: dict[str, Any]) -> None:
    card = (ROOT / "README.md").read_text(encoding="utf-8")
    assert card == model_card(measured)
    language = measured["language"]
    for figure in (f"{language['bits_per_byte']:.3f}", f"{language['bits_per_byte_5gram']:.3f}", "CC BY 4.0"):
        assert figure in card
    for name in ("reward_snippets", "gold_snippets", "gold_reviews"):
        assert f"({measured['judges'][name]['right']} of {measured['judges'][name]['of']})" in card
    assert all(row["prompt"] in card for row in measured["samples"]) and len(measured["samples"]) == 10


def test_measured_figures_meet_what_is_asked(measured: dict[str, Any]) -> None:
    assert measured["language"]["bits_per_byte"] < measured["language"]["bits_per_byte_5gram"]
    assert measured["agreement"]["correlation"] > 0.3
    for figures in measured["judges"].values():
        assert figures["right"] > 0.6 * figures["of"]


def test_no_file_names_this_machine() -> None:
    for path in ROOT.rglob("*.json*"):
        assert "/work/" not in path.read_text(encoding="utf-8"), path.name
    assert "/work/" not in (ROOT / "README.md").read_text(encoding="utf-8")
