"""A run from Python: a judge, a listener, two rounds, their results, the adapter, and one more round.

    python docs/example.py MODEL_FOLDER

works in an empty folder, with any small causal language model; each part can be a cell of a notebook.
"""

import json
import sys
from pathlib import Path

from online_dpo import Event, Listener, RoundResult, load_config, resume, run, write_judge


# %% A judge: higher is better. `Abstain("why")` in place of a number means no opinion.
def kindness(prompt: str, completion: str) -> float:
    """The share of letters that are an e, so that there is something to learn."""
    return completion.count("e") / max(len(completion), 1)


# %% A listener: each of its methods is optional, and none of them can end the run.
class Watcher(Listener):
    """Keeps the losses of the steps, and prints a line for each round."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def hear(self, event: Event) -> None:
        if event.kind == "step" and not event.data.get("skipped"):
            self.losses.append(event.data["loss"])

    def round_done(self, result: RoundResult) -> None:
        reward = result.evaluation["heldout"].judges["reward"]
        print(f"round {result.round}: {result.pairs.num_pairs} pairs, held-out reward {reward.mean}")


def main(model: str) -> None:
    """Write prompts, run two rounds, look at them, load the policy, and run a third."""
    # %% Prompts: one JSON object on each line.
    for name in ("train", "heldout"):
        rows = [{"prompt": f"{name} question {number}:"} for number in range(16)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    # %% A config is what the YAML file would be. Everything else has a default.
    config = load_config(
        {
            "run": {"name": "example", "rounds": 2},
            "model": {"path": model},
            "prompts": {"source": "train.jsonl", "per_round": 8, "max_tokens": 64},
            "sampling": {"num_samples": 4, "max_tokens": 16},
            "judge": {"type": "python", "target": write_judge(kindness, "kindness.py")},
            "evaluation": {"sets": {"heldout": {"source": "heldout.jsonl", "count": 8}}},
            "learner": {"lr": 1e-2, "batch_pairs": 8},
        }
    )
    watcher = Watcher()
    result = run(config, listeners=[watcher])

    # %% Results are records with the names of `metrics.jsonl`.
    for round_result in result.rounds:
        gain = round_result.evaluation["heldout"].judges["reward"].gain
        kl = round_result.evaluation["heldout"].kl_initial
        print(f"round {round_result.round}: gain {gain}, KL to the initial policy {kl} nats")
        print(f"  sampled {round_result.sampling.num_completions}, accuracy {round_result.learning.reward_accuracy}")
        print(f"  seconds {dict(round_result.seconds)}")
        print("\n".join(f"  warning: {warning}" for warning in round_result.warnings))
    print(f"{len(watcher.losses)} steps, the first with a loss of {watcher.losses[0]:.4f}")

    # %% The policy is an adapter in PEFT's format.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(result.adapter))
    print(f"{policy.get_nb_trainable_parameters()[1]} parameters with the adapter of {result.adapter}")

    # %% One more round.
    longer = resume(result.run_dir, ["run.rounds=3"], listeners=[watcher])
    print(f"{len(longer.rounds)} rounds, reward {longer.rounds[-1].judging.reward}")


if __name__ == "__main__":
    main(sys.argv[1])
