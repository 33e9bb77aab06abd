"""Prompts for configs/reviews.yaml from the held-out film reviews: the first words of sentences.

    python benchmarks/review_openings.py REVIEWS.jsonl.gz OUT_FOLDER [--per-review 6 1]

Writes OUT_FOLDER/train.jsonl and OUT_FOLDER/heldout.jsonl. The embedded models were fitted to none of these reviews,
and no review gives openings to both files. Keep the folder out of version control: the text is not ours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

WORDS = 8
MIN_WORDS = 14  # of the sentence, so that an opening is not the whole of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reviews", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--per-review", type=int, nargs=2, default=(6, 1), metavar=("TRAIN", "HELDOUT"), help="openings of a review"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with gzip.open(args.reviews, "rt") as lines:
        heldout = sorted(
            (row for row in map(json.loads, lines) if row["split"] == "heldout"), key=lambda row: str(row["id"])
        )
    halves = (("train", heldout[0::2]), ("heldout", heldout[1::2]))
    for (name, rows), most in zip(halves, args.per_review, strict=True):
        openings = []
        for row in rows:
            sentences = [line.split() for line in re.split(r"(?<=[.!?])\s+", row["text"])]
            long = [words for words in sentences if len(words) >= MIN_WORDS]
            for number, words in enumerate(long[:most]):
                openings.append({"id": f"{row['id']}-{number}", "prompt": " ".join(words[:WORDS])})
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(opening) + "\n" for opening in openings))
        print(f"{len(openings)} openings of {len(rows)} reviews -> {args.out / name}.jsonl")


if __name__ == "__main__":
    main()
