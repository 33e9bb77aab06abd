"""Small models, adapters and pairs for the learner's tests, made without the code under test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load as parse_safetensors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from online_dpo.config.learner import LearnerSection, LoraSection
from online_dpo.config.objective.pairwise import SigmoidObjective
from online_dpo.learner.learner import Learner, LearnerSpec
from online_dpo.types import Adapter, Completion, Pair, Prompt, Row

VOCAB, EOS = 61, 2
NAME = "org/tiny"


def save_tiny_llama(folder: Path) -> str:
    """A random Llama whose next-token distributions are far from flat (initializer_range), in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def random_adapter(model_folder: str, folder: Path, *, seed: int, scale: float = 0.1) -> Adapter:
    """An adapter whose B is not zero, written by PEFT itself."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale)
    model.save_pretrained(folder)
    return read_folder(folder)


def read_folder(folder: Path) -> Adapter:
    return Adapter.from_files(
        0, {n: (folder / n).read_bytes() for n in ("adapter_config.json", "adapter_model.safetensors")}
    )


def plain_peft(model_folder: str, adapter: Adapter, folder: Path, *, dtype: torch.dtype, train: bool = False) -> Any:
    """The adapter as PEFT alone loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in adapter.files().items():
        (folder / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=train).to(dtype).eval()


def slow_token_logps(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """One unpadded sequence through the plain model: the definition."""
    logps = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(dim=-1)
    return torch.stack([logps[len(prompt) - 1 + i, token] for i, token in enumerate(completion)])


def make_pairs(count: int, *, seed: int = 0, longest: int = 12) -> list[Pair]:
    """Pairs of different lengths; some completions end in EOS, some do not."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(low, high)))

    pairs = []
    for index in range(count):
        prompt = Prompt(prompt_id=f"p{index}", token_ids=ids(1, 6), text="")
        answers = []
        for sample in range(2):
            tokens = ids(2, longest) + ((EOS,) if rng.random() < 0.5 else ())
            answers.append(
                Completion(
                    prompt_id=prompt.prompt_id,
                    sample_index=sample,
                    token_ids=tokens,
                    text="",
                    finish_reason="stop",
                    sampler_logps=(0.0,) * len(tokens),
                    policy_version=0,
                    seed=0,
                )
            )
        pairs.append(Pair(prompt=prompt, chosen=answers[0], rejected=answers[1], margin=1.0, probability=0.7))
    return pairs


def make_spec(model_folder: str, adapter: Adapter | None = None, **changes: Any) -> LearnerSpec:
    """Fields of `LearnerSection` and of `LearnerSpec` by name, over small defaults."""
    section = {name: changes.pop(name) for name in list(changes) if name in LearnerSection.model_fields}
    lora = None if adapter else LoraSection(**{"r": 4, "alpha": 8, **section.pop("lora", {})})
    fields = {
        "model_folder": model_folder,
        "model_name": NAME,
        "dtype": "float32",
        "trust_remote_code": False,
        "lora": lora,
        "adapter": adapter,
        "learner": LearnerSection(**{"lr": 1e-2, "batch_pairs": 4, **section}),
        "objective": SigmoidObjective(type="sigmoid", beta=0.1),
        "seed": 7,
        "rounds": 4,
        "threads": 1,  # nothing here is large enough for two
    }
    return LearnerSpec(**{**fields, **changes})


def with_dropout(adapter: Adapter, dropout: float) -> Adapter:
    config = json.loads(adapter.config) | {"lora_dropout": dropout}
    return Adapter(version=0, weights=adapter.weights, config=json.dumps(config).encode())


def train(learner: Learner, pairs, round_index: int = 0, steps: range | None = None) -> list[dict[str, float]]:
    count = learner.begin_round(round_index, pairs)
    return [learner.step(step) for step in steps or range(count)]


def captured_gradients(learner: Learner, pairs) -> dict[str, torch.Tensor]:
    """What the first step of a round hands to the optimizer."""
    found: dict[str, torch.Tensor] = {}

    def capture(*_) -> None:
        found.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

    hook = learner.optimizer.register_step_pre_hook(capture)
    train(learner, pairs, steps=range(1))
    hook.remove()
    return found


def rows_of(pairs) -> list[Row]:
    return [Row.of(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return parse_safetensors(adapter.weights)
