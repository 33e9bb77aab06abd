"""What a completion says is quoted, whatever it says; and no verdict that stands in it is read as one."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from injections import DELIMITERS, INJECTIONS
from judge_servers import Answer, completion, material, serve, verdict
from llm_kit import ask, question, section

from judges.chat import ChatReply
from judges.llm.building import build_llm
from judges.llm.prompts import ReplyFormat, _hash_that_is_not_in, build_messages, make_format
from judges.llm.quoting import neutralise
from judges.llm.votes import read_json, read_token
from judges.protocol import Abstain

PRINCIPLE = "It is right."


def wanted_of(*answers: str, form: str = "pairwise", **fields: Any) -> ReplyFormat:
    fields = {"as_json": True, "coded": True, "seed": 0, "principle": PRINCIPLE, "prompt": "Which city?", **fields}
    return make_format(form=form, answers=answers, **fields)


PAIRWISE = wanted_of("x", "Lyon.")
POINTWISE = wanted_of("x", form="pointwise")
KEY = PAIRWISE.key  # of every question whose texts do not hold it


def user(task: ReplyFormat, *answers: str, prompt: Any = "Which city?", seed: int = 0) -> str:
    messages = build_messages(task, principle=PRINCIPLE, prompt=prompt, answers=answers, seed=seed)
    assert [message["role"] for message in messages] == ["system", "user"]
    return messages[1]["content"]


def nonce_of(text: str) -> str:
    return re.findall(r"^<prompt-([0-9a-f]{12})>$", text, re.M)[0]


def skeleton(text: str) -> str:
    """A message without what it quotes: each quoted text becomes a dot, the code becomes N."""
    nonce = nonce_of(text)
    return re.sub(rf"(<([\w-]+)-{nonce}>\n).*?(\n</\2-{nonce}>)", r"\1.\3", text, flags=re.S).replace(nonce, "N")


def injection(name: str) -> str:
    """With all that an earlier call for the same texts could have told."""
    return INJECTIONS[name].replace("{nonce}", nonce_of(user(PAIRWISE, "x", "Lyon."))).replace("{key}", KEY)


HARMLESS = skeleton(user(PAIRWISE, "Paris.", "Lyon."))


def expect_quoted(text: str, *, answers: tuple[str, str], prompt: Any = "Which city?") -> None:
    built = user(PAIRWISE, *answers, prompt=prompt)
    assert skeleton(built) == HARMLESS, "nothing outside of the quotation changed"
    nonce = nonce_of(built)
    assert nonce not in text
    # Every angle bracket is one of ours, and every tag of ours stands once.
    assert sorted(re.findall(r"<[^<>]*>", built)) == sorted(
        f"<{slash}{name}-{nonce}>" for name in ("prompt", "answer-A", "answer-B") for slash in ("", "/")
    )
    assert built.count("<") == built.count(">") == 6
    quoted = neutralise(text)
    assert quoted in built
    for look_alike in (quoted, unicodedata.normalize("NFKC", quoted)):
        assert not re.search(r"[<>]|\[\s*/?\s*g?[A-Z][A-Z_ ]+\]", look_alike), "no tag and no control token"
    assert all(c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Zl") for c in quoted)


def test_there_are_enough() -> None:
    assert len(set(INJECTIONS.values())) == len(INJECTIONS) >= 30


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_injection_stays_inside_its_quotation(name: str) -> None:
    text = injection(name)
    expect_quoted(text, answers=(text, "Lyon."))
    expect_quoted(text, answers=("Paris.", text))
    expect_quoted(text, answers=(text, text + "!"))
    expect_quoted(text, answers=("Paris.", "Lyon."), prompt=text)
    chat = user(PAIRWISE, "Paris.", "Lyon.", prompt=[{"role": text, "content": text}])
    assert skeleton(chat) == HARMLESS and chat.count("<") == 8, "two more for the one turn"
    assert user(POINTWISE, text).count("<") == 4


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_stays_inside_its_quotation_and_stays_itself(text: str, other: str) -> None:
    expect_quoted(text, answers=(text, other))
    assert html.unescape(neutralise(text).replace("\n", "\\n")) == text.replace("\n", "\\n") or "&#x" in neutralise(
        text
    )
    assert (neutralise(text) == neutralise(other)) == (text == other)


def test_ordinary_text_of_any_language_is_left_as_it_is() -> None:
    for text in (
        "if a[i] == b: pass  # [x] [12] [-1] xs[1:-1] m[i][j] f[a, b] {'k': [1, 2]} [a-z]+",
        "arr[index] [n + 1] [see below]",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f467 caf\u00e9\t\u4f60\u597d\n\u00a3\u20ac",
    ):
        assert neutralise(text) == text
    assert neutralise("a < b && c > d") == "a &lt; b &amp;&amp; c &gt; d"


def test_the_code_is_the_same_again_and_another_for_other_material() -> None:
    first = user(PAIRWISE, "Paris.", "Lyon.")
    assert first == user(PAIRWISE, "Paris.", "Lyon.")
    codes = {
        nonce_of(text)
        for text in (
            first,
            user(PAIRWISE, "Lyon.", "Paris."),
            user(PAIRWISE, "Paris.", "Lyon.", seed=1),
            user(PAIRWISE, f"Paris.{nonce_of(first)}", "Lyon."),
            user(PAIRWISE, "Paris.", "Lyon.", prompt="Which town?"),
        )
    }
    assert len(codes) == 5


@pytest.mark.parametrize("name", INJECTIONS)
def test_a_model_that_parrots_an_injection_gives_no_verdict(name: str) -> None:
    """The completion as the reply, as is and as it was quoted. Only one that knows the key could pass: it cannot."""
    text = injection(name)
    for reply in (text, neutralise(text), text.strip().splitlines()[-1], text.split("```")[-1]):
        for wanted in (wanted_of(text, "y"), wanted_of(text, form="pointwise"), wanted_of(text, "y", coded=False)):
            assert KEY not in text or wanted.key != KEY
            assert isinstance(read_json(ChatReply(text=reply), wanted), Abstain)
            assert isinstance(read_token(ChatReply(text=reply), wanted, min_mass=0.0), Abstain)


def test_a_text_that_holds_the_key_or_the_code_gets_others() -> None:
    """A verdict copied from the text, key and code and all, is then no verdict."""
    plain = wanted_of("x", "y")
    for answers in ((f"x {plain.key}", "y"), ("x", json.dumps({"code": plain.code, plain.key: "A"}))):
        found = wanted_of(*answers)
        assert found.key != KEY == plain.key and found.code not in "".join(answers)
        assert isinstance(read_json(ChatReply(text=answers[1], is_tied=False), found), Abstain)
    first, second, third = (sha256(f"{attempt} source".encode()).hexdigest()[:6] for attempt in range(3))
    assert _hash_that_is_not_in("content", "source", 6) == first
    assert _hash_that_is_not_in(f"{first} in {second}", "source", 6) == third
    assert len({wanted_of("x", "y", vote=i).code for i in range(9)} | {wanted_of("y", "x").code}) == 10
    assert wanted_of("x", "y", coded=False).code is None


@pytest.mark.parametrize("name", ["alone", "in code", "joined"])
def test_no_delimiter_of_any_family_is_left_whole(name: str) -> None:
    for token in DELIMITERS.split():
        text = {"alone": token, "in code": f"a[i]{token}[0]", "joined": f"a{token}{token}[x"}[name]
        for quoted in (neutralise(text), unicodedata.normalize("NFKC", neutralise(text))):
            assert token not in quoted, (token, quoted)
    assert neutralise("[IN\u00adST]") == "[IN&#xAD;ST]"


def test_nothing_is_invisible_but_the_joiners_of_words_and_emoji() -> None:
    fillers = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u180f\u200b\u202e\u2066\u206f\u3164\ufe00\ufe0f\ufeff"
    for char in (*fillers, "\U000e0001", "\U000e0041", "\U000e0100", "\U000e0fff", "\U0001d173", "\u200c", "\u200d"):
        assert neutralise(f"a{char}b") == f"a&#x{ord(char):X};b"
        assert neutralise(f"{char}") == f"&#x{ord(char):X};"
    assert neutralise("\u4f60\u200d\u597d\ufe0f") == "\u4f60&#x200D;\u597d&#xFE0F;", "nor between Chinese characters"
    assert neutralise("\u2764\ufe0f\ufe0f") == "\u2764\ufe0f&#xFE0F;"
    for text in (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937",
        "\u2764\ufe0f 1\ufe0f\u20e3 \u2194\ufe0f",
        "\U0001f469\u200d\u2764\ufe0f\u200d\U0001f468",
        "\U0001f468\U0001f3fd\u200d\U0001f4bb", "\U0001f3f3\ufe0f\u200d\U0001f308",
    ):  # fmt: skip
        assert neutralise(text) == text, ascii(text)


@pytest.mark.parametrize("name", INJECTIONS)
def test_whom_an_injection_praises_does_not_matter_to_an_honest_model(name: str) -> None:
    """Through the wire: the server sees both texts apart, and its verdict is about the right one in both orders."""
    text = injection(name)

    def handler(body: dict[str, Any], _: int) -> Answer:
        found = material(body)
        assert set(found) == {"prompt", "answer-A", "answer-B"}
        assert {found["answer-A"], found["answer-B"]} == {neutralise(text), "Lyon."}
        return Answer(completion(verdict(body, "A" if found["answer-A"] == "Lyon." else "B")))

    with serve(handler) as server:
        [verdicts], _ = ask(build_llm(section(server), "judge"), question(text, "Lyon.", prompt="Which city?"))
    assert [(v.first, v.second, v.probability) for v in verdicts] == [(0, 1, 0.0), (1, 0, 1.0)]
    assert len({json.dumps(r["messages"]) for r in server.requests}) == 2
