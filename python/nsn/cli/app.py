"""What the commands have in common: the application, its exit codes, options, and messages."""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
import typer.core
from rich.console import Console

import nsn
from nsn import Network, files
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.recipe import shipped
from nsn.training.report import json_text
from nsn.training.tables import check_data

BAD_INPUT, DISAGREE, DIVERGED, INTERRUPTED = 2, 3, 4, 130

EPILOG = (
    "Exit codes: 0 done; 1 an unexpected failure; 2 wrong usage, recipe, data or file, or a "
    "package that is not installed; 3 nsn verify found a disagreement; 4 nsn train or nsn study "
    "diverged, its loss is no finite number; 130 ended by Ctrl-C, nsn train with a usable "
    "checkpoint."
)

SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="nsn",
    context_settings=SETTINGS,
    help="Networks with sub-networks: train together, switch at run time.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A model.safetensors of nsn.")
]
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT_OR_RECIPE",
        help=f"A model.safetensors; {', '.join(shipped())}, or the path of a recipe's .toml file; "
        f"or a description as a .json file.",
    ),
]
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]


class _Command(typer.core.TyperCommand):
    """Writes what is required as ``NAME``, where typer has ``{NAME}``."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]


Command = TypeVar("Command", bound=Callable[..., None])


def command(group: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Adds a function to the command line; of its docstring, the examples are not wrapped."""

    def add(function: Command) -> Command:
        text = inspect.getdoc(function) or ""
        text = re.sub(r"^(Examples?:)$", "\b\n\\1", text, flags=re.MULTILINE)
        return group.command(name, cls=_Command, epilog=EPILOG, help=text)(function)

    return add


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nsn {nsn.__version__}, torch {torch.__version__}, CPU level {nsn.cpu_level()}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    pass


def say(as_json: bool, document: dict[str, Any], text: str) -> None:
    """Prints a result for a machine, or for a person."""
    typer.echo(json_text(document, indent=2) if as_json else text)


def tables_console() -> Console:
    """Where tables go: as wide as the terminal; lines of a file are as long as they need to be."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    return console


def use_threads(threads: int) -> None:
    """Computes with so many threads; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


@contextmanager
def given(option: str = "") -> Iterator[None]:
    """Makes what a file that the user gave causes, in the block, an ``InputError``."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        text = files.reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(option + text.removeprefix("nsn: ")) from None


def load_network(checkpoint: Path) -> Network:
    """A checkpoint's network.

    Raises:
        InputError: where there is none.
    """
    with given():
        return nsn.load(checkpoint)


def _data_path(checkpoint: Path, path: Path, from_checkpoint: str | None) -> Path:
    """Where a recipe's data are now: seen from the checkpoint, else from the folder of today."""
    if path.is_absolute() or from_checkpoint is None:
        return path
    beside = Path(os.path.normpath(checkpoint.parent.absolute() / from_checkpoint))
    for place in (beside, path):
        if place.exists():
            return place
    raise InputError(
        f"data: the checkpoint was trained on '{path}', but there is neither '{beside}' nor "
        f"'{path}' here. Give the data with --data."
    )


def data_of(checkpoint: Path, network: Network, path: Path | None) -> Data | None:
    """The data that a checkpoint was trained on, or other data in the form of it.

    Args:
        checkpoint: a model.safetensors, which names its recipe if ``nsn train`` wrote it.
        network: what is in it.
        path: of the data to use in place of the recipe's.

    Returns:
        None where the checkpoint names no recipe and no path is given.

    Raises:
        InputError: where the data cannot be read.
    """
    with given():
        metadata = nsn.load_metadata(checkpoint)
        recipe = json.loads(metadata.get("recipe", "{}"))
    if path is None and "data" not in recipe:
        return None
    source = check_data(recipe.get("data", {"kind": "images"}))
    if path is None:
        path = _data_path(checkpoint, Path(source["path"]), metadata.get("data"))
    return load_data({**source, "path": str(path)}, network.description)
