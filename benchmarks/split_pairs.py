"""Train and held-out files of a preference data set, for configs/offline.yaml.

    python benchmarks/split_pairs.py PAIRS.jsonl[.gz] OUT_FOLDER [--heldout 0.2] [--seed 0]

Writes OUT_FOLDER/train.jsonl and OUT_FOLDER/heldout.jsonl. A row's side is settled by a hash of the seed and its
prompt, so that no prompt is on both sides and adding rows moves none. Keep the folder out of version control.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", type=float, default=0.2, help="share of the prompts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with gzip.open(args.pairs, "rt") if args.pairs.suffix == ".gz" else args.pairs.open() as lines:
        rows = [line for line in lines if line.strip()]
    sides: dict[str, list[str]] = {"train": [], "heldout": []}
    for row in rows:
        prompt = json.dumps([args.seed, json.loads(row)["prompt"]], sort_keys=True)
        number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
        sides["heldout" if number < args.heldout else "train"].append(row)
    for name, found in sides.items():
        (args.out / f"{name}.jsonl").write_text("".join(found))
        print(f"{len(found)} of {len(rows)} rows -> {args.out / name}.jsonl")


if __name__ == "__main__":
    main()
