"""The numeric verifier on right and wrong solutions to real word problems, written as models write them.

    python benchmarks/verifier_gsm8k.py gsm8k_test.jsonl

The file has `question` and `answer`, which ends with `#### number`. Each problem is solved in every style twice: with
the reference's reasoning and its number, and with the same reasoning (which mostly states the right number) and
another number at the end. Prints how often each was called right, and exits with 1 if any verdict is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from judges.protocol import Question
from judges.verifier.verifier import Verifier
from online_dpo.config.judges.hosted import VerifierJudge


def grouped(value: int) -> str:
    return f"{value:,}"


STYLES: dict[str, Callable[[str, int], str]] = {
    "#### 1234": lambda text, v: f"{text}\n#### {v}",
    "#### 1,234": lambda text, v: f"{text}\n#### {grouped(v)}",
    "The answer is 1234.": lambda text, v: f"{text}\nThe answer is {v}.",
    "The answer is $1,234.": lambda text, v: f"{text} The answer is {dollars(v)}.",
    "**Final answer:** 1234": lambda text, v: f"{text}\n\n**Final answer:** {v} in all",
    r"\boxed{1234}": lambda text, v: f"{text}\n\\[ x = \\boxed{{{v}}} \\]",
    r"\boxed{\$1,234}": lambda text, v: f"{text} So the result is $\\boxed{{\\{dollars(v)}}}$.",
    r"the answer is $1234$": lambda text, v: f"{text}\nHence the answer is ${v}$. I hope it is correct.",
    "last: $1234": lambda text, v: f"{text}\nSo that makes {dollars(v)}",
    "last: 1234.00": lambda text, v: f"{text}\nIn total: {v}.00",
    "last: 1,234 things.": lambda text, v: f"{text}\nThat is {grouped(v)} of them.",
}


def dollars(value: int) -> str:
    return f"-${grouped(-value)}" if value < 0 else f"${grouped(value)}"


WRONG: tuple[Callable[[int], int], ...] = (
    lambda v: v + 1,
    lambda v: v * 10 + (v == 0),
    lambda v: -v - (v == 0),
    lambda v: v - 2,
    lambda v: int(f"{v}1"),
)


def problems(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """(question, reference answer, its reasoning without calculator notes, its number)"""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            reasoning, _, number = row["answer"].rpartition("####")
            yield row["question"], row["answer"], re.sub("<<.*?>>", "", reasoning).strip(), int(number.replace(",", ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    judge = Verifier(VerifierJudge(type="verifier", method="numeric", answer="answer"), field="judge")
    table: Counter[tuple[str, bool, str]] = Counter()
    questions, kinds, wrongly = [], [], 0
    for index, (question, reference, reasoning, value) in enumerate(problems(path)):
        texts = []
        for place, (style, write) in enumerate(STYLES.items()):
            other = WRONG[(index + place) % len(WRONG)](value)
            texts += [(style, True, write(reasoning, value)), (style, False, write(reasoning, other))]
        completions = tuple(text for _, _, text in texts)
        metadata = {"answer": reference}
        questions.append(Question(prompt_id=str(index), prompt=question, completions=completions, metadata=metadata))
        kinds.append(texts)
    started = time.perf_counter()
    verdicts = asyncio.run(judge.judge(questions))
    elapsed = time.perf_counter() - started
    for texts, said in zip(kinds, verdicts, strict=True):
        for (style, is_right, text), verdict in zip(texts, said, strict=True):
            called = "abstained" if verdict.score is None else "right" if verdict.score == 1.0 else "wrong"
            table[style, is_right, called] += 1
            if called != ("right" if is_right else "wrong"):
                wrongly += 1
                if wrongly <= 5:
                    print(f"{style}: {'right' if is_right else 'wrong'} called {called}: ...{text[-90:]!r}")
    head = f"{'right called right / wrong':>28}{'wrong called right / wrong':>28}"
    print(f"{'style':<26}{head}{'abstained':>11}")
    for style in STYLES:
        right = f"{table[style, True, 'right']} / {table[style, True, 'wrong']}"
        wrong = f"{table[style, False, 'right']} / {table[style, False, 'wrong']}"
        print(f"{style:<26}{right:>28}{wrong:>28}{sum(table[style, k, 'abstained'] for k in (True, False)):>11}")
    total = sum(table.values())
    print(
        f"{total} solutions of {len(questions)} problems, {wrongly} wrong verdicts, {elapsed / total * 1e6:.0f} us each"
    )
    return int(wrongly > 0)


if __name__ == "__main__":
    sys.exit(main())
