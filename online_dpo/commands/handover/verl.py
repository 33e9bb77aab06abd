"""`online-dpo export --for verl`: data, judge and a start script. verl itself has never been run with them here.

The keys of the script are those of verl's `verl/trainer/config/_generated_ppo_trainer.yaml` and `reward/reward.yaml`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.commands.handover.folders import write_merged
from online_dpo.commands.handover.judging import write_judge_config
from online_dpo.commands.handover.starting_point import StartingPoint
from online_dpo.commands.handover.templates import one_line, render
from online_dpo.errors import UserError


def write_verl(start: StartingPoint, folder: Path) -> list[str]:
    """Write the merged policy, the data, the judge, its reward function and the start script.

    Args:
        start: what is continued.
        folder: to fill.

    Returns:
        Lines about what cannot come along.

    Raises:
        UserError: the prompts are plain text, which verl does not take.
    """
    config = start.config
    if any(prompt.messages is None for prompt in start.prompts):
        raise UserError(
            "the run's prompts are plain text, and verl writes every prompt by the chat template; give --for grpo"
        )
    notes = write_judge_config(config.judge, folder)
    (folder / "policy").mkdir()
    write_merged(start.base, start.policy, folder / "policy", dtype=config.model.dtype)
    rows = [
        {
            "data_source": "online-dpo",
            "prompt": prompt.content,
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {
                "index": index,
                # As text: a parquet file would give every row the keys of all.
                "online_dpo": json.dumps({"prompt": prompt.content, "metadata": dict(prompt.metadata)}),
            },
        }
        for index, prompt in enumerate(start.prompts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    named = {"run": one_line(config.run.name), "version": start.version}
    (folder / "reward_function.py").write_text(render("reward_function.py.jinja", **named))
    script = render(
        "train_verl.sh.jinja",
        batch=min(config.learner.batch_pairs, len(start.prompts)),
        max_prompt=config.max_prompt_tokens,
        max_response=config.sampling.max_tokens,
        n=config.sampling.num_samples,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        **named,
    )
    (folder / "train_verl.sh").write_text(script)
    return notes
