"""``nsn eval``, ``nsn describe`` and ``nsn plot``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nsn.cli.app import (
    EPILOG,
    SETTINGS,
    CheckpointArgument,
    DataOption,
    JsonOption,
    NetworkArgument,
    ThreadsOption,
    app,
    command,
    data_of,
    given,
    load_network,
    say,
    tables_console,
    use_threads,
)
from nsn.describing import read_description, tables
from nsn.description import Description
from nsn.paths import paths_of
from nsn.picture import plot_paths
from nsn.training.errors import InputError
from nsn.training.plots import plot_curves
from nsn.training.report import json_text, read_report, summarize, table

plot = typer.Typer(
    context_settings=SETTINGS,
    help="Draw curves of runs, or the sub-networks' paths through a network.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(plot, name="plot")


@command(plot)
def curves(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or report.json files.")
    ],
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("curves.png"),
    as_json: JsonOption = False,
) -> None:
    """Draw the accuracy curves of one or several runs.

    Example:
      nsn plot curves runs/paper runs/sub1 --out together-and-alone.png
    """
    short = [path.name.removesuffix(".json") for path in runs]
    labels = short if len(set(short)) == len(short) else [str(path) for path in runs]
    reports = dict(zip(labels, map(read_report, runs), strict=True))
    try:
        with given("--out: "):
            plot_curves(reports, out, "" if len(runs) > 1 else labels[0])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"report: an epoch's record is not as nsn train writes it: {error}."
        ) from None
    say(as_json, {"file": str(out)}, f"Wrote {out}")


@command(plot)
def paths(
    network: NetworkArgument,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("paths.png"),
    as_json: JsonOption = False,
) -> None:
    """Draw which blocks each sub-network keeps, and how wide.

    Example:
      nsn plot paths transformer --out transformer.png
    """
    ways = paths_of(read_description(network))
    with given("--out: "):
        plot_paths(ways, out, network)
    say(as_json, {"file": str(out)}, f"Wrote {out}")


@command(app)
def describe(
    network: NetworkArgument,
    program: Annotated[
        bool, typer.Option("--program", help="Show what each computes, step by step.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show how packs run each: fused steps, buffers, FLOPs."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show each sub-network's blocks, widths and costs, and what it shares with the others.

    "its own alone" counts parameters that no other sub-network uses; FLOPs are two for each
    multiply-add. Under "Widths", "-" is a block that the sub-network drops.

    Examples:
      nsn describe demo
      nsn describe runs/demo/model.safetensors --json
      nsn describe demo --program
      nsn describe cnn --plan
    """
    description = read_description(network)
    if program and plan:
        raise InputError("--program, --plan: show different things. Give one of them.")
    if program or plan:
        with given("--plan: " if plan else ""):
            _show_steps(description, plan, as_json)
        return
    if as_json:
        typer.echo(json.dumps(description.describe(), indent=2))
        return
    tables_console().print(tables(description))


def _show_steps(description: Description, plan: bool, as_json: bool) -> None:
    """What each sub-network computes: its program, or its plan."""
    if as_json:
        document = description.plan if plan else description.program
        documents = {name: json.loads(document(name)) for name in description.names}
        typer.echo(json.dumps(documents, indent=2))
        return
    text = description.plan_text if plan else description.program_text
    for name in description.names:
        typer.echo(f"{name}:\n{text(name)}")


@command(app, "eval")
def evaluate(
    checkpoint: CheckpointArgument,
    data: DataOption = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Evaluate all listed sub-networks of a checkpoint on the test data of its recipe.

    Example:
      nsn eval runs/demo/model.safetensors
    """
    network = load_network(checkpoint)
    samples = data_of(checkpoint, network, data)
    if samples is None:
        raise InputError(f"'{checkpoint}' names no recipe. Give data to evaluate on with --data.")
    use_threads(threads)
    final = summarize(network, samples.test)
    if as_json:
        typer.echo(json_text({"final": final}, indent=2))
    else:
        tables_console().print(table(final, str(checkpoint)))
