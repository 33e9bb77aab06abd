"""Against the definition: one unpadded sequence at a time through the plain model in float64."""

from __future__ import annotations

import pytest
import torch
from learner_kit import EOS, VOCAB, plain_peft, random_adapter, slow_token_logps
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaForCausalLM,
    OPTConfig,
)

from online_dpo.errors import DataError, ModelError
from online_dpo.learner import logprobs
from online_dpo.learner.frozen_models import verify_head
from online_dpo.learner.logprobs import (
    TokenBatch,
    batch_rows,
    completion_token_logps,
    completion_token_scores,
)
from online_dpo.types import Row

ROWS = [
    Row(prompt_ids=(5, 9, 11, 30), completion_ids=(7, 8, EOS)),
    Row(prompt_ids=(44,), completion_ids=(3, 60, 12, 5, 9, 31, 8)),  # a prompt of one token
    Row(prompt_ids=(5, 9), completion_ids=(EOS, 8, EOS, EOS, 4)),  # begins with EOS, has it inside
    Row(prompt_ids=(1, 2, 3, 4, 5, 6, 7, 8), completion_ids=(EOS,)),  # nothing but EOS
]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """PEFT as it loads an adapter with B != 0, in float64."""
    adapter = random_adapter(tiny, tmp_path_factory.mktemp("adapter"), seed=1)
    return plain_peft(tiny, adapter, tmp_path_factory.mktemp("peft"), dtype=torch.float64, train=True)


def padded_left(rows: list[Row], pad_id: int) -> TokenBatch:
    width = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    ids, real, answer = [], [], []
    for row in rows:
        p, c = list(row.prompt_ids), list(row.completion_ids)
        pad = width - len(p) - len(c)
        ids.append([pad_id] * pad + p + c)
        real.append([0] * pad + [1] * (len(p) + len(c)))
        answer.append([False] * (pad + len(p)) + [True] * len(c))
    return TokenBatch(torch.tensor(ids), torch.tensor(real), torch.tensor(answer))


PADDINGS = {"right": batch_rows, "left": padded_left}


def lora_gradients(model, scalar: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(scalar, list(named.values())), strict=True))


@pytest.mark.parametrize("chunk", [1, 2 * VOCAB, 2**22])
@pytest.mark.parametrize("side", PADDINGS)
def test_values_entropies_and_lora_gradients_match_the_definition(model, monkeypatch, side, chunk):
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_TOKENS", 1)
    weights = [torch.linspace(-1.0, 2.0, len(row.completion_ids), dtype=torch.float64) for row in ROWS]
    expected = [slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in ROWS]
    expected_gradients = lora_gradients(model, sum((w * e).sum() for w, e in zip(weights, expected, strict=True)))

    batch = PADDINGS[side](ROWS, EOS)
    found, collisions, _ = completion_token_logps(model, batch, with_collision=True)
    gradients = lora_gradients(model, sum((w * f).sum() for w, f in zip(weights, found, strict=True)))
    more = completion_token_logps(model, batch, with_collision=chunk > 1, with_entropy=True)
    assert all(map(torch.equal, more.logps, found))
    total = sum((w * (f + 2.0 * h)).sum() for w, f, h in zip(weights, more.logps, more.entropies, strict=True))
    gradients_of_both, expected_of_both = lora_gradients(model, total), torch.zeros((), dtype=torch.float64)
    scored, entropies = completion_token_scores(model, batch)

    columns = (found, collisions, scored, entropies, more.entropies, expected, weights)
    for row, f, c, s, h, differentiable, e, w in zip(ROWS, *columns, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)
        torch.testing.assert_close(s, e.detach(), rtol=0, atol=1e-12)
        logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
        by_torch = torch.distributions.Categorical(logits=logits[len(row.prompt_ids) - 1 : -1]).entropy()
        torch.testing.assert_close(h, by_torch.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(differentiable, by_torch, rtol=0, atol=1e-12)
        # Of one forward pass: the model's norms round gradients to float32, so two passes would not add up.
        table = logits[len(row.prompt_ids) - 1 : -1].log_softmax(dim=-1)
        again = table.gather(-1, torch.tensor([row.completion_ids]).T)
        expected_of_both = expected_of_both + (w * (again[:, 0] + 2.0 * by_torch)).sum()
        logits = logits.detach()
        same_twice = logits[len(row.prompt_ids) - 1 : -1].softmax(dim=-1).square().sum(dim=-1).log()
        torch.testing.assert_close(c, same_twice, rtol=0, atol=1e-12)
        assert not c.requires_grad
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-11)
    for name, gradient in lora_gradients(model, expected_of_both).items():
        torch.testing.assert_close(gradients_of_both[name], gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("side", PADDINGS)
def test_what_stands_on_padding_changes_nothing_at_all(model, side):
    first, second = (completion_token_logps(model, PADDINGS[side](ROWS, pad)).logps for pad in (EOS, 33))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_float32_stays_close_to_float64(tiny, model):
    single = AutoModelForCausalLM.from_pretrained(tiny).requires_grad_(False)
    with model.disable_adapter():
        for row, found in zip(ROWS, completion_token_logps(single, batch_rows(ROWS)).logps, strict=True):
            assert found.dtype == torch.float32
            expected = slow_token_logps(model, row.prompt_ids, row.completion_ids)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(DataError, match="a prompt has no tokens"):
        batch_rows([Row(prompt_ids=(), completion_ids=(4, 5))])


def test_a_head_that_wants_gradients_is_refused(tiny):
    with pytest.raises(ModelError, match="freeze it"):
        completion_token_logps(AutoModelForCausalLM.from_pretrained(tiny), batch_rows(ROWS))


SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "softcap": Gemma2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0
    ),
    "logit_scale": CohereConfig(**SMALL, intermediate_size=48, logit_scale=0.25),
    "logits_scaling": GraniteConfig(**SMALL, intermediate_size=48, logits_scaling=0.2),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4),
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_heads_match_the_definition(family):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(FAMILIES[family]).double()
    with torch.no_grad():  # far from flat distributions
        for parameter in base.parameters():
            parameter.mul_(3.0)
    verify_head(base.eval())
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()

    expected = torch.cat([slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in ROWS])
    expected_gradients = lora_gradients(model, expected.sum())
    found = torch.cat(completion_token_logps(model, batch_rows(ROWS)).logps)
    gradients = lora_gradients(model, found.sum())

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-6)


class Sharpened(LlamaForCausalLM):
    """Transforms its logits in a way that no config field tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 1.5 * output.logits
        return output


def test_an_unknown_transformation_of_the_logits_is_refused(tiny):
    verify_head(AutoModelForCausalLM.from_pretrained(tiny))
    with pytest.raises(ModelError, match="Sharpened transforms its logits in a way that is not known"):
        verify_head(Sharpened.from_pretrained(tiny))


def test_lora_on_the_head_is_refused(tiny):
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="head of LlamaForCausalLM is Linear; it must be"):
        completion_token_logps(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config), batch_rows(ROWS))
