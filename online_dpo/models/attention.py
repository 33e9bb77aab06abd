"""Which attention computes what a model's config asks for."""

from __future__ import annotations

from typing import Any


def implementation_for(config: Any) -> str | None:
    """What to give `from_pretrained` as `attn_implementation`; None = what transformers would choose.

    transformers loads models with PyTorch's SDPA where it can. SDPA knows no soft cap, and the models hand theirs to it
    all the same: it is dropped without a word, and the log-probs of Gemma 2 are off by 0.02 nats per token.

    Args:
        config: of transformers.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
