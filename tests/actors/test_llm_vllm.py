"""The `llm` judge with a real model: behind `vllm serve` on loopback, and in an engine that its host provides."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_servers import KEY
from llm_kit import ask, question
from model_kit import change_json
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from verdict_kit import answers, shard_of

from judges.hosting import Hosting
from judges.llm.building import build_llm
from judges.llm.judge import ChatJudge
from judges.llm.prompts import build_messages, make_format
from judges.protocol import StopJudging
from judges.trial import try_judge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import JudgeSection
from online_dpo.types import Judged

TEMPLATE = """\
{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""
START_S = 300.0
TEXTS = ("It was fine.", "A film that I would see again, and again.", "No.", "I left early.")


@dataclass(frozen=True)
class Serving:
    """A `vllm serve` of our own."""

    model: Path
    base_url: str

    def section(self, **fields: Any) -> LlmJudge:
        endpoint = {"base_url": self.base_url, "model": "tiny", "api_key_env": "LOOPBACK_KEY", "max_wait_s": 1.0}
        endpoint |= fields.pop("endpoint", {})
        return TypeAdapter(JudgeSection).validate_python({"type": "llm", "endpoint": endpoint, **fields})


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a judge's questions, a chat template, and something to say: A or B."""
    folder = build_tiny_model(tmp_path_factory.mktemp("chat") / "model", seed=3)
    change_json(folder / "config.json", max_position_embeddings=4096)
    change_json(folder / "tokenizer_config.json", chat_template=TEMPLATE, model_max_length=4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    # Both letters point to where the model is after questions of ours: together they are then likely.
    questions = []
    for pair in itertools.permutations(TEXTS, 2):
        asked: dict[str, Any] = {"principle": "P", "prompt": "Say it.", "answers": pair, "seed": 0}
        # An endpoint's, with a code, and an engine's: half of the questions each.
        wanted = make_format(form="pairwise", as_json=False, coded=len(questions) % 2 == 0, **asked)
        messages = build_messages(wanted, **asked)
        text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
        questions.append(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids)
    tensors = load_file(folder / "model.safetensors")
    embedding, noise = tensors["model.embed_tokens.weight"], torch.Generator().manual_seed(0)
    for _ in range(4):  # the letters stand in the questions too, and move where the model is
        llama = AutoModelForCausalLM.from_pretrained(folder).model
        with torch.no_grad():
            state = torch.stack([llama(ids).last_hidden_state[0, -1] for ids in questions]).mean(0)
        for row, logit in ((a, 14.0), (b, 13.5)):
            embedding[row] = logit * state / state.square().sum() + 0.04 * torch.randn(state.shape, generator=noise)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def serving(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Ends only the processes that it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        # What `vllm serve` runs; that command looks its version up under another name than the CPU wheel has.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(chat_model), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "4096", "--max-num-seqs", "32", "--generation-config", "vllm"),
        # vLLM 0.32 on CPU dies of a request with a seed whose prompt is taken in in pieces.
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"),
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOPBACK_KEY", KEY)
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=log.parent
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
            yield Serving(chat_model, f"http://127.0.0.1:{port}/v1")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its session is its own
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start: {log.read_text()[-3000:]}")


def test_structured_output_is_always_readable_and_the_same_again(serving: Serving) -> None:
    section = serving.section(on_conflict="average")
    [verdicts], counts = ask(build_llm(section, "judge"), question(*TEXTS))
    assert len(verdicts) == 12 and all(v.probability in (0.0, 0.5, 1.0) for v in verdicts)
    assert (counts["num_judge_votes"], counts["num_judge_votes_unreadable"]) == (12, 0)
    assert counts["num_judge_prompt_tokens"] > 12 * 200 and 12 * 3 < counts["num_judge_completion_tokens"] < 12 * 64
    assert ask(build_llm(section, "judge"), question(*TEXTS))[0] == [verdicts]
    [chat], counts = ask(
        build_llm(serving.section(principles=["It is kind.", "It is true."]), "judge"),
        question(*TEXTS[:2], prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"}]),
    )
    assert (len(chat), counts["num_judge_votes_unreadable"], counts["num_judge_votes"]) == (2, 0, 4)


def test_grades_are_whole_numbers_and_votes_differ(serving: Serving) -> None:
    section = serving.section(form="pointwise", votes=4, temperature=2.0)
    [verdicts], counts = ask(build_llm(section, "judge"), question(*TEXTS))
    assert counts["num_judge_votes_unreadable"] == 0, verdicts
    assert all(v.score is not None and 1.0 <= v.score <= 10.0 for v in verdicts)
    assert any(v.score != round(v.score) for v in verdicts if v.score is not None), "the mean of four that differ"
    assert ask(build_llm(section, "judge"), question(*TEXTS))[0] == [verdicts], "their seeds are the same again"


def by_hand(
    model: Path, judge: ChatJudge, texts: tuple[str, ...], prompt: str = "Say something."
) -> dict[tuple[int, ...], float]:
    """P(A) / (P(A) + P(B)) of each question by transformers."""
    tokenizer, llama = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    found = {}
    for asked in judge._vote_requests(0, question(*texts, prompt=prompt)):
        assert asked.request is not None
        text = tokenizer.apply_chat_template(
            [dict(m) for m in asked.request.messages], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            p = torch.softmax(llama(ids).logits[0, -1].double(), -1)
        a, b = (float(p[tokenizer.convert_tokens_to_ids(letter)]) for letter in "AB")
        assert a + b > 0.5
        found[asked.subject] = a / (a + b)
    return found


def test_token_probabilities_are_those_of_the_model(serving: Serving) -> None:
    judge = build_llm(serving.section(verdict="token", on_conflict="average"), "judge")
    [verdicts], _ = ask(judge, question(*TEXTS[:3]))
    expected = by_hand(serving.model, judge, TEXTS[:3])
    assert {(v.first, v.second): v.probability for v in verdicts} == pytest.approx(expected, abs=1e-3)


def test_a_real_server_refuses_in_its_own_words(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(**fields: Any) -> None:
        asyncio.run(try_judge(build_llm(serving.section(**fields), "judge"), field="judge", chat=False))

    trial()
    with pytest.raises(
        StopJudging, match=r"knows no such model or path \(status 404: The model `large` does not exist"
    ):
        trial(endpoint={"model": "large"})
    [verdicts], _ = ask(build_llm(serving.section(), "judge"), question("word " * 5000, "x"))
    assert verdicts
    assert all(str(v.explanation).startswith("failed: status 400: ") and "4096" in str(v.explanation) for v in verdicts)
    monkeypatch.setenv("LOOPBACK_KEY", "another-key")
    with pytest.raises(StopJudging, match=r"refused the key \(status 401: Unauthorized"):
        trial()


def test_an_engine_of_the_judges_own_says_the_same(serving: Serving, ray_local: None) -> None:
    """In the Ray actor that hosts it, as in a run."""
    import ray

    from actors.judge_host import JudgeHost
    from judges.registry import make_spec

    def judged(**fields: Any) -> Judged:
        section = TypeAdapter(JudgeSection).validate_python(
            {
                "type": "llm",
                "engine": {"path": str(serving.model), "dtype": "float32", "max_model_len": 4096},
                "on_conflict": "average",
                **fields,
            }
        )
        spec = make_spec(section, field="judge", base_dir=Path.cwd())
        host = (
            ray.remote(JudgeHost).options(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}).remote(spec)
        )
        try:
            ray.get(host.try_it.remote(False), timeout=START_S)
            given = [*answers("p", *TEXTS[:3]), *answers("q", "word " * 5000, "x"), *answers("r", *TEXTS[2:])]
            return ray.get(host.judge_shard.remote(shard_of("p", "q", "r"), given), timeout=START_S)
        finally:
            ray.kill(host)

    found = judged(verdict="token")
    # By transformers: an endpoint's questions have a code, which an engine's lack.
    section = TypeAdapter(JudgeSection).validate_python(
        {"type": "llm", "engine": {"path": str(serving.model)}, "verdict": "token", "on_conflict": "average"}
    )
    unasked: Any = None
    judge = build_llm(section, "judge", hosting=Hosting(engine=lambda request: unasked))
    expected = by_hand(serving.model, judge, TEXTS[:3], prompt="prompt p")
    assert {(v.first, v.second): v.probability for v in found.verdicts if v.prompt_id == "p"} == pytest.approx(
        expected, abs=1e-3
    )
    long = [v.explanation for v in found.verdicts if v.prompt_id == "q"]
    assert len(long) == 2 and all(str(reason).startswith("failed: the question has ") for reason in long)
    found = judged()
    assert found.counters["num_judge_votes_unreadable"] == 2, "the two that are too long; all others are readable"
    assert found.counters["num_judge_votes"] == 10
