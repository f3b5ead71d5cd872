"""The command line: ``nsn train``, ``nsn eval`` and ``nsn plot``."""

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
from nsn.training import loop
from nsn.training.data import Data, check_fits, load_data
from nsn.training.errors import InputError
from nsn.training.plots import plot_curves
from nsn.training.recipe import Recipe, load_recipe
from nsn.training.report import (
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
    Path, typer.Option("--data", help="Folder with MNIST's four idx files, gzipped or not.")
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="Threads to compute with; 0: as torch chooses.")
]


@app.command(epilog=_EPILOG)
def train(
    recipe: Annotated[str, typer.Argument(help="demo, paper, or the path of a .toml file.")],
    data: DataOption = Path("data/mnist"),
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

    Examples:
      nsn train demo

      nsn train demo --data fashion --epochs 3 --out runs/fashion

      nsn train demo --set optimizer.lr=0.02 --set network.blocks.hidden1.dropout=0.1

      nsn train paper --alone sub1 --out runs/sub1
    """
    changes = [*(overrides or []), *([f"epochs={epochs}"] if epochs else [])]
    chosen = load_recipe(recipe, changes)
    if alone is not None:
        chosen = chosen.alone(alone)
    samples = _load(data, chosen.description)
    _use_threads(threads)
    state_file = out / "state.pt"
    run = loop.Run(chosen, samples, seed)
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

    console = Console()
    watcher: _Bar | _Lines
    watcher = _Bar(console, chosen) if console.is_terminal else _Lines(console, chosen)

    def after_epoch(record: dict[str, Any]) -> None:
        if not run.complete:
            write_state(state_file, run.state_dict())
        watcher.epoch(record)

    with _interrupts() as interrupted, watcher:
        run.train(on_step=watcher.step, on_epoch=after_epoch, should_stop=lambda: bool(interrupted))
    if not run.complete:
        write_state(state_file, run.state_dict())
    report = make_report(run, samples.test)
    title = f"{recipe}, {alone} alone" if alone else recipe
    nsn.save(run.network, out / "model.safetensors", {"recipe": json.dumps(chosen.values)})
    write_json(out / "report.json", report)
    plot_curves({title: report}, out / "curves.png", f"{title}, seed {seed}")
    done = "last epoch" if run.complete else "interrupted, weights of that moment"
    console.print(table(report["final"], f"{title}: {done}"))
    console.print(f"Left in {out}: model.safetensors, report.json, curves.png", highlight=False)
    if not run.complete:
        console.print("Go on with the same command and --resume.", highlight=False)
        raise typer.Exit(INTERRUPTED)
    state_file.unlink(missing_ok=True)


@app.command(epilog=_EPILOG)
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or report.json files.")],
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("curves.png"),
) -> None:
    """Draw the accuracy curves of one or several runs.

    Example:
      nsn plot runs/paper runs/sub1 --out together-and-alone.png
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


@app.command("eval", epilog=_EPILOG)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model.safetensors of nsn.")],
    data: DataOption = Path("data/mnist"),
    threads: ThreadsOption = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of a table.")
    ] = False,
) -> None:
    """Evaluate all sub-networks of a checkpoint on the test data.

    Example:
      nsn eval runs/demo/model.safetensors
    """
    try:
        network = nsn.load(checkpoint)
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error)) from None
    samples = _load(data, network.description)
    _use_threads(threads)
    final = summarize(network, samples.test)
    if as_json:
        typer.echo(json.dumps({"final": final}, indent=2))
    else:
        Console().print(table(final, str(checkpoint)))


def _load(directory: Path, description: nsn.Description) -> Data:
    samples = load_data(directory)
    outputs = {name: description.output_shape(name) for name in description.names}
    for name, shape in outputs.items():
        if len(shape) != 1:
            raise InputError(
                f"recipe: sub-network '{name}' gives outputs of shape {shape}, but classification "
                f"needs one number a class. End it with a Dense block on flat input."
            )
    check_fits(samples, description.input_shape, min(shape[0] for shape in outputs.values()))
    return samples


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


def _scores(record: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {scores['accuracy']:.4f}" for name, scores in record["subnetworks"].items()
    )


class _Bar:
    """For a terminal: one live bar over the whole run."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self._epochs = recipe.epochs
        self._accuracy = ""
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
            f"  {self._accuracy}",
        )

    def epoch(self, record: dict[str, Any]) -> None:
        self._accuracy = _scores(record)


class _Lines:
    """For files and pipes: one line an epoch."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self._console = console
        self._epochs = recipe.epochs

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, progress: loop.Progress) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        self._console.print(
            f"epoch {record['epoch']}/{self._epochs}  loss {record['train_loss']:.4f}"
            f"  {_scores(record)}  {record['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
