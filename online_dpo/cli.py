"""The `online-dpo` command. Thin: torch, ray and vllm are imported only inside the commands that use them."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from online_dpo.commands.terminal import parameters as given
from online_dpo.errors import OnlineDPOError, UserError
from online_dpo.interruption import INTERRUPTED, answer_signals
from online_dpo.version import __version__

app = typer.Typer(
    help="Online and iterative DPO: sample with vLLM, judge, update a LoRA, push it back, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"online-dpo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Online and iterative DPO: sample with vLLM, judge, update a LoRA, push it back, repeat."""


@app.command()
def run(
    config: given.Config,
    overrides: given.Overrides = None,
    quiet: given.Quiet = False,
    as_json: given.AsEvents = False,
    yes: given.Yes = False,
) -> None:
    """Start a run, or continue the one in its run directory."""
    from online_dpo.commands.run import run as launch
    from online_dpo.commands.terminal.playing import play
    from online_dpo.config.loading import load_config

    play(launch, lambda: load_config(config, overrides or ()), quiet=quiet, as_json=as_json, yes=yes)


@app.command()
def resume(
    run_dir: given.RunDir,
    overrides: given.Overrides = None,
    quiet: given.Quiet = False,
    as_json: given.AsEvents = False,
    yes: given.Yes = False,
) -> None:
    """Continue a run from what it committed last."""
    from online_dpo.commands.run import continue_run, recorded_config
    from online_dpo.commands.terminal.playing import play

    play(continue_run, lambda: recorded_config(run_dir, overrides or ()), quiet=quiet, as_json=as_json, yes=yes)


@app.command()
def validate(
    config: given.Config,
    overrides: given.Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also load tokenizer, prompts and judges.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the config with every default filled in, and check no more.")
    ] = False,
    gpu_memory: given.GpuMemory = None,
    shapes: given.Shapes = None,
) -> None:
    """Check a config and what it names, without starting an engine; says what it needs and what was not checked."""
    from online_dpo.commands.preparing.resources import Machine
    from online_dpo.commands.validate import validate_deep, validate_light
    from online_dpo.config.loading import dump_config, load_config

    loaded = load_config(config, overrides or ())
    if show_config:
        typer.echo(dump_config(loaded), nl=False)
        return
    typer.echo(f"config: {config} is valid; the run directory is {loaded.run_dir}")
    machine = Machine.of(config, gpu_gib=gpu_memory, shapes=shapes)
    for line in validate_deep(loaded, machine) if deep else validate_light(loaded, machine):
        typer.echo(line)


@app.command("config")
def print_config(
    schema: Annotated[bool, typer.Option("--schema", help="As a JSON schema, for editors.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown tables, for the documentation.")] = False,
) -> None:
    """Print every field of a config with its default and meaning, as commented YAML."""
    from online_dpo.commands.config import json_schema, markdown_reference, yaml_reference

    if schema and markdown:
        raise UserError("--schema and --markdown are both given; choose one of them")
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
    else:
        typer.echo(markdown_reference() if markdown else yaml_reference(), nl=False)


@app.command()
def status(
    run_dir: given.RunDir,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Where the run stands, until it ends.")] = False,
) -> None:
    """Rounds, rewards, KL, drop counts and stage times; also while the run goes on."""
    from online_dpo.commands.status import read_status, show_status, watch_status

    if watch and as_json:
        raise UserError("--watch and --json are both given; choose one of them")
    if watch:
        watch_status(run_dir)
        return
    console = Console() if sys.stdout.isatty() else Console(width=160)
    show_status(read_status(run_dir), console, as_json=as_json)


@app.command()
def report(
    run_dir: given.RunDir,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="By default report/report.html in RUN_DIR.", callback=given.expect_usable
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML file about a run: did it get better, curves, answers, judges; also while the run goes on."""
    from online_dpo.commands.report import report as write

    typer.echo(f"report: {write(run_dir, out=out, open_it=open_it)}")


@app.command()
def view(
    run_dir: given.RunDir,
    port: Annotated[int, typer.Option("--port", help="0 = a free one.", min=0, max=65535)] = 8017,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Show the report in the browser, kept up to date while the run goes on; on this machine alone."""
    from online_dpo.commands.view import view as serve

    serve(run_dir, port=port, open_it=open_it, tell=typer.echo)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR RUN_DIR ...", help="2 to 12 runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", callback=given.expect_usable)] = Path("compare.html"),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML file about several runs: paired wins, curves on common axes, what differs in their configs."""
    from online_dpo.commands.compare import compare as write

    for run_dir in run_dirs:
        given.expect_usable(run_dir)
    typer.echo(f"comparison: {write(run_dirs, out=out, open_it=open_it)}")


@app.command()
def export(
    run_dir: given.RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", callback=given.expect_usable)],
    round_number: Annotated[int | None, typer.Option("--round", help="Counted from 1; the last by default.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="A whole model instead of an adapter.")] = False,
    trainer: given.ForTrainer = None,
    reference: given.Reference = "run",
    repo_id: given.PushToHub = None,
    private: given.Private = False,
    dry_run: given.DryRun = False,
) -> None:
    """Write a round's policy with a model card: a PEFT adapter, a merged model, or a start for another trainer."""
    from online_dpo.commands.export import Options, export_lines

    options = Options(
        round_number=round_number, merge=merge, trainer=trainer, reference=reference,
        repo_id=repo_id, private=private, dry_run=dry_run,
    )  # fmt: skip
    for line in export_lines(run_dir, out, options):
        typer.echo(line)


@app.command()
def rewind(
    run_dir: given.RunDir,
    round_number: Annotated[
        int | None, typer.Option("--round", help="The first round to play again, counted from 1.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete all rounds that were ever set aside.")] = False,
) -> None:
    """Set rounds aside, so that `resume` plays them again; without --round, only repair the file `latest`."""
    from online_dpo.commands.rewind import rewind as set_aside

    for line in set_aside(run_dir, round_number=round_number, delete=delete):
        typer.echo(line)


@app.command()
def fork(
    run_dir: given.RunDir,
    new_dir: Annotated[Path, typer.Argument(metavar="NEW_DIR", help="A new folder.", callback=given.expect_usable)],
    round_number: Annotated[int, typer.Option("--round", help="The round to do anew in part, counted from 1.")],
    overrides: given.Overrides = None,
    start: given.FromStage = None,
) -> None:
    """Judge, pair or train on a round's samples again under another config, in a new run; RUN_DIR is only read."""
    from online_dpo.commands.fork import fork as make

    for line in make(run_dir, new_dir, round_number=round_number, overrides=overrides or (), start=start):
        typer.echo(line)


@app.command()
def verify(
    run_dir: given.RunDir,
    accept: given.Accept = None,
) -> None:
    """Read every committed file; name each damaged one, what depends on it, and the cheapest way on."""
    from online_dpo.commands.verify import verify as check

    for line in check(run_dir, accept or ()):
        typer.echo(line)


@app.command()
def judge(
    config: given.Config,
    file: given.CompletionsFile = None,
    overrides: given.Overrides = None,
    name: given.JudgeName = None,
    gold: given.Gold = None,
    repeat: given.Repeat = False,
    swap: given.Swap = False,
    limit: given.Limit = None,
    show: given.Show = 5,
    estimate: given.Estimate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Run only the judge, over prompts and completions from a file; or tell what a run's judges would cost."""
    from online_dpo.commands.judge import Options, estimate_run, judge_file
    from online_dpo.commands.judge import show as lines

    if estimate:
        for line in estimate_run(config, file, overrides or (), judge=name, as_json=as_json):
            typer.echo(line)
        return
    if file is None:
        raise UserError("no FILE is given; give one with prompts and completions, or --estimate for what a run costs")
    options = Options(judge=name, gold=gold, repeat=repeat, swap=swap, limit=limit)
    report = judge_file(config, file, overrides or (), options)
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in lines(report, num_prompts=show):
        typer.echo(line)


@app.command()
def judges() -> None:
    """List the kinds of judges, and those that installed packages offer."""
    from online_dpo.commands.judge import installed_judges

    for line in installed_judges():
        typer.echo(line)


@app.command("reward-model")
def reward_model(
    config: given.Config,
    overrides: given.Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a reward model on preferences, a run's pairs or people's votes; `judge.path` takes its folder."""
    from online_dpo.commands.reward_model.card import show_report
    from online_dpo.commands.reward_model.command import train_reward_model
    from online_dpo.config.loading import load_reward_model

    loaded = load_reward_model(config, overrides or ())
    report = train_reward_model(loaded, lambda line: typer.echo(line, err=as_json))
    if as_json:
        typer.echo(json.dumps(report))
        return
    show_report(report, Console() if sys.stdout.isatty() else Console(width=160))
    typer.echo(f"\nreward model: {loaded.output}")


@app.command()
def annotate(
    run_dir: given.RunDir,
    port: Annotated[int, typer.Option("--port", help="Where to listen; 0 takes a free port.")] = 8765,
    host: Annotated[str, typer.Option("--host", help="The address to listen at; 0.0.0.0 = all of them.")] = "127.0.0.1",
    url: Annotated[str | None, typer.Option("--url", help="What people open, if a proxy is before it.")] = None,
    proxy: given.TrustedProxy = None,
    invite: Annotated[str | None, typer.Option("--invite", metavar="NAME", help="Only print a link for NAME.")] = None,
    days: Annotated[float, typer.Option("--days", help="How long the link of --invite is valid.")] = 7.0,
) -> None:
    """Ask people: serve the pages on which they compare answers of a run with a human judge."""
    from online_dpo.annotation.web.serving import Address
    from online_dpo.commands.annotate import annotate as ask
    from online_dpo.commands.annotate import invite as link_for

    address = Address(host=host, port=port, url=url, proxy=proxy)
    if invite is None:
        ask(run_dir, address, typer.echo)
    else:
        typer.echo(link_for(run_dir, invite, address=address, days=days))


@app.command()
def quickstart(quiet: given.Quiet = False, as_json: given.AsEvents = False) -> None:
    """A few rounds on the embedded models: film reviews become friendlier, in about three minutes on two cores."""
    from online_dpo.commands.quickstart import quickstart as play
    from online_dpo.commands.terminal.showing import display

    with display(quiet=quiet, as_json=as_json) as shown:
        play(shown)


def main() -> NoReturn:
    """Exit codes: 0 done, 2 the user's mistake, 3 stopped by budget or alarm, 4 asks people, 130 Ctrl-C, 1 other."""
    answer_signals()
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OnlineDPOError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        show = getattr(error, "show", None)  # a wrong command line, in typer's own words
        if show is not None:
            show()
            option = getattr(error, "option_name", "")
            if "." in option:
                typer.echo(f"A field of the config is set without dashes: {option.lstrip('-')}=VALUE", err=True)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)
    # Typer turns a Ctrl-C inside a command into this value instead of raising.
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
