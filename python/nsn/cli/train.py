"""``nsn train``."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

import nsn
from nsn import files
from nsn.cli.app import INTERRUPTED, DataOption, ThreadsOption, app, command, use_threads
from nsn.training import loop
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.plots import plot_curves
from nsn.training.recipe import Recipe, load_recipe, metric_of, shipped
from nsn.training.report import (
    compare,
    comparison_table,
    finished_report,
    json_text,
    make_report,
    number_text,
    read_state,
    table,
    write_json,
    write_state,
)


@command(app)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help=f"{', '.join(shipped())}, or the path of a .toml file."
        ),
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
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a line of JSON for each epoch and for each result, no tables."
        ),
    ] = False,
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
      nsn train demo --data /usr/share/datasets/fashion-mnist --epochs 3 --out runs/fashion
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
    use_threads(threads)
    console = Console()
    show = _JsonLines if as_json else _Bar if console.is_terminal else _Lines
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
            report = _train(
                each, samples, title, folder, seed, resume and started, show(console, each)
            )
        reports.append(report)
    if with_alone:
        _compare(recipe, out, reports, None if as_json else console)


def _compare(title: str, out: Path, reports: list[dict[str, Any]], console: Console | None) -> None:
    """Puts what each sub-network reached alone into the report, curves and table of all."""
    together, *alone = reports
    own = {report["alone"]: report for report in alone}
    together["comparison"] = compare(together, own)
    write_json(out / "report.json", together)
    curves = {"together": together, **{f"{name} alone": each for name, each in own.items()}}
    plot_curves(curves, out / "curves.png", f"{title}, seed {together['seed']}")
    if console is None:
        typer.echo(json_text({"comparison": together["comparison"]}))
    else:
        console.print(comparison_table(together, f"{title}: together and alone"))


def _train(
    recipe: Recipe,
    samples: Data,
    title: str,
    out: Path,
    seed: int,
    resume: bool,
    watcher: "_Watcher",
) -> dict[str, Any]:
    """One run, which leaves its files in ``out``; its report. Ends the program at Ctrl-C."""
    state_file = out / "state.pt"
    run = loop.Run(recipe, samples, seed)
    if resume:
        state = read_state(state_file, run.state_dict())
        try:
            run.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).rstrip(".")
            raise InputError(
                f"--resume: '{state_file}' does not fit: {reason}. Give the recipe, --set, "
                f"--alone, --seed and --data that the run was started with."
            ) from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make the folder '{out}': {error.strerror}.") from None
    with _resumable(state_file):
        write_state(state_file, run.state_dict())  # whether it can be written shows before the work

        def after_epoch(record: dict[str, Any]) -> None:
            write_state(state_file, run.state_dict())
            watcher.epoch(record)

        with _interrupts() as interrupted, watcher:
            run.train(
                on_step=watcher.step,
                on_epoch=after_epoch,
                should_stop=lambda: bool(interrupted),
            )
        if not run.complete:
            write_state(state_file, run.state_dict())
        report = make_report(run, samples.test)
        nsn.save(run.evaluated, out / "model.safetensors", _metadata(recipe, out))
        write_json(out / "report.json", report)
        plot_curves({title: report}, out / "curves.png", f"{title}, seed {seed}")
    watcher.result(title, out, report)
    if not run.complete:
        raise typer.Exit(INTERRUPTED)
    state_file.unlink(missing_ok=True)
    return report


def _metadata(recipe: Recipe, out: Path) -> dict[str, str]:
    """What goes with a checkpoint: its recipe, and the way from its folder to its data."""
    data = os.path.relpath(recipe.values["data"]["path"], out)
    return {"recipe": json_text(recipe.values), "data": data}


@contextmanager
def _resumable(state_file: Path) -> Iterator[None]:
    """Says of a file that cannot be written how the run goes on."""
    try:
        yield
    except OSError as error:
        kept = (
            f" The run's last state is in '{state_file}': the same command with --resume goes on."
            if state_file.exists()
            else ""
        )
        raise InputError(f"--out: {files.reason(error)}{kept}") from None


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
        f"{name} {number_text(scores[metric])}" for name, scores in record["subnetworks"].items()
    )


class _Watcher:
    """Shows a run: nothing of its steps, one line an epoch, and its results as a table.

    Args:
        console: where it shows them.
        recipe: what is run.
    """

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self._console = console
        self._epochs = recipe.epochs
        self._metric = metric_of(recipe.values)

    def __enter__(self) -> "_Watcher":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, progress: loop.Progress) -> None:
        """After each step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """After each epoch, with its record of report.json."""

    def result(self, title: str, out: Path, report: dict[str, Any]) -> None:
        """At the end, or when it was interrupted."""
        interrupted = report["interrupted"]
        done = "interrupted, weights of that moment" if interrupted else "last epoch"
        self._console.print(table(report["final"], f"{title}: {done}"))
        self._console.print(
            f"Left in {out}: model.safetensors, report.json, curves.png", highlight=False
        )
        if interrupted:
            self._console.print("Go on with the same command and --resume.", highlight=False)


class _Bar(_Watcher):
    """For a terminal: one live bar over the whole run."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        super().__init__(console, recipe)
        self._scores = ""
        self._bar = Progress(
            # Of a narrow terminal the text gets what the others leave.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=min(40, console.width // 4)),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
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


class _Lines(_Watcher):
    """For files and pipes: one line an epoch."""

    def epoch(self, record: dict[str, Any]) -> None:
        self._console.print(
            f"epoch {record['epoch']}/{self._epochs}  loss {record['train_loss']:.4f}"
            f"  {_scores(record, self._metric)}  {record['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


class _JsonLines(_Watcher):
    """For machines: one object a line, an epoch's record of report.json or a result."""

    def epoch(self, record: dict[str, Any]) -> None:
        print(json_text(record), flush=True)

    def result(self, title: str, out: Path, report: dict[str, Any]) -> None:
        keys = ("final", "interrupted", "alone", "seed")
        print(json_text({"folder": str(out), **{key: report[key] for key in keys}}), flush=True)
