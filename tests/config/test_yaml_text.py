"""Config files that are anything but a config, and values that YAML could take for something else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from hypothesis import given, settings
from hypothesis import strategies as st

from online_dpo.config import words
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError

NINES = ",".join("x" * 9)
BOMB = f"a: &a [{NINES}]\n" + "".join(
    f"{this}: &{this} [{','.join([f'*{before}'] * 9)}]\n" for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(source: Any, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides or [])
    message = str(caught.value)
    assert message.isprintable() and len(message) < 900, message
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run: {name: a}".encode("utf-16"), "is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("run: {name: a}".encode("utf-16-be"), "is UTF-16BE text; convert it: iconv -f UTF-16BE"),
        ("\nrun: {name: \xe9}".encode("latin-1"), "line 2, is not UTF-8; byte 0xe9 would be 'é' in Latin-1: if that"),
        ("name: \u20ac".encode("cp1252"), "byte 0x80 would be '€' in Windows-1252"),
        (BOMB, "it has more than 100000 values"),
        ("[" * 300, "it is nested more than 50 levels deep"),
        ("a: " + "[" * 100_000, "it is nested more than 50 levels deep"),
        ("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 20 + "*a" + "]" * 20, "nested more than 50 levels deep"),
        ("run: &a {x: *a}", "recursive aliases are not supported"),
        ("run: {name: a}\nrun: {name: b}", "found duplicate key run in .* line 2"),
        ("run: {seed: " + "9" * 5000 + "}", "integer string conversion"),
        ("#" * 1_000_001, "has more than 1000000 bytes"),
        ('run: {name: "\\ud800"}', "invalid Unicode character escape code"),
        ("run: !!python/object:os.system x", "could not determine a constructor"),
        ("run: !!set {a}", "not a supported primitive type"),
        ("5", "Invalid loaded object type: int"),
    ],
)
def test_a_file_that_is_no_config(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(message, refusal(path))


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    """Would catch a config that waits for a pipe, or reads /dev/zero for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path).endswith("is a folder; give a YAML file in it, such as configs/reviews.yaml")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert "is no regular file but a pipe, device or socket" in refusal(path)
    assert "has 5000 bytes, and a path has at most 4095" in refusal("x" * 5000)
    assert "has a name of 300 bytes" in refusal("x" * 300)
    assert "config file a\\x00b contains a NUL character" in refusal("a\0b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner=[1]", "learner is [1]; it must be a mapping with some of the keys lr, schedule"),
        ("judge=[1]", "an override gives a list where the file has a mapping"),
        ("run.name=off", "run.name is false; it must be text: YAML reads off, no, on, yes, null and numbers as values, "
         "so write it in quotes, such as 'off'"),
        ("run.name=null", "such as 'null'"),
        ("run.name=2024", "such as '2024'"),
        ("run.seed=" + "9" * 5000, "cannot be read (Exceeds the limit"),
        ("run.seed=-0x" + "f" * 5000, "run.seed is a int that is too large to show"),
        ("run.dir=" + "x" * 5000, "run.dir has 5000 bytes, and a path has at most 4095; correct it"),
        ("prompts.source=" + "x/" * 2500, "prompts.source has 5000 bytes"),
        ('model.path="a\\0b"', "model.path contains a NUL character"),
        ("run.name=${run.name}", "Recursive interpolation detected"),
        ("run.name=\udce9", "which is no Unicode text"),
        ("a..b=1", "is not of the form section.field=value"),
        ("+learner.lr=1", "write it without leading signs: learner.lr=1"),
        ("judge={type: verifier, method: exact, answer: a, pattern: 'a{99999999999999999999}'}", "no regular expr"),
        ("model={1: 2}", "model.1 is not a known key; a key is text"),
        ("x={" + ", ".join(f"k{i}: 1" for i in range(500)) + "}", "x is not a known key"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_used(override: str, message: str) -> None:
    assert message in refusal(BASE, [override])


def test_many_mistakes_are_not_many_pages() -> None:
    overrides = [f"learner.k{number}=1" for number in range(40)]
    with pytest.raises(ConfigError) as caught:
        load_config(BASE, overrides)
    assert str(caught.value).splitlines()[-1] == "and 28 more fields are wrong"


# ---- words of other trainers


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.type=dpo", "aot, discopop, bco_pair, kto, sft, sum; did you mean sigmoid?"),
        ("model.dtype=bf16", "model.dtype is \"bf16\"; it must be 'float32' or 'bfloat16'; did you mean bfloat16?"),
        ("model.dtype=fp32", "did you mean float32?"),
        ("learner.learning_rate=1e-4", "learner.learning_rate is not a known key; here it is learner.lr"),
        ("learning_rate=1e-4", "learning_rate is not a known key; here it is learner.lr"),
        ("logging.wandb=true", "here it is logging.trackers (a list of names; every figure is in metrics.jsonl"),
        ("learner.per_device_train_batch_size=4", "here it is learner.batch_pairs (the pairs of an optimizer step"),
        ("sampling.max_new_tokens=4", "here it is sampling.max_tokens"),
        ("sampling.num_generations=4", "here it is sampling.num_samples"),
        ("learner.beta=0.1", "here it is objective.beta"),
        ("reward_model=x", "here it is judge.path (with judge.type: reward_model)"),
        ("learner.lora_r=8", "here it is learner.lora.r"),
        ("learner.lora_alpha=8", "here it is learner.lora.alpha"),
        ("seed=1", "here it is run.seed"),
        ("learner.warmup_stps=1", "did you mean warmup_steps?"),
    ],
)
def test_words_of_other_trainers_have_a_hint(override: str, message: str) -> None:
    assert message in refusal(BASE, [override])


def known_fields() -> set[str]:
    parts = RunConfig.model_json_schema()["$defs"]
    found: set[str] = set()

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for part in node:
                walk(part, path)
        elif isinstance(node, dict):
            if "$ref" in node and path.count(".") < 4:
                walk(parts[node["$ref"].split("/")[-1]], path)
            for key in ("anyOf", "oneOf"):
                walk(node.get(key), path)
            for name, field in node.get("properties", {}).items():
                found.add(f"{path}.{name}".lstrip("."))
                walk(field, f"{path}.{name}".lstrip("."))

    walk(RunConfig.model_json_schema(), "")
    return found | {"judge.base_url"}  # inside an endpoint


def test_every_hint_names_a_field_that_there_is() -> None:
    assert {*words.FIELDS.values(), *words.REMARKS} <= known_fields()


# ---- what is dumped is what was loaded

TRICKY = [
    "1e5", "1_000", "on", "null", "2001-01-01", "${a}", "\\${a}", "\\\\${x.y}", "${oc.env:HOME}", "a\\", "$", "${",
    "\u2028", "\x85", "\x00", "1:30", "0x10", "~", "- a", "# c", "'", " a ", "\n", "\r\n", "<<", "=", "!!x", "&a",
    "*a", ".inf", "0o7", "$${a}", "\\$${a}", "a${b", "???", "", "\ufeff", "\U0001f600",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(TRICKY)
LEAF = TEXT | st.integers() | st.floats() | st.booleans() | st.none()
KEYS = TEXT | st.integers() | st.booleans() | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def expect_identity(arguments: dict[str, Any], stop: list[str], path: Path) -> None:
    prompts = {"source": "p.jsonl", "chat_template_kwargs": arguments}
    config = RunConfig.model_validate({**BASE, "prompts": prompts, "sampling": {"stop": stop}})
    path.write_text(dump_config(config))
    assert repr(load_config(path)) == repr(config)  # NaN is not equal to itself


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumped") / "x.yaml"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(TEXT, VALUES, max_size=3), st.lists(TEXT, max_size=2))
def test_dump_and_load_are_the_identity(dumped: Path, arguments: dict[str, Any], stop: list[str]) -> None:
    expect_identity(arguments, stop, dumped)


def test_dump_and_load_are_the_identity_for_what_looks_like_something_else(dumped: Path) -> None:
    arguments = {"a": float("inf"), "b": [float("-inf"), float("nan")], "c": {1: "one", 2.5: 2}, "d": TRICKY}
    expect_identity({**arguments, **dict.fromkeys(TRICKY, 1)}, TRICKY, dumped)
    clipped = {"type": "normalise", "judge": BASE["judge"], "clip": [-1, 1.5]}
    config = load_config({**BASE, "judge": clipped})
    dumped.write_text(dump_config(config))
    assert load_config(dumped) == config


def test_an_override_may_refer_to_a_field_of_the_file() -> None:
    config = load_config(BASE, ["sampling.max_tokens=33", "prompts.max_tokens=${sampling.max_tokens}"])
    assert config.prompts is not None and config.prompts.max_tokens == 33
    chosen = load_config(BASE, ["judge={type: reward_model, path: '${model.path}'}"])
    assert chosen.judge is not None and chosen.judge.path == "somewhere"  # type: ignore[union-attr]
