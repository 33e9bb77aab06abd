"""No text can leave its script element, hide, or rearrange what stands beside it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_dpo.reports.page.safe_text import script_json, visible, visible_values

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)  # lone surrogates too


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain\ttext\nwith lines", "plain\ttext\nwith lines"),
        ("a\r\nb\rc", "a\nb⟨U+000D⟩c"),
        ("\x00\x1b[2J", "⟨U+0000⟩⟨U+001B⟩[2J"),
        ("abc\u202egpj.exe", "abc⟨U+202E⟩gpj.exe"),
        ("\u2066\u2069\u200b\ufeff\u00ad", "⟨U+2066⟩⟨U+2069⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+00AD⟩"),
        ("half \ud83d of a pair", "half ⟨U+D83D⟩ of a pair"),
        ("tag\U000e0041", "tag⟨U+E0041⟩"),
        ("👩‍👩‍👧 नमस्ते עברית é", "👩‍👩‍👧 नमस्ते עברית é"),
    ],
)  # fmt: skip
def test_characters_that_act_are_shown_by_their_code_points(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.recursive(ANY_TEXT | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(ANY_TEXT, v)))
def test_json_values_stay_in_their_script_element(value: object) -> None:
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    text.encode()
    assert json.loads(text) == visible_values(value)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"score": float("nan")})
