"""What the commands have in common: the application, its exit codes, options, and messages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import nsn
from nsn import Network
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.recipe import check_data, shipped

BAD_INPUT, DISAGREE, INTERRUPTED = 2, 3, 130

EPILOG = (
    "Exit codes: 0 done; 1 an unexpected failure; 2 wrong usage, recipe, data or file, or a "
    "package that is not installed; 3 nsn verify found a disagreement; 130 ended by Ctrl-C, nsn "
    "train with a usable checkpoint."
)

app = typer.Typer(
    name="nsn",
    help="Networks with sub-networks: train together, switch at run time.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

CheckpointArgument = Annotated[Path, typer.Argument(help="A model.safetensors of nsn.")]
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
    typer.echo(json.dumps(document, indent=2) if as_json else text)


def use_threads(threads: int) -> None:
    """Computes with so many threads; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


@contextmanager
def given() -> Iterator[None]:
    """Makes what a file that the user gave causes, in the block, an ``InputError``."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:  # torch's and nsn's own name the file
            text = (
                error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
            )
        raise InputError(text.removeprefix("nsn: ")) from None


def load_network(checkpoint: Path) -> Network:
    """A checkpoint's network.

    Raises:
        InputError: where there is none.
    """
    with given():
        return nsn.load(checkpoint)


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
        recipe = json.loads(nsn.load_metadata(checkpoint).get("recipe", "{}"))
    if path is None and "data" not in recipe:
        return None
    source = check_data(recipe.get("data", {"kind": "images"}))
    if path is not None:
        source["path"] = str(path)
    return load_data(source, network.description)
