"""A judge with planted faults, alone and under the settings that are meant to help: how often is the label wrong?

    python benchmarks/faulty_judge.py [--prompts 2000] [--seed 0]

Each prompt has two completions of known quality and of a length that has nothing to do with it. The judges go through
the same host as in a run. `wrong` is the share of the pairs made whose chosen answer is the worse one, `pairs` the
share of prompts that give a pair (ties and abstentions give none). The other columns are those of a round's report:
`first wins` as presented, `same` where both orders are asked, `alpha` between members, and what the warnings name.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from pathlib import Path
from typing import Any

NOISE, POSITION, LENGTH = 0.2, 0.3, 0.3


class Faulty:
    """Knows the better completion, and has a chance of saying something else. Each fault strikes by itself."""

    def __init__(self, noise: float = 0.0, position: float = 0.0, length: float = 0.0, name: str = "") -> None:
        self.noise, self.position, self.length, self.name = noise, position, length, name

    async def compare(self, prompt: str, a: str, b: str) -> str:
        draw = random.Random("\x1f".join((self.name, prompt, a, b)))
        if draw.random() < self.position:
            return "a"  # whatever is shown first
        if draw.random() < self.length:
            return "a" if len(a) > len(b) else "b"  # whatever is longer
        right = "a" if quality(a) > quality(b) else "b"
        if draw.random() < self.noise:
            return "b" if right == "a" else "a"
        return right


def quality(completion: str) -> float:
    """The number that the text begins with."""
    return float(completion.split()[0])


def problems(number: int, seed: int) -> list[Any]:
    """Rows as `online-dpo judge` reads them, with known labels."""
    from online_dpo.data.completion_files import JudgeRow, answers
    from online_dpo.types import Prompt

    draw, rows = random.Random(seed), []
    for index in range(number):
        texts = [f"{draw.gauss(0, 1):.6f} " + "word " * draw.randrange(20, 120) for _ in range(2)]
        prompt = Prompt(prompt_id=str(index), token_ids=(), text=f"question {index} of {seed}")
        gold = tuple(quality(text) for text in texts)
        rows.append(JudgeRow(prompt=prompt, completions=answers(str(index), texts), gold=gold))
    return rows


def section(faults: dict[str, float], *, both_orders: bool = False, name: str = "1") -> dict[str, Any]:
    target = f"{Path(__file__).resolve()}:Faulty"
    return {"type": "python", "target": target, "args": {**faults, "name": name}, "both_orders": both_orders}


def ensemble(members: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "ensemble", "aggregate": "majority", "judges": {f"j{i}": m for i, m in enumerate(members)}}


def settings(faults: dict[str, float]) -> dict[str, dict[str, Any]]:
    def five(both: bool) -> dict[str, Any]:
        return ensemble([section(faults, both_orders=both, name=str(i)) for i in range(5)])

    return {
        "alone": section(faults),
        "both orders": section(faults, both_orders=True),
        "5 like it": five(False),
        "5, both orders": five(True),
    }


def measure(rows: list[Any], judge: dict[str, Any]) -> dict[str, Any]:
    from actors.judge_host import JudgeHost
    from judges.registry import make_spec
    from online_dpo.config.loading import load_judges
    from online_dpo.statistics.comparisons import against_gold
    from online_dpo.statistics.judge_warnings import warnings
    from online_dpo.statistics.judges import report
    from online_dpo.types import Shard

    loaded = load_judges({"judge": judge}).judge
    host = JudgeHost(make_spec(loaded, field="judge", base_dir=Path.cwd()))
    shard = Shard(index=0, prompts=tuple(row.prompt for row in rows))
    completions = [c for row in rows for c in row.completions]
    judged = asyncio.run(host.judge_shard(shard, completions))
    gold, found = (
        against_gold(rows, judged.verdicts),
        report(completions, judged.verdicts, judged.counters, agreement=judged.agreement),
    )
    warned = " ".join(warnings("judge", found))
    words = {"place": " place: ", "length": " completion: it wins ", "inconsistent": " is inconsistent: "}
    return {
        "wrong": 1.0 - gold["accuracy"],
        "pairs": found["num_decided"] / len(rows),
        "first": found["first_wins"],
        "longer": found["longer_wins"],
        "same": found.get("order_consistency"),
        "alpha": found.get("ensembles", {}).get("judge", {}).get("alpha"),
        "warned": ", ".join(name for name, said in words.items() if said in warned),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = problems(args.prompts, args.seed)
    single = {"noise": NOISE, "position": POSITION, "length": LENGTH}
    planted = {name: {name: share} for name, share in single.items()} | {"all three": single}
    print("| fault | setting | wrong | pairs | first wins | longer wins | same | alpha | warned of |")
    print("|---|---|---|---|---|---|---|---|---|")
    for fault, faults in planted.items():
        for name, judge in settings(faults).items():
            print(_line(fault, name, measure(rows, judge)))
    others = [section({fault: share}, both_orders=True, name=fault) for fault, share in single.items()]
    print(_line("one each", "3 judges, both orders", measure(rows, ensemble(others))))
    print(f"{args.prompts} prompts, seed {args.seed}")


def _line(fault: str, name: str, found: dict[str, Any]) -> str:
    cells = ["-" if found[key] is None else f"{100 * found[key]:.1f} %" for key in ("wrong", "pairs", "first")]
    cells += ["-" if found[key] is None else f"{100 * found[key]:.1f} %" for key in ("longer", "same")]
    cells += ["-" if found["alpha"] is None else f"{found['alpha']:.2f}", found["warned"] or "-"]
    return f"| {fault} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
