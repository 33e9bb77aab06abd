"""Written answers -> token ids: an end where they ended, no control token that a text spells out, and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
from prompt_kit import BOS, EOS, ids, make_tokenizer

from online_dpo.data.candidates import CandidateEncoder
from online_dpo.data.encoding import AnswerEncoder
from online_dpo.errors import ModelError
from online_dpo.types import Prompt

AFTER_THE_TURN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_END = AFTER_THE_TURN.replace("{{ eos_token }}\n", "")
USER = {"role": "user", "content": "hi"}


def encoder_of(template: str | None = AFTER_THE_TURN, *, max_tokens: int = 40, **options: Any) -> CandidateEncoder:
    tokenizer = make_tokenizer(template=template, **options)
    answers = AnswerEncoder(tokenizer, {}, eos_token_ids=(EOS,), append_eos=True)
    return CandidateEncoder(tokenizer, answers, eos_token_ids=(EOS,), max_tokens=max_tokens)


def tokens(encoder: CandidateEncoder, prompt: Prompt, text: str, *, is_cut: bool) -> tuple[int, ...] | str:
    found = encoder.encode(prompt, text, is_cut=is_cut)
    return found if isinstance(found, str) else found.token_ids


def chat(encoder: CandidateEncoder) -> Prompt:
    return Prompt(prompt_id="p", token_ids=encoder.prompts.encode_chat((USER,)), messages=(USER,))


def plain(encoder: CandidateEncoder) -> Prompt:
    return Prompt(prompt_id="p", token_ids=encoder.prompts.encode_text("Is it?"), text="Is it?")


@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_plain_answer_is_its_tokens_and_an_end(adds_eos: bool) -> None:
    encoder = encoder_of(eos=adds_eos)
    assert plain(encoder).token_ids == (BOS, *ids("Is it?"))
    assert tokens(encoder, plain(encoder), " yes", is_cut=False) == (*ids(" yes"), EOS)
    assert tokens(encoder, plain(encoder), " yes", is_cut=True) == ids(" yes")


@pytest.mark.parametrize("template", [AFTER_THE_TURN, NO_END], ids=["line feed after the turn", "no end of its own"])
def test_a_chat_answer_is_what_the_policy_would_sample(template: str) -> None:
    """Would catch the line feed of a template behind the end, a second end, and an end where a limit cut the answer."""
    encoder = encoder_of(template)
    prompt = chat(encoder)
    assert tokens(encoder, prompt, "yes", is_cut=False) == (*ids("yes"), EOS)
    assert tokens(encoder, prompt, "yes", is_cut=True) == ids("yes")


@pytest.mark.parametrize("form", [plain, chat])
@pytest.mark.parametrize("token", ["<s>", "</s>", "<pad>"])
@pytest.mark.parametrize("text", ["a{} b", "{}", "a{}", "{}{}"])
def test_a_text_that_spells_a_control_token_is_refused(form: Any, token: str, text: str) -> None:
    """Would catch an answer that ends a turn, or begins another one, in the middle of what is trained on."""
    encoder = encoder_of()
    assert tokens(encoder, form(encoder), text.format(token, token), is_cut=False) in ("control_tokens", "empty")
    assert isinstance(tokens(encoder, form(encoder), "</ s> <s", is_cut=False), tuple)


@pytest.mark.parametrize("form", [plain, chat])
def test_what_does_not_fit_has_a_reason(form: Any) -> None:
    encoder = encoder_of(max_tokens=5)
    prompt = form(encoder)
    found = [tokens(encoder, prompt, text, is_cut=False) for text in ("", " \n", "abcd", "abcde", "x" * 200_000)]
    assert found == ["empty", "empty", (*ids("abcd"), EOS), "too_long", "too_long"]
    assert tokens(encoder, prompt, "abcde", is_cut=True) == ids("abcde")
    # What did not end may lose more of its end; text and tokens still tell the same.
    cut = encoder.encode(prompt, "abcdefgh", is_cut=True)
    assert not isinstance(cut, str) and cut.token_ids == ids("abcde") and cut.text.replace(" ", "") == "abcde"


def test_the_embedded_policy_reads_back_what_it_would_sample() -> None:
    """A byte-level BPE: prompt and answer together are the ids of the whole text, where no token spans both."""
    from online_dpo.embedded import resolve
    from online_dpo.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve("policy"), trust_remote_code=False)
    end = tokenizer.eos_token_id
    answers = AnswerEncoder(tokenizer, {}, eos_token_ids=(end,), append_eos=True)
    encoder = CandidateEncoder(tokenizer, answers, eos_token_ids=(end,), max_tokens=99)
    prompt = Prompt(prompt_id="p", token_ids=answers.encode_text("The film was"), text="The film was")
    found = tokens(encoder, prompt, " great. \U0001f600 D\u00e9j\u00e0 vu", is_cut=False)
    assert isinstance(found, tuple) and found[-1] == end
    assert [*prompt.token_ids, *found[:-1]] == list(
        tokenizer("The film was great. \U0001f600 D\u00e9j\u00e0 vu")["input_ids"]
    )
    assert tokens(encoder, prompt, f" great{tokenizer.eos_token} or not", is_cut=False) == "control_tokens"
    assert tokens(encoder, prompt, " a\ud800b", is_cut=False) == "template"


def test_a_template_that_cannot_write_an_answer_after_a_prompt_is_refused_at_the_start() -> None:
    moving = "{% for m in messages %}[{{ m.role }}/{{ messages | length }}]{{ m.content }}{% endfor %}[assistant]"
    encoder = encoder_of(moving)
    with pytest.raises(ModelError, match=r"cannot write an answer after a prompt.*remove candidates"):
        encoder.check(chat(encoder), "model.path is x")
    assert tokens(encoder, chat(encoder), "yes", is_cut=False) == "template"
    encoder_of().check(chat(encoder_of()), "model.path is x")
