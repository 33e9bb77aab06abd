"""What the pages promise exists: generated parts, linked files, commands with their options, and named paths."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = sorted(page for page in DOCS.glob("*.md") if not page.name.startswith("checklist"))  # of an open issue
PAGES = [
    *SITE,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "online_dpo/embedded/README.md")),
]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
INCLUDED = re.compile(r"^```\{include\} (?P<target>\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`docs/generate.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and MyST write them in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words after `online-dpo` of every command on a page or in a config's comments."""
    text = page.read_text()
    if page.suffix == ".yaml":
        code = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    else:
        inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        code = "\n".join([match["body"] for match in FENCE.finditer(text)] + inline)
    for line in code.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:.*-- +)?online-dpo( +.*)?$", line.strip())
        if found:
            yield shlex.split(found[1] or "", comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for match in LINK.finditer(FENCE.sub("", page.read_text())):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)} links to {match['target']}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name_of(page)} links to {match['target']}; no such heading"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {
        line.strip()
        for match in FENCE.finditer((DOCS / "index.md").read_text())
        if match["kind"] == "{toctree}"
        for line in match["body"].splitlines()
    }
    assert {page.stem for page in SITE} - {"index"} == {name for name in listed if name and not name.startswith(":")}


def test_included_parts_are_made_or_there(generate: ModuleType) -> None:
    included = [(page, target) for page in SITE for target in INCLUDED.findall(page.read_text())]
    for page, target in included:
        if target.startswith("_generated/"):
            assert target.removeprefix("_generated/") in generate.PARTS, f"nothing makes {target} of {name_of(page)}"
        else:
            assert (page.parent / target).is_file(), f"{name_of(page)} takes in {target}, which is not there"
    made = {target.removeprefix("_generated/") for _, target in included if target.startswith("_generated/")}
    assert made == set(generate.PARTS), "every part that is made is taken in by a page"


def test_generated_parts_name_what_they_describe(generate: ModuleType) -> None:
    commands = generate.cli_reference()
    for name, command in generate.commands().items():
        assert f"\n## {name}\n" in f"\n{commands}"
        assert all(f"`{option}" in commands for p in command.params for option in p.opts if option.startswith("--"))
    assert "num_samples" in generate.config_reference()


def test_the_api_reference_has_every_public_name() -> None:
    import online_dpo

    page = (DOCS / "api.md").read_text()
    assert [name for name in online_dpo.__all__ if not re.search(rf"\b{name}\b", page)] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_commands_on_pages_exist(page: Path, generate: ModuleType) -> None:
    known = generate.commands()
    for name, *words in shown_commands(page):
        if "|" in words:  # `online-dpo run | resume | ...` names commands only
            assert {name, *words} - {"|"} <= known.keys(), f"{name_of(page)} shows commands that are not there"
            continue
        assert name in known, f"{name_of(page)} shows `online-dpo {name}`, which is no command"
        options = {spelling for parameter in known[name].params for spelling in parameter.opts}
        for word in words:
            if word.strip("[]").startswith("--"):
                assert word.strip("[]") in options, f"{name_of(page)}: `online-dpo {name}` has no {word}"


PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|md|yaml|svg))?)`")
"""A file, or a folder with a slash at its end, as pages write them."""


def test_architecture_names_paths_that_exist() -> None:
    named = PATH.findall((DOCS / "architecture.md").read_text())
    assert len(named) > 60
    roots = (ROOT, ROOT / "online_dpo/learner")  # the row of that room names folders inside it
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []


def test_a_change_names_three_files_at_most() -> None:
    table = (DOCS / "architecture.md").read_text().split("## What to touch for a change")[1]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 16
    for change, files in rows:
        together = re.split(r"\. (?=A |An |What )", files)[0]  # what follows is another, smaller change
        assert len(set(PATH.findall(together))) <= 3, change


def test_pages_name_tests_and_scripts_that_exist() -> None:
    named = re.compile(r"`(?:python |pytest )?((?:tests|benchmarks|configs|tools|docs)/[\w./-]+?\.\w+)")
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        for path in named.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{name_of(page)} names {path}, which is not there"


def test_some_commands_were_found() -> None:
    assert sum(len(list(shown_commands(page))) for page in PAGES) > 25
