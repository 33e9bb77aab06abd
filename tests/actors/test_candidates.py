"""Real runs with candidates: vLLM samples and revises, another engine and a server on this machine are the teachers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from candidates_kit import short_word
from judge_servers import Answer, completion, serve
from loop_runs import comparable, records

from online_dpo.commands.run import continue_run, run
from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.embedded import resolve
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import Listener
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import ShardCommits
from online_dpo.types import Prompt

TEMPLATE = (
    "<bos>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class Interrupts(Listener):
    """Ctrl-C after so many answers of writers were committed."""

    def __init__(self, after: int) -> None:
        self.left = after

    def hear(self, event: Event) -> None:
        self.left -= event.kind == "candidates_written"
        if self.left == 0:
            raise KeyboardInterrupt


def config_of(folder: Path, base_url: str, name: str) -> RunConfig:
    rows = [{"prompt": f"the film number {i} was", "answer": f" worth {i} stars"} for i in range(16)]
    (folder / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text("def score(prompt, completion):\n    return completion.count('e')\n")
    teacher = folder / "teacher"
    if not teacher.exists():
        shutil.copytree(resolve("policy"), teacher)
        (teacher / "chat_template.jinja").write_text(TEMPLATE)
    return load_config(
        {
            "run": {"name": name, "dir": str(folder), "rounds": 2},
            "model": {"path": "embedded:policy"},
            "prompts": {"source": str(folder / "films.jsonl"), "per_round": 8, "max_tokens": 24},
            "sampling": {"num_samples": 2, "max_tokens": 12},
            "candidates": [
                {"type": "column", "column": "answer"},
                {"type": "revise", "name": "own", "temperature": 1.0, "critique_tokens": 20},
                {"type": "teacher", "name": "served", "endpoint": {"base_url": base_url, "model": "m"}},
                {"type": "teacher", "name": "local", "engine": {"path": str(teacher)}, "separator": " "},
            ],
            "generator": {"shard_prompts": 4},
            "judge": {"type": "python", "target": f"{folder / 'judge.py'}:score"},
            "reference": {"type": "every", "rounds": 1},
            "learner": {"lr": 1e-3, "batch_pairs": 4, "lora": {"r": 8, "alpha": 16}},
        }
    )


@pytest.mark.exhaustive
def test_a_run_with_every_kind_of_writer_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    asked: list[str] = []

    def handler(body: dict[str, Any], before: int) -> Answer:
        asked.append(body["messages"][-1]["content"])
        return short_word(body, before) if "trial" not in asked[-1] else Answer(completion("yes"))

    with serve(handler) as server:
        whole = config_of(tmp_path, server.base_url, "whole")
        result = run(whole)
        num_asked, served = len(asked), [text for text in asked if text.startswith("the film number")]
        assert sorted(set(served)) == sorted(served) and len(served) == 16, "each prompt once"
        other = config_of(tmp_path, server.base_url, "other")
        with pytest.raises(KeyboardInterrupt):
            run(other, listeners=[Interrupts(6)])
        first = len(asked) - num_asked
        continue_run(other)
    again = [text for text in asked[num_asked:] if text.startswith("the film number")]
    assert first < len(asked) - num_asked and len(again) - len(set(again)) <= 4, "but a shard that was under way"
    found, expected = comparable(other.run_dir), comparable(whole.run_dir)
    different = [name for name in expected if found.get(name) != expected[name] and name != "config.yaml"]
    assert not [name for name in different if not name.startswith(("report/", "run."))], different
    for number, outcome in enumerate(result.rounds):
        candidates = outcome.candidates
        assert candidates["column"]["num_candidates"] == candidates["served"]["num_candidates"] == 8
        assert candidates["own"]["num_candidates"] + candidates["own"]["outcomes"].get("empty", 0) == 8, number
        assert candidates["own"]["counters"]["num_critiques"] == 8
        assert sum(candidates["local"]["outcomes"].values()) == 8 and candidates["local"]["num_candidates"] > 0
        assert outcome.pairs.on_policy_share is not None and 0.0 < outcome.pairs.on_policy_share < 1.0
        assert outcome.push.sampled_gap is not None and outcome.push.sampled_gap < 1e-3
    # With the reference just refreshed and everything recomputed, the first step of a round has a loss of ln 2.
    steps = [r for r in records(whole.run_dir) if r["kind"] == "step" and r["step"] == 0]
    assert [step["loss"] for step in steps] == pytest.approx([0.693147, 0.693147], abs=1e-4)
    _check_tokens(whole)


def _check_tokens(config: RunConfig) -> None:
    """Texts of others are the tokenizer's, with an end; the policy's own revisions decode to their text."""
    from online_dpo.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve("policy"), trust_remote_code=False)
    with RunStore.read(config.run_dir) as store:
        part = store.round(1)
        prompts = {prompt.prompt_id: prompt for prompt in part.get_records("prompts", Prompt)}
        answers = [c for shard in (0, 1) for c in ShardCommits(part).completions(shard)]
    assert {c.source for c in answers} == {None, "column", "own", "served", "local"}
    for answer in answers:
        text, ids = f"{prompts[answer.prompt_id].text}{answer.text}", list(answer.token_ids)
        if answer.source in ("column", "served", "local"):
            ended = [tokenizer.eos_token_id] if answer.finish_reason == "stop" else []
            asked, whole = list(prompts[answer.prompt_id].token_ids), tokenizer(text)["input_ids"]
            if whole[: len(asked)] != asked:  # a token would reach across the boundary
                whole = [*asked, *tokenizer(answer.text, add_special_tokens=False)["input_ids"]]
            assert [*asked, *ids] == [*whole, *ended]
        else:
            assert tokenizer.decode(ids, skip_special_tokens=True) == answer.text
