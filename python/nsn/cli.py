"""The command line: ``nsn train``, ``nsn eval``, ``nsn describe`` and ``nsn plot``."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import nsn
from nsn.describing import read_description, tables
from nsn.paths import paths_of
from nsn.picture import plot_paths
from nsn.training import loop
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.plots import plot_curves
from nsn.training.recipe import Recipe, check_data, load_recipe, metric_of, shipped
from nsn.training.report import (
    compare,
    comparison_table,
    finished_report,
    make_report,
    read_report,
    read_state,
    summarize,
    table,
    write_json,
    write_state,
)

BAD_INPUT, INTERRUPTED = 2, 130

_EPILOG = (
    "Exit codes: 0 done; 1 an unexpected failure; 2 wrong usage, recipe, data or file; 130 ended "
    "by Ctrl-C, with a usable checkpoint."
)

app = typer.Typer(
    name="nsn",
    help="Networks with sub-networks: train together, switch at run time.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
plot = typer.Typer(
    help="Draw curves of runs, or the sub-networks' paths through a network.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(plot, name="plot")


def main() -> None:
    """The entry point: what the user gave wrong becomes one message and exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(f"nsn: {error}", markup=False, highlight=False)
        sys.exit(BAD_INPUT)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nsn {nsn.__version__}, torch {torch.__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    pass


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="In place of the recipe's: a folder with four idx files as MNIST's, gzipped or not, "
        "or a text file.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="Threads to compute with; 0: as torch chooses.")
]


@app.command(epilog=_EPILOG)
def train(
    recipe: Annotated[
        str, typer.Argument(help=f"{', '.join(shipped())}, or the path of a .toml file.")
    ],
    data: DataOption = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for what the run leaves; files of an older run are replaced."),
    ] = Path("runs/latest"),
    seed: Annotated[int, typer.Option(help="For weights, order of samples and dropout.")] = 1,
    threads: ThreadsOption = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    alone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Train this sub-network by itself.")
    ] = None,
    with_alone: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Train each sub-network by itself too, with the same budget, and show both.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, which was interrupted.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="In place of a recipe's value; repeatable."
        ),
    ] = None,
) -> None:
    """Train a network together with its sub-networks.

    Leaves model.safetensors, report.json and curves.png in the folder --out. While it runs, and
    after an interruption, there is a state.pt too, written after each epoch and by Ctrl-C: the same
    command with --resume goes on from it and ends with the same bits as a run in one piece, given
    the same number of threads.

    With --compare there is a folder alone-NAME below --out for each sub-network's own run, of as
    many steps on the same batches with the same schedule, and the report has both results.

    Examples:
      nsn train demo

      nsn train demo --data fashion --epochs 3 --out runs/fashion

      nsn train demo --set optimizer.lr=0.02 --set network.blocks.hidden1.dropout=0.1

      nsn train paper --alone sub1 --out runs/sub1

      nsn train transformer --compare --out runs/transformer
    """
    changes = [*(overrides or []), *([f"epochs={epochs}"] if epochs else [])]
    chosen = load_recipe(recipe, changes)
    if data is not None:
        chosen = chosen.reading(data)
    if alone is not None:
        if with_alone:
            raise InputError("--compare trains each sub-network alone; leave --alone out.")
        chosen = chosen.alone(alone)
    samples = load_data(chosen.values["data"], chosen.description)
    _use_threads(threads)
    console = Console()
    runs = {out: chosen}
    if with_alone:
        names = chosen.description.names
        runs |= {out / f"alone-{name}": chosen.alone(name) for name in names}
    reports = []
    for folder, each in runs.items():
        title = f"{recipe}, {each.alone_name} alone" if each.alone_name else recipe
        report = finished_report(folder, each, seed) if resume and with_alone else None
        if report is None:
            started = folder == out or (folder / "state.pt").exists()
            report = _train(each, samples, title, folder, seed, resume and started, console)
        reports.append(report)
    if with_alone:
        _compare(recipe, out, reports, console)


def _compare(title: str, out: Path, reports: list[dict[str, Any]], console: Console) -> None:
    """Puts what each sub-network reached alone into the report, curves and table of all."""
    together, *alone = reports
    own = {report["alone"]: report for report in alone}
    together["comparison"] = compare(together, own)
    write_json(out / "report.json", together)
    curves = {"together": together, **{f"{name} alone": each for name, each in own.items()}}
    plot_curves(curves, out / "curves.png", f"{title}, seed {together['seed']}")
    console.print(comparison_table(together, f"{title}: together and alone"))


def _train(
    recipe: Recipe,
    samples: Data,
    title: str,
    out: Path,
    seed: int,
    resume: bool,
    console: Console,
) -> dict[str, Any]:
    """One run, which leaves its files in ``out``; its report. Ends the program at Ctrl-C."""
    state_file = out / "state.pt"
    run = loop.Run(recipe, samples, seed)
    if resume:
        try:
            run.load_state_dict(read_state(state_file))
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--resume: '{state_file}' does not fit: {error}. Give the recipe, --set, --alone, "
                f"--seed and --data that the run was started with."
            ) from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make the folder '{out}': {error.strerror}.") from None

    watcher: _Bar | _Lines
    watcher = _Bar(console, recipe) if console.is_terminal else _Lines(console, recipe)

    def after_epoch(record: dict[str, Any]) -> None:
        if not run.complete:
            write_state(state_file, run.state_dict())
        watcher.epoch(record)

    with _interrupts() as interrupted, watcher:
        run.train(on_step=watcher.step, on_epoch=after_epoch, should_stop=lambda: bool(interrupted))
    if not run.complete:
        write_state(state_file, run.state_dict())
    report = make_report(run, samples.test)
    nsn.save(run.network, out / "model.safetensors", {"recipe": json.dumps(recipe.values)})
    write_json(out / "report.json", report)
    plot_curves({title: report}, out / "curves.png", f"{title}, seed {seed}")
    done = "last epoch" if run.complete else "interrupted, weights of that moment"
    console.print(table(report["final"], f"{title}: {done}"))
    console.print(f"Left in {out}: model.safetensors, report.json, curves.png", highlight=False)
    if not run.complete:
        console.print("Go on with the same command and --resume.", highlight=False)
        raise typer.Exit(INTERRUPTED)
    state_file.unlink(missing_ok=True)
    return report


@plot.command(epilog=_EPILOG)
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or report.json files.")],
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("curves.png"),
) -> None:
    """Draw the accuracy curves of one or several runs.

    Example:
      nsn plot curves runs/paper runs/sub1 --out together-and-alone.png
    """
    short = [path.name.removesuffix(".json") for path in runs]
    labels = short if len(set(short)) == len(short) else [str(path) for path in runs]
    reports = dict(zip(labels, map(read_report, runs), strict=True))
    try:
        plot_curves(reports, out, "" if len(runs) > 1 else labels[0])
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}': {error.strerror}.") from None
    except (KeyError, TypeError) as error:
        raise InputError(
            f"report: an epoch's record is not as nsn train writes it: {error}."
        ) from None
    typer.echo(f"Wrote {out}")


NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT_OR_RECIPE",
        help=f"A model.safetensors; {', '.join(shipped())}, or the path of a recipe's .toml file; "
        f"or a description as a .json file.",
    ),
]


@plot.command(epilog=_EPILOG)
def paths(
    network: NetworkArgument,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("paths.png"),
) -> None:
    """Draw which blocks each sub-network keeps, and how wide.

    Example:
      nsn plot paths transformer --out transformer.png
    """
    ways = paths_of(read_description(network))
    try:
        plot_paths(ways, out, network)
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}': {error.strerror}.") from None
    typer.echo(f"Wrote {out}")


@app.command(epilog=_EPILOG)
def describe(
    network: NetworkArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show each sub-network's blocks, widths and costs, and what it shares with the others.

    "its own alone" counts parameters that no other sub-network uses; FLOPs are two for each
    multiply-add. Under "Widths", "-" is a block that the sub-network drops.

    Examples:
      nsn describe demo

      nsn describe runs/demo/model.safetensors --json
    """
    description = read_description(network)
    if as_json:
        typer.echo(json.dumps(description.describe(), indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # lines of a file may be as long as the tables are wide
    console.print(tables(description))


@app.command("eval", epilog=_EPILOG)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model.safetensors of nsn.")],
    data: DataOption = None,
    threads: ThreadsOption = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of a table.")
    ] = False,
) -> None:
    """Evaluate all sub-networks of a checkpoint on the test data of its recipe.

    Example:
      nsn eval runs/demo/model.safetensors
    """
    try:
        network = nsn.load(checkpoint)
        recipe = json.loads(nsn.load_metadata(checkpoint).get("recipe", "{}"))
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error)) from None
    source = check_data(recipe.get("data", {"kind": "images"}))
    if data is not None:
        source["path"] = str(data)
    samples = load_data(source, network.description)
    _use_threads(threads)
    final = summarize(network, samples.test)
    if as_json:
        typer.echo(json.dumps({"final": final}, indent=2))
    else:
        Console().print(table(final, str(checkpoint)))


def _use_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C in a list while the block runs; a second one ends the program at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _scores(record: dict[str, Any], metric: str) -> str:
    return "  ".join(
        f"{name} {scores[metric]:.4f}" for name, scores in record["subnetworks"].items()
    )


class _Bar:
    """For a terminal: one live bar over the whole run."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self._epochs = recipe.epochs
        self._metric = metric_of(recipe.values)
        self._scores = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, progress: loop.Progress) -> None:
        self._bar.update(
            self._task,
            total=self._epochs * progress.steps,
            completed=(progress.epoch - 1) * progress.steps + progress.step,
            description=f"epoch {progress.epoch}/{self._epochs}  loss {progress.loss:.3f}"
            f"  {self._scores}",
        )

    def epoch(self, record: dict[str, Any]) -> None:
        self._scores = _scores(record, self._metric)


class _Lines:
    """For files and pipes: one line an epoch."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self._console = console
        self._epochs = recipe.epochs
        self._metric = metric_of(recipe.values)

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, progress: loop.Progress) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        self._console.print(
            f"epoch {record['epoch']}/{self._epochs}  loss {record['train_loss']:.4f}"
            f"  {_scores(record, self._metric)}  {record['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
