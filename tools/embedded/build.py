"""Build everything under `online_dpo/embedded/` that is not source code or an opening.

    python -m tools.embedded.build --data ../shared/data/movie_reviews.jsonl.gz

Needs the `dev` extra (scikit-learn). glibc gives memory back to the system between steps; keeping it makes a step
about a third faster: MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=16000000000.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedModel

from online_dpo.embedded import resolve
from tools.embedded import measure
from tools.embedded.card import model_card
from tools.embedded.corpus import Review, half_of, load_reviews, random_snippet
from tools.embedded.gold_fit import export_gold, fit_gold
from tools.embedded.reward_fit import train_reward
from tools.embedded.training import BOS_ID, EOS_ID, PAD_ID, save_tokenizer, train_policy, train_tokenizer

logger = logging.getLogger(__name__)

STAGES = ("policy", "reward", "gold", "measure", "card")
SEED = 0
GOLD_SNIPPETS = 10
GOLD_WORDS = (20, 90)


def split_for_judges(reviews: Sequence[Review]) -> tuple[list[Review], list[Review]]:
    """The train reviews for the reward model and those for the gold classifier: disjoint, and together all."""
    train = [review for review in reviews if review.split == "train"]
    return [r for r in train if half_of(r.review_id) == "reward"], [r for r in train if half_of(r.review_id) == "gold"]


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write bf16 safetensors; a causal model gets a generation config that sets nothing but the special tokens."""
    if model.can_generate():
        model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    model.bfloat16().save_pretrained(folder)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Undo safetensors' owner-only mode, which would otherwise travel into wheels."""
    for path in folder.iterdir():
        path.chmod(0o644)


def record(out: Path, figures: dict[str, Any]) -> None:
    """Merge `figures` into `measured.json`."""
    path = out / "measured.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **figures}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def build_policy(reviews: Sequence[Review], out: Path, *, minutes: float, steps: int, resume_at: int = 0) -> None:
    """Train tokenizer and policy and write both; the best weights so far are in `out/policy` all the while."""
    train = [review for review in reviews if review.split == "train"]
    heldout = [review for review in reviews if review.split == "heldout"]
    tokenizer = train_tokenizer([review.text for review in train])
    policy, figures = train_policy(
        train,
        heldout,
        tokenizer,
        minutes=minutes,
        steps=steps,
        seed=SEED,
        checkpoint=out / "policy",
        resume_at=resume_at,
    )
    save_model(policy, out / "policy")
    save_tokenizer(tokenizer, out / "policy", padding_side="left")
    record(out, {"policy": {**figures, "planned_steps": steps, "resumed_at": resume_at}})


def build_reward(reviews: Sequence[Review], out: Path, *, minutes: float, steps: int) -> None:
    """Train the reward model on its half of the reviews, from the saved policy, and write it with its tokenizer."""
    mine, _ = split_for_judges(reviews)
    tokenizer = Tokenizer.from_file(str(out / "policy" / "tokenizer.json"))
    policy = LlamaForCausalLM.from_pretrained(out / "policy", dtype=torch.float32)
    reward, figures = train_reward(policy, mine, tokenizer, minutes=minutes, steps=steps, seed=SEED)
    save_model(reward, out / "reward")
    save_tokenizer(tokenizer, out / "reward", padding_side="right")
    record(out, {"reward": {**figures, "planned_steps": steps, "reviews": len(mine)}})


def build_gold(reviews: Sequence[Review], out: Path) -> None:
    """Fit the gold classifier to snippets and whole reviews of its half and write it."""
    _, mine = split_for_judges(reviews)
    rng = random.Random(SEED)
    examples = [(random_snippet(r, rng, words=GOLD_WORDS), r.positive) for r in mine for _ in range(GOLD_SNIPPETS)]
    examples += [(review.text, review.positive) for review in mine]
    export_gold(fit_gold([text for text, _ in examples], [label for _, label in examples]), out / "gold")
    make_readable(out / "gold")
    record(out, {"gold": {"reviews": len(mine), "texts": len(examples)}})


def measure_all(reviews: Sequence[Review], out: Path) -> None:
    """Take every figure of the card from the saved files."""
    train = [review for review in reviews if review.split == "train"]
    heldout = [review for review in reviews if review.split == "heldout"]
    figures = {
        "language": measure.measure_language(train, heldout, out),
        "judges": measure.measure_judges(heldout, out),
        "agreement": measure.measure_agreement(out),
        "samples": measure.unselected_samples(out),
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
    }
    record(out, figures)
    for name in ("language", "judges", "agreement"):
        logger.info("%s: %s", name, figures[name])


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the embedded policy, reward model and gold classifier.")
    parser.add_argument("--data", type=Path, required=True, help="the film reviews, gzipped JSON lines")
    parser.add_argument("--out", type=Path, default=resolve("policy").parent, help="default: the package")
    parser.add_argument("--lm-steps", type=int, default=1700, help="updates of the policy")
    parser.add_argument("--lm-minutes", type=float, default=60.0, help="end the policy's training earlier than that")
    parser.add_argument("--lm-resume-at", type=int, default=0, help="go on from OUT/policy, which had so many updates")
    parser.add_argument("--reward-steps", type=int, default=1000, help="updates of the reward model")
    parser.add_argument("--reward-minutes", type=float, default=20.0, help="end its training earlier than that")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these, in their usual order")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages; each reads what earlier ones left in `--out`, so they can be run one by one."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    reviews, out = load_reviews(options.data), options.out
    out.mkdir(parents=True, exist_ok=True)
    if "policy" in options.stages:
        build_policy(reviews, out, minutes=options.lm_minutes, steps=options.lm_steps, resume_at=options.lm_resume_at)
    if "reward" in options.stages:
        build_reward(reviews, out, minutes=options.reward_minutes, steps=options.reward_steps)
    if "gold" in options.stages:
        build_gold(reviews, out)
    if "measure" in options.stages:
        measure_all(reviews, out)
    if "card" in options.stages:
        measured = json.loads((out / "measured.json").read_text(encoding="utf-8"))
        (out / "README.md").write_text(model_card(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
