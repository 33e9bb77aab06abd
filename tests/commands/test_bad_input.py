"""Bad input, as a user meets it: the command is run, and what it prints and leaves behind is read.

Most commands run in this process; `tests/test_cli.py` shows that a process of its own says the same.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import called, online_dpo, refused, write_inputs
from model_kit import change_json


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a config that could be run."""
    folder = tmp_path / "work"
    folder.mkdir()
    write_inputs(folder, tiny_model)
    return folder


# ---- the command itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn", "config.yaml"], "No such command 'runn'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["export", "runs/demo"], "Missing argument 'OUT'"),
        (["status", "runs/demo", "--jsn"], "No such option: --jsn"),
        (["export", "runs/demo", "out", "--round", "last"], "Invalid value for '--round'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = called(*arguments, cwd=tmp_path)
    assert done.code == 2 and not done.out and "Traceback" not in done.err
    assert "Usage: " in done.err and message in done.err


# ---- config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.num_samples=1", "sampling.num_samples is 1; a pair needs at least 2 completions per prompt"),
        ("sampling.num_sample=2", "sampling.num_sample is not a known key; did you mean num_samples?"),
        ("evaluation.sets.heldout.cuont=2", "evaluation.sets.heldout.cuont is not a known key; did you mean count?"),
        ("generater.replicas=2", "generater is not a known key; did you mean generator?"),
        ("judge.type=pyton", "judge.type is pyton; it must be one of reward_model, python"),
        ("reference.rounds=3", "reference.type is missing; choose one of fixed, every"),
        ("generator.num_gpus=half", "generator.num_gpus is \"half\"; it must be 'auto' or a valid number"),
        ("learner.threads=0", "learner.threads is 0; it must be 'auto' or greater than or equal to 1"),
        ("sampling=none", 'sampling is "none"; it must be a mapping with some of the keys num_samples, temperature'),
        ("run.name=a/b", "run.name is \"a/b\"; it is the name of a folder: it may not begin with '.' or hold '/'"),
        ("run.name=${oc.env:NO_SUCH}", "Environment variable 'NO_SUCH' not found\"; write ${section.field} of a"),
        ("learner.lr=[", "override 'learner.lr=[' cannot be read (while parsing a flow node expected the node"),
        ("rounds", "override 'rounds' is not of the form section.field=value, such as run.rounds=3"),
    ],
)
def test_a_config_that_is_no_config(override: str, message: str, work: Path) -> None:
    """Would catch an error without field, value or remedy, and pydantic's own words for the members of a union."""
    refusal = refused("run", "config.yaml", "evaluation.sets.heldout.source=prompts.jsonl", override, cwd=work)
    assert message in refusal and "\n" not in refusal


def test_a_config_file_that_cannot_be_read(work: Path) -> None:
    assert refused("run", "none.yaml", cwd=work).startswith("config file none.yaml does not exist; give the path of a")
    (work / "open.yaml").write_text("run: {name: demo\nmodel: {path: x}\n")
    assert re.search(r"open\.yaml is not readable YAML: .* line 2", refused("validate", "open.yaml", cwd=work))
    (work / "empty.yaml").write_text("")
    assert refused("run", "empty.yaml", cwd=work) == "model is missing; it has no default, so set it"
    message = refused("run", "empty.yaml", "model.path=x", cwd=work)
    assert message.startswith("prompts and judge are missing; they have no default, so set both, or set pairs")


@pytest.mark.parametrize("command", ["run", "validate"])
def test_more_tokens_than_the_model_can_see(command: str, work: Path, tiny_model: Path) -> None:
    assert refused(command, "config.yaml", "sampling.max_tokens=500", cwd=work) == (
        f"prompts.max_tokens is 32 and sampling.max_tokens is 500, together 532; the context of {tiny_model} is 512 "
        f"tokens: lower either"
    )


# ---- models


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"model\.path is \./model; there is no such folder: give the folder of a model, or a hub id"),
        (without("config.json"), r", which has no config\.json; give a folder that save_pretrained wrote"),
        (
            without("model.safetensors"),
            r", which has no weights file model\.safetensors; download the model or save it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"),
            r", whose model\.safetensors \(11 bytes\) is damaged \(.+\); download or save it again",
        ),
        (
            without("tokenizer.json", "tokenizer_config.json"),
            r", which has no tokenizer files; put the model's tokenizer there",
        ),
        (
            lambda folder: change_json(folder / "tokenizer_config.json", pad_token=None),
            r", whose tokenizer has no pad token; set pad_token in tokenizer_config\.json, for example to .*'<eos>'",
        ),
        (
            lambda folder: change_json(folder / "tokenizer_config.json", eos_token=None),
            r", whose tokenizer has no EOS token, .*; set eos_token in tokenizer_config\.json to the token that ends",
        ),
    ],
    ids=["folder", "config", "weights", "damaged weights", "tokenizer", "pad", "eos"],
)
def test_a_model_that_is_not_whole(spoil: Callable[[Path], None], message: str, work: Path, tiny_model: Path) -> None:
    spoil(Path(shutil.copytree(tiny_model, work / "model")))
    refusal = refused("run", "config.yaml", "model.path=./model", cwd=work)
    assert re.match(r"model\.path is \S+", refusal) and re.search(message, refusal)


# ---- prompts


@pytest.mark.parametrize(
    ("command", "lines", "override", "message"),
    [
        ("validate", "", "run.seed=0", "which has no rows; give a source with at least one prompt"),
        (
            "run",
            '{"prompt": "a"}\n{"prompt": "b"\n',
            "run.seed=0",
            "line 2 is malformed JSON (Expecting ',' delimiter, colu",
        ),
        (
            "validate",
            '{"prompt": "a"}\n{"prompt": 7}\n',
            "run.seed=0",
            "prompt of line 2 is int 7, but a prompt is text or a list",
        ),
        (
            "run",
            '{"prompt": "a"}\n',
            "prompts.field=text",
            "line 1 has no column text, it has prompt: set prompts.field to",
        ),
    ],
    ids=["empty", "malformed", "no text", "column"],
)
def test_prompts_that_cannot_be_used(command: str, lines: str, override: str, message: str, work: Path) -> None:
    (work / "mine.jsonl").write_text(lines)
    refusal = refused(command, "config.yaml", "prompts.source=mine.jsonl", override, cwd=work)
    assert refusal.startswith("prompts.source is mine.jsonl") and message in refusal


def test_prompts_that_are_all_too_long(work: Path) -> None:
    refusal = refused("run", "config.yaml", "prompts.max_tokens=2", cwd=work)
    assert re.fullmatch(
        r"prompts\.source is prompts\.jsonl, whose prompts are all longer than prompts\.max_tokens, which is 2; the "
        r"shortest has \d+ tokens: raise prompts\.max_tokens",
        refusal,
    )


# ---- judges


JUDGES = """
import math

class TooFew:
    def score_batch(self, prompts, completions):
        return [1.0]

def raises(prompt, completion):
    raise KeyError("no such word")

def nan(prompt, completion):
    return math.nan

def none(prompt, completion):
    pass

def text(prompt, completion):
    return "good"

def good(prompt, completion):
    return len(completion)
"""


@pytest.mark.parametrize(
    ("command", "target", "message"),
    [
        ("run", "none.py:score", "the file {work}/none.py does not exist; give the path of a Python file and :score"),
        (
            "validate",
            "broken.py:score",
            "broken.py does not import (line 2): SyntaxError: invalid syntax; fix the file",
        ),
        (
            "run",
            "judge.py",
            "names no function or class; write path/to/file.py:name, package.module:name, embedded:gold or the name of "
            "an installed entry point",
        ),
    ],
)
def test_a_judge_that_is_not_there(command: str, target: str, message: str, work: Path) -> None:
    (work / "broken.py").write_text("def score(prompt, completion):\n    return ?\n")
    refusal = refused(command, "config.yaml", f"judge.target={target}", cwd=work)
    assert refusal.startswith(f"judge.target {target}") and refusal.endswith(message.format(work=work))


def test_every_judge_that_does_not_keep_its_contract_is_told_at_once(work: Path) -> None:
    (work / "judges.py").write_text(JUDGES)
    (work / "imports.py").write_text("\nimport no_such_package as score\n")
    tried = "was tried on two canned completions and"
    abstain = 'return Abstain("why") to abstain'
    finite = f"for completion 0 of prompt trial; return a finite number, or {abstain}"
    expected = {
        "judges.py:TooFew": f" {tried} returned 1 scores for 2 completions; return a list with one finite number for "
        'each, or put Abstain("why") in its place to abstain',
        "judges.py:raises": f" {tried} raised KeyError: 'no such word' (judges.py, line 9); a judge must answer any "
        "text, or abstain",
        "judges.py:nan": f" {tried} returned nan {finite}",
        "judges.py:none": f" {tried} returned None {finite}",
        "judges.py:text": f" {tried} returned 'good' {finite}",
        "imports.py:score": ": imports.py does not import (line 2): ModuleNotFoundError: No module named "
        "'no_such_package'; a judge's file travels to the workers alone, so it may import installed packages only",
    }
    overrides = [f"evaluation.judges.j{i}={{type: python, target: '{t}'}}" for i, t in enumerate(expected)]
    refusal = refused("validate", "config.yaml", "--deep", *overrides, cwd=work)
    assert refusal.splitlines() == [
        f"evaluation.judges.j{i}.target {target}{message}" for i, (target, message) in enumerate(expected.items())
    ]


def test_a_run_begins_with_a_trial_of_its_judges(work: Path) -> None:
    """Would catch a run directory that a run left which never began, and a traceback of a judge's actor."""
    (work / "judges.py").write_text(JUDGES)
    other = "evaluation.judges.other={type: python, target: 'judges.py:none'}"
    assert refused(
        "run", "config.yaml", "judge.target=judges.py:raises", other, cwd=work, run=online_dpo
    ).splitlines() == [
        "judge.target judges.py:raises was tried on two canned completions and raised KeyError: 'no such word' "
        "(judges.py, line 9); a judge must answer any text, or abstain",
        "evaluation.judges.other.target judges.py:none was tried on two canned completions and returned None for "
        'completion 0 of prompt trial; return a finite number, or return Abstain("why") to abstain',
    ]


def test_every_judge_that_is_not_there_is_told_at_once_and_before_ray_starts(work: Path) -> None:
    (work / "judges.py").write_text(JUDGES)
    other = "evaluation.judges.other={type: python, target: 'judges.py:godo'}"
    assert refused("run", "config.yaml", "judge.target=none.py:score", other, cwd=work).splitlines() == [
        f"judge.target none.py:score: the file {work}/none.py does not exist; give the path of a Python file and "
        ":score",
        "evaluation.judges.other.target judges.py:godo: judges.py has nothing named godo; did you mean good?",
    ]


# ---- the cluster


def test_a_cluster_that_is_not_there(work: Path) -> None:
    """Ray itself would try for ten minutes."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can while it is bound
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        refusal = refused("run", "config.yaml", f"cluster.address={address}", cwd=work)
    assert refusal.startswith(f"cluster.address is {address}; no Ray cluster answers there (ConnectionRefusedError: ")
    assert "start one with `ray start --head`" in refusal and "\n" not in refusal
