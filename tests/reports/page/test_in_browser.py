"""The report in a real Chromium: nothing that a model wrote acts, and every part works with the keyboard alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from browser_kit import PHONE, Visit, screenshots, walk_by_keyboard
from page_kit import page_of
from shown_runs import Size, babble, write_run

from online_dpo.reports.page.report import run_page
from online_dpo.reports.page.writing import put_page
from online_dpo.store.run_store import RunStore

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
if TYPE_CHECKING:
    from playwright.sync_api import Page

ATTACKS = (
    "</script><script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 2'>",
    "<!--<script>",
    "\"'><svg onload=window.attacked=3>",
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt;bold&lt;/b&gt;",
    "<b>bold</b> javascript:window.attacked=4",
    "txt\u202egpj.exe \u2066left\u2069 \x00\x07\x1b[31m \u200bhidden\u00ad",
    "line\u2028separator\u2029 </style><style>*{display:none}</style>",
    "w" * 4000,
    "עברית ‏ and العربية mixed with English 12 34",
)


def hostile(draw: random.Random, size: Size) -> str:
    return f"{draw.choice(ATTACKS)} {babble(draw, size)}"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    write_run(folder / "run", Size(prompts=12), hostile, name=lambda key: f"{key} <i>&'\"#%/..\u202e", warnings=ATTACKS)
    return written(folder / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_run(folder / "run", Size(rounds=3, prompts=60))
    return written(folder / "run")


def written(run: Path) -> Path:
    file = run.parent / "report.html"
    with RunStore.read(run) as store:
        put_page(file, run_page(store))
    return file


def cards(page: Page) -> list[str]:
    return page.locator("#answers-cards article h3").all_inner_texts()


def test_nothing_that_was_sampled_acts(attacked: Path, visit: Visit, tmp_path: Path) -> None:
    page = visit().page
    page.goto(attacked.as_uri())
    page.locator("#answers-controls").get_by_label("Round").select_option("all")
    for summary in page.locator("article summary").all():
        summary.click()
    assert page.evaluate("window.attacked") is None
    assert page.evaluate("document.scripts.length") == 2, "the data and our own"
    assert page.evaluate("document.querySelectorAll('img, iframe, b > *, style ~ style, i').length") == 0
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    shown = page.inner_text("body")
    for text in ("</script><script>window.attacked = 1</script>", "<!--<script>", "<b>bold</b>", "&lt;b&gt;bold"):
        assert text in shown
    assert "{{ 7 * 7 }} {% raw %} ${7*7}" in shown and "txt⟨U+202E⟩gpj.exe" in shown and "⟨U+0000⟩⟨U+0007⟩" in shown
    assert not set(shown) & set("\u202e\u2066\x00\x07\u200b")
    screenshots(page, tmp_path, "attacked", full_page=False)


def test_it_works_without_a_mouse(plain: Path, visit: Visit) -> None:
    page = visit(viewport=PHONE).page
    page.goto(plain.as_uri())
    stops = walk_by_keyboard(page, most=400)
    assert {"select Round", "select Outcome", "select Before", "input Search", "a Link to this"} <= {
        stop.splitlines()[0] if "Link" in stop else " ".join(stop.split()[:2]) for stop in stops
    }
    plot = page.locator("#chart-loss svg.plot")
    plot.focus()
    page.keyboard.press("Home")
    assert page.inner_text("#chart-loss output") == "round 1 · loss 0.6900"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#chart-loss output") == "round 2 · loss 0.6890"


def test_orders_filters_and_search_are_those_of_the_data(plain: Path, visit: Visit) -> None:
    page = visit().page
    page.goto(plain.as_uri())
    shown = page_of(plain.parent / "run").data["rounds"][2]["cards"]
    assert len(cards(page)) == 20 < len(shown), "the last round comes first, a part of it"
    form = page.locator("#answers-controls")
    form.get_by_label("Outcome").select_option("tie")
    expect(page.locator("#answers-count")).to_contain_text(f"of the {len(shown)} prompts")
    expect(page.locator("#answers-cards article")).to_have_count(len([card for card in shown if card["o"] == "tie"]))
    assert set(cards(page)) == {f"Prompt {card['id']}" for card in shown if card["o"] == "tie"}
    form.get_by_label("Outcome").select_option("")
    form.get_by_label("Order").select_option("margin")
    page.wait_for_timeout(150)
    by_margin = sorted((card for card in shown if "p" in card), key=lambda card: -card["p"][0]["m"])
    margins = [card["p"][0]["m"] for card in by_margin[:20]]
    listed = {card["id"]: card["p"][0]["m"] for card in by_margin}
    assert [listed[name.removeprefix("Prompt ")] for name in cards(page)] == margins
    form.get_by_label("Search").press_sequentially(shown[0]["a"][0]["t"].upper())
    expect(page.locator("#answers-cards article")).to_have_count(1)
    assert cards(page) == [f"Prompt {shown[0]['id']}"]
    form.get_by_label("Search").fill("no such words anywhere")
    expect(page.locator("#answers-cards article")).to_have_count(0)
    assert "No prompt of this page fits" in page.inner_text("#answers-cards")


def test_a_link_leads_to_one_prompt_whatever_is_filtered(plain: Path, attacked: Path, visit: Visit) -> None:
    page = visit().page
    page.goto(f"{plain.as_uri()}#answer-1-r0-7")
    assert page.evaluate("document.activeElement.querySelector('h3').textContent") == "Prompt r0-7"
    assert page.locator("#answers-controls").get_by_label("Round").input_value() == "1"
    page.goto(attacked.as_uri())
    anchor = page.locator("#answers-cards article").nth(3).locator("header a")
    name = cards(page)[3].removeprefix("Prompt ")
    anchor.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article:focus")).to_have_count(1)
    assert page.url.endswith("#answer-2-" + quote(name, safe="!'()*~"))
    page.reload()
    assert page.evaluate("document.activeElement.querySelector('h3').textContent") == f"Prompt {name}"
    page.evaluate("location.hash = '#answer-1-gone'")
    expect(page.locator("#answers-count")).to_contain_text("not on this page")


def test_before_and_after_are_of_the_policies_that_were_chosen(plain: Path, visit: Visit) -> None:
    page = visit().page
    page.goto(plain.as_uri())
    [found] = page_of(plain.parent / "run").data["sets"]
    form, sides = (
        page.locator("#held-out-controls"),
        page.locator("#held-out-cards article").first.locator(".side .content"),
    )
    assert sides.all_text_contents()[:2] == [found["rows"][0]["answers"][version]["t"] for version in ("0", "3")]
    form.get_by_label("Before").select_option("2")
    form.get_by_label("Order").select_option("+gold")
    page.wait_for_timeout(150)
    gains = {row["id"]: row["answers"]["3"]["s"]["gold"] - row["answers"]["2"]["s"]["gold"] for row in found["rows"]}
    names = page.locator("#held-out-cards article h3").all_inner_texts()
    assert [name.removeprefix("Prompt ") for name in names] == sorted(gains, key=lambda name: -gains[name])


@pytest.mark.parametrize(
    "size",
    [
        Size(rounds=8, prompts=150, samples=4, words=50, held_out=40),
        pytest.param(Size(rounds=50, prompts=500, samples=4, words=60, held_out=100), marks=pytest.mark.exhaustive),
    ],
    ids=["small", "whole"],
)
def test_a_large_run_is_a_sample_that_says_so(size: Size, visit: Visit, tmp_path: Path) -> None:
    write_run(tmp_path / "run", size)
    file = written(tmp_path / "run")
    assert file.stat().st_size < 5_000_000
    page = visit().page
    page.goto(file.as_uri())
    page.locator("#answers-controls").get_by_label("Round").select_option("all")
    num_prompts = size.rounds * size.prompts
    said = f"All rounds have {num_prompts} prompts and {num_prompts * size.samples} completions; those here are its"
    expect(page.locator("#answers-count")).to_contain_text(said)
    screenshots(page, tmp_path, "large", full_page=False)
