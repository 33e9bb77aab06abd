"""vLLM's log-probs of every family after a push, against the learner's: one engine and one process for each.

python tests/kits/family_engine.py             every family, into the table of docs/models.md
python tests/kits/family_engine.py GPT-2       one family, printed only
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PUSHES = ("merge", "lora")
LIMIT_S = 300.0
PAGE = ROOT / "docs" / "models.md"
REFUSED = "refused"
RULE = "|---|---|---|---|---|"  # the line of its table above the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was seen of a family under one kind of push; differences are the largest of any token, in nats."""

    base: float  # the base model's, of tokens that are scored
    scored: float  # the pushed policy's, of tokens that are scored
    sampled: float  # the pushed policy's, of tokens that it sampled
    back: float  # between the engine's own of the base model, before and after another push
    moved: float  # how far the policy is from the base model, by the learner

    @property
    def gap(self) -> float:
        """The largest between engine and learner."""
        return max(self.base, self.scored, self.sampled)


class Refused(Exception):
    """Our own code, or vLLM, does not take the family; the message says why."""


def compare(family: str, push: str, folder: Path) -> Compared:
    """Push an adapter with large random values, and score on both sides.

    Args:
        family: of `family_kit.FAMILIES`.
        push: merge or lora.
        folder: to write to.

    Raises:
        Refused: the engine did not start, or not sample.
    """
    import torch
    from family_kit import build_family
    from learner_kit import make_spec
    from safetensors.torch import load, save

    from online_dpo.commands.preparing.specs import check_cpu_engine
    from online_dpo.errors import ConfigError
    from online_dpo.learner.learner import Learner
    from online_dpo.models.inspection import inspect_model
    from online_dpo.types import Adapter, Row

    learner = Learner(make_spec(str(build_family(family, folder / "model")), threads=2))
    fresh, random = learner.policy(1), torch.Generator().manual_seed(3)
    tensors = {name: 0.1 * torch.randn(t.shape, generator=random) for name, t in sorted(load(fresh.weights).items())}
    adapter = Adapter(version=1, weights=save(tensors, metadata={"format": "pt"}), config=fresh.config)
    for name, content in adapter.files().items():
        (folder / name).write_bytes(content)
    try:
        check_cpu_engine(inspect_model(folder / "model", field="model.path"), "the model", push)
    except ConfigError as error:
        raise Refused(str(error)) from None
    engine = _in_an_engine(push, folder)
    rows = [Row(prompt_ids=tuple(p), completion_ids=tuple(c)) for p, c in engine["rows"]]
    answers = [Row(prompt_ids=tuple(p), completion_ids=tuple(c)) for p, c in engine["answers"]]
    of_base, of_policy = (scores.token_logps for scores in learner.score(rows, [None, adapter]))
    return Compared(
        base=_gap(engine["base"], of_base),
        scored=_gap(engine["scored"], of_policy),
        sampled=_gap(engine["sampled"], learner.score(answers, [adapter])[0].token_logps),
        back=_gap(engine["again"], engine["base"]),
        moved=_gap(of_policy, of_base),
    )


def _in_an_engine(push: str, folder: Path) -> dict[str, Any]:
    """What an engine in a process of its own makes of `model` and adapter in a folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--engine", push, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, cwd=ROOT)
    if done.returncode != 0:
        (folder / "stderr").write_text(done.stderr)
        said = [line for line in done.stderr.splitlines() if "Error: " in line][-1]
        raise Refused(said.partition("Error: ")[2].replace(str(folder / "model"), "the model"))
    found: dict[str, Any] = json.loads((folder / "engine.json").read_text())
    return found


def _engine(push: Any, folder: Path) -> None:
    """Score and sample with the base model, the policy, and the base model again."""
    from actors.generator import Generator
    from online_dpo.types import Adapter, Prompt, Row, SamplingPlan, Shard

    names = ("adapter_config.json", "adapter_model.safetensors")
    adapter = Adapter.from_files(1, {name: (folder / name).read_bytes() for name in names})
    generator = Generator(_engine_spec(push, folder / "model", json.loads(adapter.config)))
    # Longer than the families' windows; the last one has two blocks that the prefix cache could keep.
    prompts = [
        Prompt(prompt_id=f"p{i}", text="", token_ids=tuple(3 + (7 + 13 * i) * j % 500 for j in range(3 + 35 * i)))
        for i in range(3)
    ]
    completions = [tuple(3 + 11 * i * j % 500 for j in range(24)) for i in (1, 2, 3)]
    rows = [Row(prompt_ids=p.token_ids, completion_ids=c) for p, c in zip(prompts, completions, strict=True)]
    generator.push(None, 0)
    base = generator.probe(rows)
    assert generator.push(adapter, 1).digest == adapter.digest
    plan = SamplingPlan(
        run_seed=1, purpose="train", round_index=0, num_samples=2, temperature=1.0, top_p=1.0, max_tokens=24, stop=()
    )
    sampled = generator.sample(Shard(index=0, prompts=tuple(prompts)), plan, 1)
    scored = generator.probe(rows)
    generator.push(None, 2)
    by_id = {prompt.prompt_id: prompt.token_ids for prompt in prompts}
    found = {
        "rows": [[row.prompt_ids, row.completion_ids] for row in rows],
        "answers": [[by_id[c.prompt_id], c.token_ids] for c in sampled],
        "base": base,
        "scored": scored,
        "sampled": [c.sampler_logps for c in sampled],
        "again": generator.probe(rows),
    }
    (folder / "engine.json").write_text(json.dumps(found))
    generator.close()


def _engine_spec(push: Any, model: Path, adapter: dict[str, Any]) -> Any:
    from actors.generator import EngineSpec
    from online_dpo.commands.preparing.specs import linear_layers
    from online_dpo.models.inspection import inspect_model

    info = inspect_model(model, field="model.path")
    return EngineSpec(
        model_folder=str(model), trust_remote_code=False, dtype="float32", max_model_len=128, max_num_seqs=8,
        weight_push=push, lora_rank=adapter["r"], lora_targets=linear_layers(info), tensor_parallel=1,
        eos_token_ids=info.eos_token_ids, gpu_memory_utilization=0.5, block_size=32, enforce_eager=True, seed=0,
    )  # fmt: skip


def _gap(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def write_row(page: Path, family: str, cells: Sequence[str]) -> None:
    """Put a family's row into the table of a page, in the order of `FAMILIES`, in place of the one it had."""
    from family_kit import FAMILIES

    lines = page.read_text().splitlines()
    start = lines.index(RULE) + 1
    end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines[start:end]}
    rows[family] = f"| {' | '.join((family, *cells))} |"
    lines[start:end] = [rows[name] for name in FAMILIES if name in rows]
    page.write_text("\n".join(lines) + "\n")


def seen(family: str) -> list[str]:
    """The cells of a family's row."""
    from family_kit import build_family
    from learner_kit import make_spec

    from online_dpo.learner.learner import Learner

    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(make_spec(str(build_family(family, Path(folder) / "model"))))
    targets: Any = learner.model.peft_config["default"].target_modules
    is_padded = any("pads its rows" in line for line in learner.notices())
    cells = [", ".join(sorted({name.split(".")[-1] for name in targets})), "padded" if is_padded else "packed"]
    for push in PUSHES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells.append(f"{compare(family, push, Path(folder)).gap:.0e}")
            except Refused as error:
                print(family, push, error, flush=True)
                cells.append(REFUSED)
    return cells


def main(arguments: list[str]) -> None:
    """See the module."""
    if arguments[:1] == ["--engine"]:
        _engine(arguments[1], Path(arguments[2]))
        os._exit(0)
    from family_kit import FAMILIES

    for family in arguments or FAMILIES:
        cells = seen(family)
        print(family, cells, flush=True)
        write_row(PAGE, family, cells)


if __name__ == "__main__":
    main(sys.argv[1:])
