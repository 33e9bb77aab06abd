"""`online-dpo config`: every field of a config with its default and meaning, as YAML, JSON schema or Markdown.

All three are written from one JSON schema, so that they cannot differ from each other or from what is accepted.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from online_dpo.config.base import Section
from online_dpo.config.run import RunConfig

WIDTH = 120
NO_BREAK = "\N{NO-BREAK SPACE}"
HEADER = """\
# Every field of a config with its default. A line that begins with "# " explains; take the "#" off any other comment
# to use what it says. Fields marked "required" have no default. What is left out of a config has its default.
"""

CONTAINERS = {"additionalProperties": "NAME:", "patternProperties": "NAME:", "items": "-"}
"""How an entry of a mapping or list is written, by the keyword of JSON schema that describes it."""

Node = Mapping[str, Any]
"""A part of a JSON schema."""


def json_schema(config: type[Section] = RunConfig) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a config file, for editors: `# yaml-language-server: $schema=FILE`.

    Args:
        config: what the whole file is.
    """
    schema = config.model_json_schema()
    for part in schema["$defs"].values():
        kind = part["properties"].get("type", {})
        if "const" in kind:
            kind["description"] = f"`{kind['const']}`: {_first_paragraph(part)}"
        for field in part["properties"].values():
            for option in (field, *field.get("anyOf", ())):
                if "patternProperties" in option:  # of names: other keys are refused
                    option["additionalProperties"] = False
    if config is RunConfig:
        schema["$defs"]["SigmoidObjective"]["required"].remove("type")  # the type of an objective that names none
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def yaml_reference() -> str:
    """A commented YAML file of all sections and fields, in which only the defaults are live."""
    reference = _Reference(json_schema())
    return HEADER + "\n".join(reference.yaml_lines(reference.root, path="", depth=0, is_live=True)) + "\n"


def markdown_reference(config: type[Section] = RunConfig) -> str:
    """A table of fields for each section, and for each member of a union; of the config as `json_schema` has it."""
    reference = _Reference(json_schema(config))
    return "\n".join(reference.markdown_lines(reference.root))


class _Reference:
    """A walk through the schema of a config.

    Attributes:
        root: the schema of the whole file.
    """

    def __init__(self, schema: Node) -> None:
        self.root = schema
        self._parts: Mapping[str, Node] = schema["$defs"]
        self._shown: dict[str, str] = {}  # the field under which a part was described, by its name

    # YAML

    def yaml_lines(
        self, part: Node, path: str, depth: int, *, is_live: bool, others: Sequence[Node] = ()
    ) -> Iterator[str]:
        """The fields of a section.

        Args:
            part: the schema of the section.
            path: of the section, such as `evaluation.sets`.
            depth: of the section in the file.
            is_live: whether the fields count, or are inside a comment.
            others: the members of the same union that were described; what they have alike is only named.
        """
        own, alike = _compare(part, others)
        for name, field in own.items():
            is_required = name in part.get("required", ())
            if depth == 0:
                yield ""
            if name == "type":
                yield _indented(f"type: {field['const']}", depth)
                continue
            yield from _comment(self._explained(field), depth)
            place = f"{path}.{name}".lstrip(".")
            yield from self._field_lines(name, field, place, depth, is_required=is_required, is_live=is_live)
        if alike:
            yield from _comment(f"As above: {', '.join(alike)}.", depth)

    def _field_lines(
        self, name: str, field: Node, path: str, depth: int, *, is_required: bool, is_live: bool
    ) -> Iterator[str]:
        """A field with its default, and what else it may be as comments."""
        options = self._sections_in(field)
        known = [option for option in options if option in self._shown]
        new = [option for option in options if option not in self._shown]
        self._shown |= dict.fromkeys(new, path)
        by_default = self._default_member(field, new, is_required=is_required)
        if by_default is not None:
            yield _indented(f"{name}:", depth)
            yield from self.yaml_lines(self._parts[by_default], path, depth + 1, is_live=is_live)
        elif is_required:
            line = _indented(f"{name}:  # required", depth)
            yield from _commented([line]) if is_live else [line]
        else:
            yield _indented(f"{name}: {_value(field['default'])}", depth)
        if known:
            yield from _comment(f"The sections are those of `{self._shown[known[0]]}` above.", depth)
        for number, option in enumerate(new):
            if option != by_default:
                yield from _comment(self._titled(option), depth)
                others = [self._parts[other] for other in new[:number]]
                yield from _commented(self._alternative(name, field, option, path, depth, others))

    def _default_member(self, field: Node, options: Sequence[str], *, is_required: bool) -> str | None:
        """The section that a field has where a config says nothing, or its only one."""
        if is_required:
            return options[0] if "$ref" in field and options else None
        if not isinstance(field["default"], dict) or _entry(field) is not None:
            return None
        return next((option for option in options if self._kind(option) == field["default"].get("type")), None)

    def _alternative(
        self, name: str, field: Node, option: str, path: str, depth: int, others: Sequence[Node]
    ) -> Iterator[str]:
        """The lines of a field that holds a section: itself, one under a name, or one in a list."""
        yield _indented(f"{name}:", depth)
        entry = next((mark for key, mark in CONTAINERS.items() if key in field), None)
        if entry is not None:
            depth += 1
            yield _indented(entry, depth)
        yield from self.yaml_lines(self._parts[option], path, depth + 1, is_live=False, others=others)

    # Markdown

    def markdown_lines(
        self, part: Node, title: str = "Sections", path: str = "", others: Sequence[Node] = ()
    ) -> Iterator[str]:
        """A heading, a sentence and a table for a section; then the same for each section in it that is new.

        Args:
            part: the schema of the section.
            title: the heading.
            path: of the section, such as `evaluation.sets`.
            others: the members of the same union that were described; what they have alike is only named.
        """
        level = "###" if "." in path else "##"
        yield from (f"{level} {title}", "", " ".join(part["description"].split()), "")
        own, alike = _compare(part, others)
        kind = own.pop("type", {}).get("const")
        if own:
            yield from ("| field | default | values | meaning |", "|---|---|---|---|")
        inner: list[tuple[str, list[str]]] = []
        for name, field in own.items():
            place = f"{path}.{name}".lstrip(".")
            new = [option for option in self._sections_in(field) if option not in self._shown]
            self._shown |= dict.fromkeys(new, place)
            inner.append((place, new))
            default = "required" if name in part.get("required", ()) else f"`{_value(field.get('default'))}`"
            if new and isinstance(field.get("default"), dict) and field["default"]:
                default = "see below"
            cells = (f"`{name}`", default, self._values(field), self._meaning(field))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if own:
            yield ""
        if alike:
            yield from (f"As above: {', '.join(f'`{name}`' for name in alike)}.", "")
        for place, new in inner:
            for number, option in enumerate(new):
                of_type = f" of type `{self._kind(option)}`" if self._kind(option) else ""
                heading = f"`{place}`{of_type}" + (f", with type `{kind}`" if kind and not of_type else "")
                siblings = [self._parts[other] for other in new[:number]]
                yield from self.markdown_lines(self._parts[option], heading, place, siblings)

    # Both

    def _titled(self, option: str) -> str:
        kind, text = self._kind(option), _first_paragraph(self._parts[option])
        return text if kind is None else f"{kind}: {text}"

    def _explained(self, field: Node) -> str:
        values = self._values(field)
        if values == "section":
            return self._meaning(field)
        if len(values) < WIDTH // 2:
            values = values.replace(" ", NO_BREAK)
        return f"{self._meaning(field)} [{values}]"

    def _meaning(self, field: Node) -> str:
        text = " ".join(field.get("description", "").split())
        return text + (" May change on resume." if field.get("changeable") else "")

    def _sections_in(self, field: Node) -> list[str]:
        """The names of the sections that a field may hold, by itself, under names, or in a list."""
        if "$ref" in field:
            return [field["$ref"].rsplit("/", 1)[-1]]
        options = [*field.get("anyOf", ()), *field.get("oneOf", ()), _entry(field)]
        return [name for option in options if option for name in self._sections_in(option)]

    def _kind(self, option: str) -> str | None:
        return self._parts[option]["properties"].get("type", {}).get("const")

    def _values(self, field: Node) -> str:
        """What a field accepts, in words."""
        options = [*field.get("anyOf", ()), *field.get("oneOf", ())]
        if options:
            return " or ".join(dict.fromkeys(map(self._values, options)))
        if "$ref" in field:
            return "section"
        if "const" in field or "enum" in field:
            return ", ".join(_value(value) for value in field.get("enum", [field.get("const")]))
        entry = _entry(field)
        of_entries = "" if entry is None else self._values(entry)
        match field.get("type"):
            case "string":
                return "text"
            case "boolean":
                return "true, false"
            case "integer":
                return _range("whole number", field)
            case "number":
                return _range("number", field)
            case "array":
                return f"list of {of_entries}" if of_entries else "list"
            case "object":
                names = ", ".join(field.get("propertyNames", {}).get("enum", ("NAME",)))
                return f"mapping of {names} to {of_entries}" if of_entries else "mapping"
            case kind:
                return str(kind)


def _compare(part: Node, others: Sequence[Node]) -> tuple[dict[str, Node], list[str]]:
    """The fields of a section, `type` first, without those that another has alike; and the names of these."""
    fields = part["properties"]
    alike = [name for name in fields if any(other["properties"].get(name) == fields[name] for other in others)]
    own = {name: fields[name] for name in sorted(fields, key=lambda name: name != "type") if name not in alike}
    return own, alike


def _entry(field: Node) -> Node | None:
    """The schema of the entries of a mapping or list."""
    if "patternProperties" in field:
        return next(iter(field["patternProperties"].values()))
    found = field.get("additionalProperties", field.get("items"))
    return found if isinstance(found, dict) else None


def _range(noun: str, field: Node) -> str:
    above = {"exclusiveMinimum": "<", "minimum": "<="}
    below = {"exclusiveMaximum": "<", "maximum": "<="}
    lowest = [f"{field[key]:g} {sign}" for key, sign in above.items() if key in field]
    highest = [f"{sign} {field[key]:g}" for key, sign in below.items() if key in field]
    return " ".join([*lowest, noun, *highest])


def _first_paragraph(part: Node) -> str:
    return " ".join(part["description"].split("\n\n")[0].split())


def _value(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)  # in quotes, where YAML reads the escapes of JSON
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def _indented(text: str, depth: int) -> str:
    return "  " * depth + text


def _comment(text: str, depth: int) -> list[str]:
    prefix = _indented("# ", depth)
    lines = textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def _commented(lines: Sequence[str] | Iterator[str]) -> Iterator[str]:
    """Lines with a `#` before what they say; explanations stay as they are."""
    for line in lines:
        text = line.lstrip(" ")
        yield line if text.startswith("# ") else line[: len(line) - len(text)] + "#" + text
