"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from online_dpo.errors import UserError
from online_dpo.text_files import shown, unusable_path


def _complete(incomplete: str) -> list[str]:
    from online_dpo.commands.terminal.completion import complete_override

    return complete_override(incomplete)


def expect_usable(path: Path | None) -> Path | None:
    if path is not None and (why := unusable_path(path)) is not None:
        raise UserError(f"{shown(path)} {why}; give another path")
    return path


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="e.g. run.rounds=3 learner.lr=1e-4", autocompletion=_complete),
]
RunDir = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="The run's folder, such as runs/reviews.", callback=expect_usable)
]
Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/reviews.yaml.", callback=expect_usable)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors, warnings and the last line only.")]
AsEvents = Annotated[
    bool, typer.Option("--json", help="One JSON object a line on standard output, all else on standard error.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before judges are asked that cost money.")]

ForTrainer = Annotated[
    Literal["grpo", "verl"] | None,
    typer.Option("--for", help="The trainer to go on in OUT, with the run's judge as the reward.", metavar="grpo|verl"),
]
Reference = Annotated[
    Literal["run", "initial"],
    typer.Option(
        "--reference", help="With --for grpo: the reference of the run's next round, or the initial policy.",
        metavar="run|initial",
    ),
]  # fmt: skip
PushToHub = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="REPO_ID", help="Upload OUT to this repository, owner/name.")
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="With --push-to-hub: write OUT, list what would be uploaded, send nothing.")
]
GpuMemory = Annotated[
    float | None, typer.Option("--gpu-memory", metavar="GIB", help="Of the GPUs that the run is for.", min=1.0)
]
Shapes = Annotated[
    Path | None,
    typer.Option(
        "--shapes",
        metavar="FOLDER",
        help="config.json files of models on the hub, as org--name.json; `shapes` beside CONFIG by default.",
        callback=expect_usable,
    ),
]

FromStage = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="sample, judge, pair or learn; by default what changed says."),
]
Accept = Annotated[
    list[str] | None,
    typer.Option("--accept", metavar="FILE", help="Go on with this file damaged, if no later round reads it."),
]
TrustedProxy = Annotated[
    str | None, typer.Option("--trust-proxy", metavar="ADDRESS", help="Believe forwarded headers of this proxy.")
]

CompletionsFile = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="Rows with a prompt and its completions.", callback=expect_usable),
]
JudgeName = Annotated[str | None, typer.Option("--judge", help="One of evaluation.judges.")]
Gold = Annotated[str | None, typer.Option("--gold", help="Column of known labels; `chosen` for pairs.")]
Repeat = Annotated[bool, typer.Option("--repeat", help="Ask again; how often is the outcome the same?")]
Swap = Annotated[bool, typer.Option("--swap", help="Ask again with the completions in opposite order.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Read so many rows at most.", min=1)]
Show = Annotated[int, typer.Option("--show", help="Print the verdicts on so many prompts.", min=0)]
Estimate = Annotated[bool, typer.Option("--estimate", help="Ask nothing; tell what a run would ask and cost.")]
