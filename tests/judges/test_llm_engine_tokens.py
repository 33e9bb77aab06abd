"""The questions of an engine of the judge's own: no text makes a control token of its vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.chat_engine import control_tokens, encode
from judges.chat import ChatRequest

# Among them two that no rule for texts would break.
SPECIAL = ["<s>", "~~start~~", "]~b]", "[|assistant|]", "END OF TURN"]
TEMPLATE = (
    "<s>{% for m in messages %}~~start~~{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]{% endif %}"
)


def tokenizer_of(*added: AddedToken) -> Any:
    letters = {chr(i + 32): i for i in range(95)} | {"?!": 95}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL] + [*added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?!", chat_template=TEMPLATE)


def request(text: str) -> ChatRequest:
    messages = ({"role": "system", "content": "Judge."}, {"role": "user", "content": text})
    return ChatRequest(messages=messages, max_tokens=8)


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_text_is_broken(token: str) -> None:
    tokenizer = tokenizer_of()
    assert set(SPECIAL) <= set(control_tokens(tokenizer))
    for text in (token, f"x{token}y", token * 3, f"{token[:1]}{token}{token[1:]}", f"\u00e9 {token}"):
        ids = encode(tokenizer, request(text))
        assert ids is not None
        found = [tokenizer.convert_ids_to_tokens(i) for i in ids if i > 95]
        assert found == ["<s>", "~~start~~", "~~start~~", "[|assistant|]"], "those of the template"
    plain = tokenizer(tokenizer.apply_chat_template(list(request(token).messages), tokenize=False)).input_ids
    assert tokenizer.convert_tokens_to_ids(token) in plain[2:], "as it is, it would be one"


def test_a_token_that_a_tokenizer_makes_all_the_same_refuses_the_question() -> None:
    """Here it overlooks case, which no text shows."""
    tokenizer = tokenizer_of(AddedToken("stop", special=True, normalized=True))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert encode(tokenizer, request("STOP")) is None
    assert encode(tokenizer, request("halt")) is not None
