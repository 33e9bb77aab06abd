"""Models, adapters and judges that are not whole: a run is refused within seconds, before Ray or an engine starts.

Nearly all commands run in this process, where an attempt to start Ray is an error.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_kit import LLAMA, shrink
from cli_kit import called, online_dpo, refused, write_inputs
from model_kit import change_json
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

Spoil = Callable[[Path], None]

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHATS = [{"prompt": [{"role": "user", "content": f"film {i}?"}]} for i in range(8)]


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a config that could be run, and a copy of its model that may be broken."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    write_inputs(folder, Path("./model"))
    return folder


def config_with(**changes: Any) -> Spoil:
    return lambda folder: change_json(folder / "config.json", **changes)


def weights_with(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pointer(name: str) -> Spoil:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
    return lambda folder: (folder / name).write_text(text)  # type: ignore[return-value]


def saved_as(make: Callable[[], Any]) -> Spoil:
    """Replace the model, but not its tokenizer."""

    def spoil(folder: Path) -> None:
        (folder / "generation_config.json").unlink()
        make().save_pretrained(folder)

    return spoil


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, eos_token_id=2, pad_token_id=0)
    )


def bart() -> Any:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=512, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **layers)
    )


def bert() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=512, **sizes))


def reward_model() -> Any:
    return LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, **{**LLAMA, "vocab_size": 512}))


def shorter_embedding(folder: Path) -> None:
    """Config and weights agree with each other, and the tokenizer knows more."""
    config_with(vocab_size=300)(folder)
    name = "model.embed_tokens.weight"
    weights_with(lambda tensors: tensors.update({name: tensors[name][:300].clone()}))(folder)


def added_token(folder: Path) -> None:
    """Only the loaded tokenizer knows: transformers adds a special token that no vocabulary file has."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<added>"])
    tokenizer.save_pretrained(folder)


def index_of(names: dict[str, str]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return spoil


def quantised(method: str, **fields: Any) -> Spoil:
    return config_with(quantization_config={"quant_method": method, **fields})


BROKEN: dict[str, tuple[Spoil, str]] = {
    "T5": (saved_as(t5), "is t5, an encoder-decoder; .*: give a causal language model"),
    "BART": (saved_as(bart), "is bart, an encoder-decoder"),
    "BERT": (saved_as(bert), "is BertForMaskedLM, an encoder that reads text in both directions; .*: give a causal"),
    "reward model": (
        saved_as(reward_model),
        "LlamaForSequenceClassification by its config.json, which is no causal",
    ),
    "unknown architecture": (config_with(model_type="nosuch"), "config.json this version of transformers cannot use"),
    "no architecture": (config_with(model_type=None), "config.json names no model_type, so that its architecture is"),
    "hidden size": (
        config_with(hidden_size=256),
        r"config.json does not belong to its weights: model.embed_tokens.weight is \[\d+, 128\] in the files and "
        r"\[\d+, 256\] by config.json \(\d+ tensors differ\); put the config.json there",
    ),
    "head size": (config_with(head_dim=64), r"self_attn.k_proj.weight is \[64, 128\] in the files and \[128, 128\]"),
    "too few heads": (
        config_with(num_attention_heads=3),
        r"ValueError: The hidden size \(128\) is not a multiple",
    ),
    "fewer layers": (
        config_with(num_hidden_layers=1),
        "its config.json has no place for: model.layers.1.",
    ),
    "more layers": (config_with(num_hidden_layers=3), "no weights for model.layers.2.input_layernorm.weight, .* and 6"),
    "a tensor": (
        weights_with(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        "no weights for model.layers.1.mlp.up_proj.weight, so that transformers would fill them with random numbers; "
        "download the files again, or save them again",
    ),
    "the head": (config_with(tie_word_embeddings=False), "which has no weights for lm_head.weight"),
    "shorter embedding": (shorter_embedding, "id 511, but whose embedding has 300 rows .212 ids are beyond them"),
    "added token": (added_token, "gives the token '<added>' the id 512, but whose embedding has 512 rows"),
    "weights pointer": (
        pointer("model.safetensors"),
        "model.safetensors is a Git-LFS pointer .*; run `git lfs",
    ),
    "tokenizer pointer": (pointer("tokenizer.json"), "tokenizer.json is a Git-LFS pointer and not the file itself"),
    "config pointer": (pointer("config.json"), "config.json is a Git-LFS pointer"),
    "index": (
        index_of({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
        "no weights file model-00002-of-00002.safetensors",
    ),
    "two models": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "old.safetensors") and None,
        "has old.safetensors beside model.safetensors; vLLM would load both",
    ),
    "adapter inside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}") and None,  # type: ignore[func-returns-value]
        "an adapter_config.json beside its config.json; .*: move the adapter",
    ),
    "GPTQ": (quantised("gptq", bits=4), r"is quantised \(gptq\) and cannot be loaded on this machine \(.+\); install"),
    "AWQ": (quantised("awq", bits=4), r"is quantised \(awq\) and cannot be loaded on this machine \(.+\); install"),
    "bitsandbytes": (
        quantised("bitsandbytes", load_in_4bit=True),
        r"is quantised \(bitsandbytes\) and cannot be loaded on this machine \(.+\); install",
    ),
    "quantised somehow": (quantised("nosuch"), r"is quantised \(nosuch\) and cannot be loaded on this machine"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_is_refused_before_ray_starts(name: str, work: Path) -> None:
    spoil, message = BROKEN[name]
    spoil(work / "model")
    refusal = refused("run", "config.yaml", "generator.weight_push=lora", cwd=work)
    assert re.match(r"model\.path is \S*model, wh", refusal) and re.search(message, refusal), refusal
    assert "\n" not in refusal


def test_a_model_that_lacks_nothing_passes_with_all_its_parts(work: Path) -> None:
    """Would catch a check that refuses tied heads, buffers, shards or a classifier's left-over head."""
    done = called("validate", "config.yaml", "--deep", "judge={type: reward_model, path: 'embedded:reward'}", cwd=work)
    assert done.code == 0, done.err
    assert "models: every weight is there" in done.out and "weights: every value is a finite number" in done.out
    assert not done.err


def test_weights_that_are_no_numbers(work: Path) -> None:
    """`--deep` reads the weights; a run reads them where it loads them: tests/models/test_loading.py."""
    name = "model.layers.1.mlp.up_proj.weight"
    weights_with(lambda tensors: tensors[name][3, :2].fill_(torch.nan))(work / "model")
    assert refused("validate", "config.yaml", "--deep", cwd=work).startswith(
        f"model.path is model, whose weights are not all numbers: 2 of the 32768 values of {name} are NaN or infinite"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference={type: path, path: ./broken}", "reference.path is ./broken, which has no weights for model.norm.w"),
        ("judge={type: reward_model, path: ./nosuch}", "judge.path is ./nosuch; there is no such folder"),
        ("judge={type: reward_model, path: ./model}", "judge.path is ./model, which has no weights for score.weight"),
        (
            "evaluation.judges.other={type: normalise, judge: {type: reward_model, path: ./nosuch}}",
            "evaluation.judges.other.judge.path is ./nosuch; there is no such folder",
        ),
        (
            "judge={type: llm, engine: {path: ./nosuch}}",
            "judge.engine.path is ./nosuch; there is no such folder",
        ),
        (
            "model={path: ./model, adapter: ./nosuch} & learner.lora=null",
            "model.adapter is ./nosuch; there is no such folder: give the folder of an adapter",
        ),
        (
            "learner.lora.targets=[q_proj,nosuch]",
            "learner.lora.targets contains nosuch, and LlamaForCausalLM has no layer of that name; name some of "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or use all-linear",
        ),
        ("learner.lora.targets=[norm]", "LoRA does not fit LlamaForCausalLM: Target module LlamaRMSNorm"),
        (
            "judge.target=judge.py:scroe",
            "judge.target judge.py:scroe: judge.py has nothing named scroe; did you mean",
        ),
        (
            "judge.target=no_package.x:score",
            "judge.target no_package.x:score: there is no package or module no_p",
        ),
        ("judge.target=embedded:gol", "judge.target embedded:gol is not embedded; the embedded judges are gold"),
    ],
)
def test_what_else_a_config_names(override: str, message: str, work: Path) -> None:
    shutil.copytree(work / "model", work / "broken")
    weights_with(lambda tensors: tensors.pop("model.norm.weight"))(work / "broken")
    refusal = refused("run", "config.yaml", *override.split(" & "), cwd=work)
    assert message in refusal and "\n" not in refusal, refusal


def test_adapters_that_do_not_fit(work: Path) -> None:
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(work / "model"), lora).save_pretrained(work / "adapter")
    weights, settings = (work / "adapter" / f"adapter_{name}" for name in ("model.safetensors", "config.json"))
    whole = weights.read_bytes()

    def refuse() -> str:
        own = refused("run", "config.yaml", "learner.lora=null", "model.adapter=./adapter", cwd=work)
        other = refused("run", "config.yaml", "reference={type: path, path: ./adapter}", cwd=work)
        assert (
            own.removeprefix("model.adapter is ./adapter") == other.removeprefix("reference.path is ./adapter") != own
        )
        return other

    tensors = load_file(weights)
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][0, 0] = torch.inf
    save_file(tensors, weights)
    assert "1 of the 1024 values of base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight are NaN" in refuse()
    pointer(weights.name)(weights.parent)
    assert "adapter_model.safetensors is a Git-LFS pointer" in refuse()
    weights.write_bytes(whole)
    change_json(settings, target_modules=["k_proj"])
    assert "does not fit the model: the adapter lacks base_model.model.model.layers.0.self_attn.k_proj" in refuse()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT, None),
        ("{% for m in messages %}{{ m.content }}", "the chat template refuses prompt of line"),
        (
            CHAT.replace("m.role", "raise_exception('no ' + m.role) if m.role == 'assistant' else m.role"),
            "no assistant",
        ),
        ("{% for m in messages %}{{ m.text }}!{% endfor %}", "renders the same text whatever a prompt says; correct"),
        ("{{ messages[0].content }}", "renders the same text whatever an answer says; correct chat_template.jinja"),
    ],
    ids=["good", "syntax", "answers", "blind", "deaf"],
)
def test_chat_templates(template: str, message: str | None, work: Path) -> None:
    (work / "prompts.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    (work / "model" / "chat_template.jinja").write_text(template)
    if message is None:
        assert called("validate", "config.yaml", "--deep", cwd=work).code == 0
    else:
        assert re.search(message, refused("run", "config.yaml", cwd=work))


def test_a_process_of_its_own_is_as_quick(work: Path) -> None:
    """The T5 of the issue was still starting engines after 275 s."""
    saved_as(t5)(work / "model")
    started = time.monotonic()
    assert "an encoder-decoder" in refused("run", "config.yaml", cwd=work, run=online_dpo)
    assert time.monotonic() - started < 100  # of a machine that does other things, too


def test_a_hub_that_is_not_there(work: Path) -> None:
    refusal = refused("run", "config.yaml", "model.path=nobody/nothing", cwd=work)
    assert "of that id could not be fetched from the hub (" in refusal and "\n" not in refusal
