"""What a model wrote is shown as it is and does nothing: no element, no address is fetched, no character is hidden."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_dpo.annotation.web.rendering import MAX_MARKDOWN, shown, shown_prompt, visible

TAGS = "p br em strong s code pre ul ol li blockquote hr table thead tbody tr th td span h1 h2 h3 h4 h5 h6"
HARMLESS = set(TAGS.split())


class Elements(HTMLParser):
    """The elements, attributes and text of a piece of HTML, as a parser of another make reads it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def markdown(text: str) -> Elements:
    html = shown(text)["markdown"]
    assert html is not None
    return Elements(html)


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>1</script>) <javascript:alert(1)>",
    "![a](http://tracker.example/pixel.png) ![b][r]\n\n[r]: http://tracker.example/p",
    '[x](http://a.example/"onmouseover="alert(1))',
    '```"><script>alert(1)</script>\nx\n```',
    "|a|\n|:-:|\n|<b onclick=alert(1)>|",
    "<style>*{display:none}</style><base href=//evil.example><meta http-equiv=refresh content=0>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><![CDATA[x]]><?php ?>",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_harmless_elements_only(text: str) -> None:
    seen = markdown(text)
    assert seen.tags <= HARMLESS
    assert {name for name, _ in seen.attributes} <= {"class", "start"}
    assert shown(text)["text"] == text, "as text nothing is changed"


PIECES = st.sampled_from([*"<>&\"'`*_[]()!|:-#/\\ \nab=;", "javascript:", "http://x", "script", "\u202e"])


@given(st.lists(PIECES, max_size=60).map("".join))
def test_no_text_becomes_an_element_that_does_something(text: str) -> None:
    seen = markdown(text)
    assert seen.tags <= HARMLESS
    assert {name for name, _ in seen.attributes} <= {"class", "start"}


def test_links_and_images_are_words_with_their_address_behind_them() -> None:
    seen = markdown("[my bank](https://evil.example/) ![a *cat*](http://b.example/c.png) <http://c.example>")
    assert seen.text.strip() == (
        "my bank (https://evil.example/) [image: a cat http://b.example/c.png] http://c.example"
    )


def test_what_no_reader_sees_is_shown_by_its_code() -> None:
    text = "pay\u202eevil\u202c \x00\x1b[31m \u200b \ud800\r\nend"
    assert visible(text) == "pay[U+202E]evil[U+202C] [U+0000][U+001B][31m [U+200B] [U+D800]\nend"
    assert "\u202e" not in markdown("&#x202e;").text, "Markdown's own way to write a character"
    kept = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb \tcode"
    assert visible(kept) == kept, "joiners are part of Persian words and of emoji"
    shown(text)["text"].encode()  # type: ignore[union-attr] # every reply is UTF-8


def test_formatting_that_people_read_stays() -> None:
    seen = markdown("# T\n\n* **b**\n* `c`\n\n| a |\n|:-:|\n| 1 |\n\n```python\nx < 1\n```\nline\nbreak")
    assert {"h1", "ul", "strong", "code", "table", "td", "pre", "br"} <= seen.tags
    assert "x < 1" in seen.text


def test_a_very_long_text_is_shown_as_text_only() -> None:
    assert shown("a" * (MAX_MARKDOWN + 1))["markdown"] is None


def test_a_chat_is_shown_by_role_and_a_plain_prompt_without_one() -> None:
    chat = shown_prompt([{"role": "system", "content": "Be <b>kind</b>."}, {"role": "user", "content": "Hi"}])
    assert [(m["role"], m["text"]) for m in chat] == [("system", "Be <b>kind</b>."), ("user", "Hi")]
    assert [m["role"] for m in shown_prompt("Hi")] == [None]
