"""`online-dpo quickstart`: a short real run on the embedded models, and what it did."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from online_dpo import embedded
from online_dpo.commands.run import run
from online_dpo.commands.status import read_status
from online_dpo.commands.terminal.showing import Display
from online_dpo.config.loading import load_config
from online_dpo.reports.page.writing import REPORT
from online_dpo.reports.progress import describe_evaluation
from online_dpo.reports.round_tables import rounds_table, seconds_table
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Prompt

CONFIG = Path(embedded.__file__).parent / "quickstart.yaml"
NUM_SHOWN = 2


def quickstart(shown: Display) -> None:
    """Run it in a run directory of its own and print the rounds, two prompts before and after, and where it all is."""
    config = load_config(CONFIG, [f"run.name={_free_name(Path('runs'))}"])
    result = run(config, listeners=(shown.begin(config.run_dir),))
    shown.end()
    if not shown.is_quiet:
        show_outcome(result.run_dir)
    print(f"run directory: {result.run_dir}   (online-dpo status {result.run_dir})")


def show_outcome(run_dir: Path) -> None:
    """The rounds, and two prompts before and after."""
    console = Console(width=140, highlight=False)
    status = read_status(run_dir)
    console.print()
    console.print(rounds_table(status))
    console.print(seconds_table(status))
    final = status["rounds"][-1]["evaluation"]["heldout"]
    console.print(
        f"\nheld-out openings after {len(status['rounds'])} rounds: {describe_evaluation(final)}", soft_wrap=True
    )
    console.print("reward and gold are log-odds of a kind review; brackets: paired-bootstrap 95 % interval of the gain")
    for opening, before, after in before_and_after(run_dir):
        console.print(f"\n{opening} ...", markup=False)
        console.print(f"  before: {before}", markup=False, soft_wrap=True)
        console.print(f"  after:  {after}", markup=False, soft_wrap=True)
    console.print(f"\nto look at in a browser: {run_dir / REPORT}", markup=False, soft_wrap=True)


def before_and_after(run_dir: Path) -> list[tuple[str, str, str]]:
    """The first held-out openings with the initial policy's answer and the last one's, not selected."""
    with RunStore.read(run_dir) as store:
        first, last = store.round(0), store.round(store.finished_rounds()[-1])
        before = first.get_records("evaluation-initial/heldout/completions/shard-00000", Completion)
        after = last.get_records("evaluation/heldout/completions/shard-00000", Completion)
    openings = {prompt.prompt_id: prompt for prompt in _heldout_prompts()}
    return [
        (str(openings[b.prompt_id].text), b.text.strip(), a.text.strip())
        for b, a in zip(before[:NUM_SHOWN], after[:NUM_SHOWN], strict=True)
    ]


def _heldout_prompts() -> list[Prompt]:
    lines = embedded.resolve("openings/heldout").read_text().splitlines()
    return [
        Prompt(prompt_id=f"{row:06d}", token_ids=(), text=json.loads(line)["prompt"]) for row, line in enumerate(lines)
    ]


def _free_name(folder: Path) -> str:
    number = 1
    while (folder / f"quickstart-{number:03d}").exists():
        number += 1
    return f"quickstart-{number:03d}"
