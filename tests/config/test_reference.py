"""`online-dpo config`: every field is described, and what is printed is what is accepted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_kit import BASE, RUN_CONFIGS
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from online_dpo.cli import print_config
from online_dpo.commands.config import json_schema, markdown_reference, yaml_reference
from online_dpo.commands.quickstart import CONFIG
from online_dpo.config.base import Section
from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import UserError

CONFIGS = [*RUN_CONFIGS, CONFIG]


def all_sections(base: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for section in base.__subclasses__():
        yield section
        yield from all_sections(section)


def undocumented(section: type[BaseModel]) -> list[str]:
    """What lacks a description; `type` is described by the section that it chooses."""
    fields = section.model_fields.items()
    missing = [f"{section.__name__}.{name}" for name, info in fields if not info.description and name != "type"]
    return missing if section.__dict__.get("__doc__") else [section.__name__, *missing]


def test_every_section_and_every_field_has_a_description() -> None:
    sections = set(all_sections())
    assert RunConfig in sections and len(sections) > 50
    assert [name for section in sections for name in undocumented(section)] == []
    schema = json_schema()
    properties = [field for part in (schema, *schema["$defs"].values()) for field in part["properties"].values()]
    assert all(field["description"] for field in properties)
    # Whole sentences: they are read alone, in an editor.
    assert all(re.search(r"\.$", field["description"]) for field in properties)


def test_a_new_field_without_a_description_is_found() -> None:
    class New(BaseModel):
        model_config = Section.model_config
        described: int = 1
        """With a description."""
        bare: int = 1

    assert undocumented(New) == ["New", "New.bare"]


def test_what_is_live_in_the_printed_yaml_are_the_defaults() -> None:
    live = yaml.safe_load(yaml_reference())
    expected = load_config(BASE).model_dump(mode="json")
    del expected["model"]["path"]  # what BASE sets
    assert live == {**expected, "prompts": None, "judge": None}
    live["model"]["path"] = BASE["model"]["path"]
    assert load_config({**live, "prompts": BASE["prompts"], "judge": BASE["judge"]}) == load_config(BASE)


def alternatives(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The sections that stand in comments, those inside of them too, each with its own fields."""
    for start, line in enumerate(lines):
        if not re.match(r" *#\w+:$", line):
            continue
        indent = len(line) - len(line.lstrip())
        later = lines[start + 1 :]
        length = next((i for i, text in enumerate(later) if len(text) - len(text.lstrip()) <= indent), len(later))
        block = [re.sub(r"^( *)#(?! )", r"\1", text) for text in lines[start : start + 1 + length]]
        [found] = yaml.safe_load("\n".join(block)).values()
        inner = indent + 2
        if isinstance(found, list):
            [found], inner = found, inner + 2
        elif isinstance(found, dict) and found.keys() == {"NAME"}:
            found, inner = found["NAME"], inner + 2
        if found is not None:
            alike = re.findall(rf"^ {{{inner}}}# As above: ([\w, \n#]+)\.", "\n".join(block), re.MULTILINE)
            yield {**dict.fromkeys(re.findall(r"\w+", " ".join(alike)), ...), **found}
            yield from alternatives(block[1:])


def test_what_is_commented_out_in_the_printed_yaml_has_every_other_section_with_its_defaults() -> None:
    parts = json_schema()["$defs"]

    def fits(section: dict[str, Any], part: dict[str, Any]) -> bool:
        fields, required = part["properties"], part.get("required", ())
        return section.keys() == fields.keys() and all(
            value is ...
            or value == fields[name].get("const", fields[name].get("default"))
            or (name in required and value is None)
            or (isinstance(value, dict) and not isinstance(fields[name].get("default"), str | int | float))
            for name, value in section.items()
        )

    found = list(alternatives(yaml_reference().splitlines()))
    names = [[name for name, part in parts.items() if fits(section, part)] for section in found]
    assert all(len(fitting) == 1 for fitting in names), [found[i] for i, fitting in enumerate(names) if not fitting]
    live = {type(value).__name__ for _, value in load_config(BASE) if isinstance(value, Section)}
    live -= {"PromptsSection", "PythonJudge"}  # what BASE sets
    assert {name for [name] in names} == parts.keys() - live


def test_the_markdown_has_every_section_and_field_once() -> None:
    page, schema = markdown_reference(), json_schema()
    headings = re.findall(r"^###? .*", page, re.MULTILINE)
    assert len(headings) == len(set(headings)) == 1 + len(schema["$defs"])
    names = {name for part in (schema, *schema["$defs"].values()) for name in part["properties"]} - {"type"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == names
    assert all(row.replace("\\|", "").count("|") == 5 for row in page.splitlines() if row.startswith("|"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_documented_config(path: Path) -> None:
    validator = Draft202012Validator(json_schema())
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []
    assert list(validator.iter_errors(load_config(path).model_dump(mode="json"))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling": {"num_sample": 2}},
        {"learner": {"lr": "fast"}},
        {"judge": {"type": "oracle"}},
        {"evaluation": {"judges": {"a b": {"type": "python", "target": "j"}}}},
        {"model": {}},
    ],
)
def test_the_schema_refuses_what_loading_refuses(wrong: dict[str, Any]) -> None:
    validator = Draft202012Validator(json_schema())
    assert list(validator.iter_errors({**BASE, "objective": {"beta": 0.2}})) == []
    assert list(validator.iter_errors({**BASE, **wrong})) != []


def test_printing_imports_nothing_slow() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from online_dpo.cli import app\n"
        "for options in ([], ['--schema'], ['--markdown']):\n"
        "    result = CliRunner().invoke(app, ['config', *options])\n"
        "    assert result.exit_code == 0 and len(result.output) > 10_000, result.output\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_two_forms_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="--schema and --markdown are both given; choose one of them"):
        print_config(schema=True, markdown=True)
