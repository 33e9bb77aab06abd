"""Writes the problems of GSM8K as chats, for `gsm8k-qwen2.5-0.5b.yaml`.

    python configs/recipes/gsm8k.py data/gsm8k

Reads `openai/gsm8k` from the hub, or from its cache, and writes `train.jsonl` and `test.jsonl` into the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TASK = "Solve the problem step by step. End with a line that has #### and the number alone.\n\n"


def chat_row(row: dict[str, str]) -> dict[str, object]:
    """`question` becomes the user's message; `answer`, which ends with `#### number`, stays as it is."""
    return {"prompt": [{"role": "user", "content": TASK + row["question"]}], "answer": row["answer"]}


def main(folder: Path) -> None:
    from datasets import load_dataset

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = [json.dumps(chat_row(row)) for row in load_dataset("openai/gsm8k", "main", split=split)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
