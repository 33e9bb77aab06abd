"""Rows laid end to end, prompts shared, precisions, recomputation: against one unpadded sequence at a time."""

from __future__ import annotations

import copy
import weakref
from itertools import pairwise

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from learner_kit import EOS, VOCAB, slow_token_logps
from peft import LoraConfig, get_peft_model
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from online_dpo.config.learner import LearnerSection
from online_dpo.errors import DataError, ModelError
from online_dpo.learner import forward as forward_module
from online_dpo.learner import logprobs
from online_dpo.learner.forward import MIN_PACKED_WEIGHTS, Forward, uses_own_kernels
from online_dpo.learner.kernels import attention, block_attention
from online_dpo.learner.kernels.packing import Block, pack_rows, packed_tokens
from online_dpo.types import Row

LONG = (5, 9, 11, 30, 7, 7, 41, 3, 28, 16)
ROWS = [
    Row(prompt_ids=LONG, completion_ids=(7, 8, EOS)),
    Row(prompt_ids=(44,), completion_ids=(3, 60, 12, 5, 9, 31, 8)),  # a prompt of one token
    Row(prompt_ids=LONG, completion_ids=(EOS, 8, EOS, EOS, 4)),
    Row(prompt_ids=(44,), completion_ids=(EOS,)),
    Row(prompt_ids=LONG, completion_ids=(12,)),  # a third answer to the first prompt
    Row(prompt_ids=LONG[1:], completion_ids=(7, 8, EOS)),  # the same length as another prompt's answer
    Row(prompt_ids=LONG[:2], completion_ids=()),  # nothing
]
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "phi3": Phi3Config(**SMALL),
    "cohere": CohereConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4),
}
WINDOWED = {
    "mistral": (MistralConfig(**SMALL, sliding_window=4), "MistralModel has layers of sliding_attention"),
    "gemma2": (Gemma2Config(**SMALL, head_dim=8, sliding_window=4), "Gemma2Model has layers of sliding_attention"),
}
LAYOUTS = ("auto", "shared", "separate")


def build(config, *, dtype=torch.float64, dropout: float = 0.0):
    """PEFT with B != 0 around a random model far from flat distributions."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    lora = LoraConfig(
        r=2, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, lora).eval()


def section(**options) -> LearnerSection:
    return LearnerSection(**{"layout": "shared", **options})


def weighted(logps) -> torch.Tensor:
    """A sum in which every token counts differently."""
    return sum((row * torch.linspace(-1.0, 2.0, len(row))).sum() for row in logps)


def gradients(model, scalar: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(scalar, list(named.values())), strict=True))


def definition(model):
    """Values and LoRA gradients of `weighted` by the plain model."""
    rows = [row for row in ROWS if row.completion_ids]
    logps = [slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in rows]
    return [row.detach() for row in logps], gradients(model, weighted(logps))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_have_the_log_probs_and_gradients_of_separate_ones(family, layout):
    model = build(FAMILIES[family])
    expected, expected_gradients = definition(model)
    forward = Forward(model, section(layout=layout))
    assert forward.notices == []

    logps = forward.token_logps(ROWS, training=True).logps
    found = gradients(model, weighted(logps))

    assert [len(row) for row in logps] == [len(row.completion_ids) for row in ROWS]
    for row, value in zip([row for row in logps if len(row)], expected, strict=True):
        torch.testing.assert_close(row, value, rtol=0, atol=1e-9)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # Transformers takes norms in float32 even in a float64 model.
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm(), name
    assert max(gradient.abs().max() for gradient in expected_gradients.values()) > 1e-2


def test_float32_packed_rows_stay_close_to_float64():
    model = build(FAMILIES["qwen2"])
    expected, expected_gradients = definition(model)
    single = build(FAMILIES["qwen2"]).float()
    logps = Forward(single, section()).token_logps(ROWS, training=True).logps
    found = gradients(single, weighted([row.double() for row in logps]))
    for row, value in zip([row for row in logps if len(row)], expected, strict=True):
        assert row.dtype == torch.float32
        torch.testing.assert_close(row.double(), value, rtol=0, atol=2e-5)
    for name, gradient in expected_gradients.items():
        assert (found[name].double() - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("family", WINDOWED)
def test_a_sliding_window_keeps_its_separate_padded_rows_and_says_so(family):
    config, reason = WINDOWED[family]
    model = build(config)
    expected, expected_gradients = definition(model)
    forward = Forward(model, section(layout="shared"))
    assert forward.notices == [f"the learner pads its rows and repeats prompts: {reason}"]
    rows = [row for row in ROWS if row.completion_ids]
    logps = forward.token_logps(rows, training=True).logps
    for row, value in zip(logps, expected, strict=True):
        torch.testing.assert_close(row, value, rtol=0, atol=1e-9)
    found = gradients(model, weighted(logps))
    for name, gradient in expected_gradients.items():
        # Transformers takes norms in float32 even in a float64 model.
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.parametrize(
    ("device", "layout", "weights", "quantised", "own"),
    [
        *(("cpu", layout, 1, False, True) for layout in LAYOUTS),
        ("cuda", "auto", MIN_PACKED_WEIGHTS - 1, False, False),
        ("cuda", "auto", MIN_PACKED_WEIGHTS, False, True),
        ("cuda", "auto", MIN_PACKED_WEIGHTS, True, False),
        ("cuda", "separate", MIN_PACKED_WEIGHTS, False, False),
        ("cuda", "shared", 1, True, True),
    ],
)
def test_on_a_gpu_large_models_get_packed_rows(device, layout, weights, quantised, own):
    assert uses_own_kernels(device, section(layout=layout), weights=weights, is_quantised=quantised) is own


@pytest.mark.parametrize("autocast", ["off", "bfloat16"])
@pytest.mark.parametrize("fails", [False, True], ids=["chosen", "fallen back to"])
def test_the_trodden_path_is_transformers_and_peft(monkeypatch, autocast, fails):
    """What a GPU gets: every bit of it is that of PEFT's own layers and of SDPA, under `torch.autocast`."""
    if fails:  # as a kernel whose backward pass cannot be made
        monkeypatch.setattr(attention, "attend_blocks", lambda query, *_: BrokenBackward.apply(query))
        monkeypatch.setattr(forward_module, "_adopt_packing", adopt_without_comparing)
    else:
        monkeypatch.setattr(forward_module, "uses_own_kernels", lambda *_, **__: False)
    model, plain = (build(FAMILIES["qwen2"], dtype=torch.float32) for _ in range(2))
    forward = Forward(model, section(autocast=autocast))
    reason = "its packed rows have no backward pass here (RuntimeError: no kernel)"
    assert forward.notices == [f"the learner pads its rows and repeats prompts: {reason}"] * fails
    assert not [module for module in model.modules() if "forward" in vars(module)]
    rows = [row for row in ROWS if row.completion_ids]
    batch = logprobs.batch_rows(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "bfloat16"):
        hidden = plain.get_base_model().model(input_ids=batch.input_ids).last_hidden_state
        logits = torch.nn.functional.linear(hidden, plain.get_base_model().lm_head.weight).float()
    wanted = [
        logits[i, len(row.prompt_ids) - 1 :].log_softmax(-1)[range(len(row.completion_ids)), row.completion_ids]
        for i, row in enumerate(rows)
    ]
    found = forward.token_logps(rows, training=True).logps
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradient, expected = gradients(model, weighted(found)), gradients(plain, weighted(wanted))
    for name, value in expected.items():
        # The gradient of the head is rounded once more or less in bfloat16.
        assert (gradient[name] - value).norm() < (1e-4 if autocast == "off" else 2e-2) * value.norm(), name


class BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query):
        return query.clone()

    @staticmethod
    def backward(ctx, upstream):
        raise RuntimeError("no kernel")


def adopt_without_comparing(model, device):
    model.get_base_model().model.config._attn_implementation = attention.PACKED


def test_a_model_whose_attention_does_not_hand_on_the_packing_is_padded(monkeypatch):
    """Stands for every architecture that the look at its config does not tell."""
    model = build(FAMILIES["llama"])

    def deaf(module, *args, packing=None, **kwargs):
        return attention.packed_attention(module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(attention.AttentionInterface._global_mapping, attention.PACKED, deaf)
        forward = Forward(model, section(layout="auto"))
    (notice,) = forward.notices
    assert "LlamaModel takes no packed rows (the attention of LlamaAttention asks for no packing" in notice
    expected, _ = definition(model)
    for row, value in zip(forward.scores([row for row in ROWS if row.completion_ids])[0], expected, strict=True):
        torch.testing.assert_close(row, value, rtol=0, atol=1e-9)


def test_attention_of_a_kind_that_is_not_known_is_refused():
    query = torch.zeros(1, 2, 3, 4)
    packing = pack_rows([Row(prompt_ids=(1,), completion_ids=(2, 3))], min_shared=1)
    with pytest.raises(ModelError, match="Identity asks for softcap"):
        attention.packed_attention(torch.nn.Identity(), query, query, query, None, packing=packing, softcap=30.0)


def test_scores_are_those_of_the_plain_model():
    model = build(FAMILIES["llama"], dtype=torch.float32)
    forward = Forward(model, section(autocast="bfloat16"))
    logps, entropies = forward.scores(ROWS)
    plain = build(FAMILIES["llama"], dtype=torch.float32)
    for row, found, entropy in zip(ROWS, logps, entropies, strict=True):
        if not row.completion_ids:
            assert len(found) == 0
            continue
        with torch.no_grad():
            plain = build(FAMILIES["llama"], dtype=torch.float32)
            logits = plain(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[
                0, len(row.prompt_ids) - 1 : -1
            ]
        by_torch = torch.distributions.Categorical(logits=logits)
        # In the model's own precision whatever `autocast` says: bf16 products would be off by 1e-2.
        torch.testing.assert_close(found, by_torch.log_prob(torch.tensor(row.completion_ids)), rtol=0, atol=1e-5)
        torch.testing.assert_close(entropy, by_torch.entropy(), rtol=0, atol=1e-5)


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match="a prompt has no tokens"):
        pack_rows([Row(prompt_ids=(), completion_ids=(4, 5))], min_shared=1)


def test_sharing_counts_a_prompt_once_and_equal_shapes_make_one_block():
    def row(prompt, *completion):
        return Row(prompt_ids=prompt, completion_ids=completion)

    rows = [row((1, 2), 3, 4, 5), row((6, 7), 8), row((1, 2), 9), row((6, 7), 3, 4, 5), row((8,), 1), row((8,), 2)]
    packed = pack_rows(rows, min_shared=2)
    assert packed.blocks == (Block(2, 2, (3, 1)), Block(2, 1, (1,)))
    assert packed.num_tokens == packed_tokens(rows, min_shared=2) == 16
    assert packed_tokens(rows, min_shared=None) == 20
    assert packed_tokens(rows, min_shared=1) == 15
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2] * 2 + [0, 1] * 2]


@pytest.mark.parametrize("min_shared", [2, None])
@pytest.mark.parametrize(("tile", "piece"), [(2**18, 128), (1, 3), (500, 1)])
def test_blocks_and_flex_attention_are_dense_attention_under_the_mask(monkeypatch, tile, piece, min_shared):
    """The mask is the GPU's; here it runs through FlexAttention's reference."""
    monkeypatch.setattr(block_attention, "TILE_ELEMENTS", tile)
    monkeypatch.setattr(block_attention, "PIECE_QUERIES", piece)
    packed = pack_rows([row for row in ROWS for _ in range(2)], min_shared=min_shared)
    torch.manual_seed(0)
    size = packed.num_tokens
    query, key, value = (torch.randn(size, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    upstream = torch.randn(size, 4, 8, dtype=torch.float64)

    places = torch.arange(size)
    dense = packed.sees()(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, dim=1)) * 0.3
    weights = scores.masked_fill(~dense, -torch.inf).softmax(dim=-1)
    by_hand = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, dim=1))
    by_blocks = block_attention.attend_blocks(query, key, value, packed.blocks, 0.3)
    torch.testing.assert_close(by_blocks, by_hand, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((by_hand * upstream).sum(), [query, key, value])
    found = torch.autograd.grad((by_blocks * upstream).sum(), [query, key, value])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)

    bias = torch.where(dense, 0.0, -torch.inf).double()
    batched = [tensor.detach().transpose(0, 1)[None] for tensor in (query, key, value)]
    by_flex = flex_attention(*batched, score_mod=lambda s, b, h, q, k: s + bias[q, k], scale=0.3, enable_gqa=True)
    torch.testing.assert_close(by_flex[0].transpose(0, 1), by_hand.detach(), rtol=0, atol=1e-12)


# Precision


def test_bfloat16_products_round_no_more_than_torch_autocast_does():
    rows = [row for row in ROWS if row.completion_ids]
    logps, grads = {}, {}
    for way in ("float32", "autocast", "ours"):
        model = build(FAMILIES["qwen2"], dtype=torch.float32)
        if way == "ours":
            logps[way] = torch.cat(Forward(model, section(autocast="bfloat16")).token_logps(rows, training=True).logps)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
                logps[way] = torch.cat([slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in rows])
        found = gradients(model, weighted(logps[way].split([len(row.completion_ids) for row in rows])))
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        grads[way] = torch.cat([gradient.flatten() for gradient in found.values()])
    for values in (logps, grads):
        ours, theirs = ((values[way] - values["float32"]).norm() for way in ("ours", "autocast"))
        assert 0.1 * theirs < ours < 1.5 * theirs
        assert ours < 0.2 * values["float32"].norm()


@pytest.mark.parametrize("autocast", ["off", "bfloat16"])
def test_a_reference_equal_to_the_policy_has_exactly_its_log_probs(autocast):
    forward = Forward(build(FAMILIES["llama"], dtype=torch.float32), section(autocast=autocast))
    with torch.no_grad():
        reference = forward.token_logps(ROWS, training=False).logps
    for ours, theirs in zip(forward.token_logps(ROWS, training=True).logps, reference, strict=True):
        assert torch.equal(ours, theirs)


# Compilation


def has_compiler() -> bool:
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def test_compiled_layers_have_the_same_log_probs_and_gradients(monkeypatch):
    if not has_compiler():  # the same graphs and their derivatives, run by PyTorch's own kernels
        compile_layer = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda module, **options: compile_layer(module, backend="aot_eager", **options)
        )
    plain, compiled = (build(FAMILIES["llama"], dtype=torch.float32) for _ in range(2))
    expected = Forward(plain, section()).token_logps(ROWS, training=True).logps
    wanted = gradients(plain, weighted(expected))
    torch._dynamo.utils.counters.clear()
    forward = Forward(compiled, section(compile=True))
    assert forward.notices == []
    logps = forward.token_logps(ROWS, training=True).logps
    found = gradients(compiled, weighted(logps))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled, not left as it is
    for ours, theirs in zip(logps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def test_without_a_compiler_the_layers_stay_as_they_are_with_one_line(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    model = build(FAMILIES["llama"], dtype=torch.float32)
    expected = Forward(build(FAMILIES["llama"], dtype=torch.float32), section()).token_logps(ROWS, training=True).logps
    forward = Forward(model, section(compile=True))
    (notice,) = forward.notices
    assert notice.startswith("the learner runs uncompiled: ") and "\n" not in notice
    for ours, theirs in zip(forward.token_logps(ROWS, training=True).logps, expected, strict=True):
        assert torch.equal(ours, theirs)


# Memory


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("autocast", ["off", "bfloat16"])
def test_recomputed_activations_change_no_gradient_and_are_not_kept(autocast, dropout):
    results, kept = [], []
    for recompute in (False, True):
        model = build(FAMILIES["llama"], dtype=torch.float32, dropout=dropout)
        forward = Forward(model, section(autocast=autocast, activation_checkpointing=recompute))
        sizes: list[int] = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logps = forward.token_logps(ROWS, training=True).logps
        results.append((torch.cat(logps).detach(), gradients(model, weighted(logps))))
        kept.append(sum(sizes))
        assert not any(module.training for module in model.modules())
    (plain, plain_gradients), (again, again_gradients) = results
    assert torch.equal(plain, again)
    for name, gradient in plain_gradients.items():
        assert torch.equal(again_gradients[name], gradient)
    assert kept[1] < kept[0] / 4


class Watcher(TorchDispatchMode):
    """Notes the shapes of matrix products, and how many elements of tensors `[.., width]` live at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.alive, self.peak = width, {}, 0
        self.products: list[tuple[tuple[int, ...], ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.products.append((tuple(left.shape), tuple(right.shape)))
        for tensor in tree_leaves(out):
            is_new = isinstance(tensor, torch.Tensor) and id(tensor) not in self.alive  # an in-place result is not
            # The head's transposed weight is as wide as its logits.
            if (
                is_new
                and tensor.ndim == 2
                and tensor.shape[1] == self.width
                and tensor.shape[0] != SMALL["hidden_size"]
            ):
                self.alive[id(tensor)] = tensor.numel()
                weakref.finalize(tensor, self.alive.pop, id(tensor))
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def test_never_more_than_two_chunks_of_logits_live_backward_included(monkeypatch):
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_ELEMENTS", 5 * VOCAB)
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_TOKENS", 1)
    model = build(FAMILIES["llama"], dtype=torch.float32)
    forward = Forward(model, section(layout="separate"))
    rows = ROWS * 10  # 200 completion tokens
    with Watcher(VOCAB) as watcher:
        torch.cat(forward.token_logps(rows, training=True).logps).sum().backward()
    assert 5 * VOCAB <= watcher.peak <= 10 * VOCAB


def test_nothing_is_computed_for_frozen_weights():
    """Of the decoder's products, those with frozen weights: all once forward; backward all but the first layer's three
    that read the frozen embedding; and never one that gives a frozen weight a gradient."""
    model = build(FAMILIES["llama"], dtype=torch.float32)
    forward = Forward(model, section(layout="separate"))
    with Watcher(0) as watcher:
        logps = torch.cat(forward.token_logps(ROWS, training=True).logps)
    going, watcher.products = watcher.products, []
    with watcher:
        logps.sum().backward()
    returning = watcher.products
    tokens = packed_tokens(ROWS, min_shared=None)
    rank = 2

    def frozen(products):
        return [(left, right) for left, right in products if rank not in (*left, *right)]

    per_layer = 7
    assert len(frozen(going)) == 2 * per_layer + 2  # and the head's two: its gradient is taken in the forward pass
    assert len(frozen(returning)) == 2 * per_layer - 3
    assert all(left[0] == tokens for left, _ in frozen(returning))  # [tokens, out] x [out, in]: none is [out, tokens]
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)


def test_items_fill_groups_up_to_the_budget_longest_first():
    forward = Forward(build(FAMILIES["llama"]), section(micro_batch_tokens=40))
    items = [ROWS[:1] + ROWS[2:3], ROWS[1:2] + ROWS[3:4], ROWS[4:5], ROWS[5:6]]  # 18, 9, 11 and 12 tokens
    assert [packed_tokens(item, min_shared=1) for item in items] == [18, 9, 11, 12]
    assert forward.groups(items) == [[0, 3], [2, 1]]
    flat = [index for group in forward.groups(items * 9) for index in group]
    assert sorted(flat) == list(range(36))
    lengths = [max(len(r.prompt_ids) + len(r.completion_ids) for r in (items * 9)[i]) for i in flat]
    assert all(a >= b for a, b in pairwise(lengths))
