"""``nsn extract``, ``nsn export`` and ``nsn verify``."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import nsn
from nsn import files
from nsn.cli.app import (
    DISAGREE,
    CheckpointArgument,
    DataOption,
    JsonOption,
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
from nsn.exporting import FORMATS
from nsn.exporting.job import Progress as Steps
from nsn.exporting.to_runtime import WEIGHTS
from nsn.training.loop import accuracy_of
from nsn.training.report import json_text
from nsn.verifying import Row, random_inputs, verify
from nsn.verifying import table as verification_table

_RANDOM_SEED = 0


@command(app)
def extract(
    checkpoint: CheckpointArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sub-network.")],
    out: Annotated[Path | None, typer.Option(help="The file to write.  [default: NAME.pt]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one sub-network as a plain torch.nn module, which does not need nsn.

    torch.load(FILE, weights_only=False) gives the module, in evaluation mode.

    Example:
      nsn extract runs/demo/model.safetensors sub1 --out sub1.pt
    """
    network = load_network(checkpoint).eval()
    file = out or Path(f"{name}.pt")
    with given():
        module = network.extract(name)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    with given("--out: "):
        files.write(file, buffer.getbuffer())
    parameters = sum(each.numel() for each in module.parameters())
    size = file.stat().st_size
    say(
        as_json,
        {"file": str(file), "subnetwork": name, "parameters": parameters, "bytes": size},
        f"Wrote {file}: {name}, {parameters:,} parameters, {size:,} bytes",
    )


@command(app)
def export(
    checkpoint: CheckpointArgument,
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to make, which must not exist.  [default: FORMAT beside the "
            "checkpoint]"
        ),
    ] = None,
    subnetworks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="Which to export; default: all listed."),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="The largest batch of executorch; the others take any.  [default: 32]"
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="What runtime holds weights as: float32, float16, bfloat16 or int8; all is "
            "computed in float32."
        ),
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint's sub-networks in a format that runs without nsn.

    executorch: portable.pte and xnnpack.pte, with a method for each sub-network. onnx: a graph for
    each sub-network, over one file of weights. pt2: a file of torch.export for each sub-network.
    runtime: network.nsnrt, for nsn's own runtime, which needs no LibTorch. Beside them,
    manifest.json has names, shapes, sizes and checksums.

    Examples:
      nsn export runs/demo/model.safetensors --format onnx --out demo-onnx
      nsn export runs/demo/model.safetensors --format executorch --subnetworks base,sub2
      nsn export runs/demo/model.safetensors --format runtime --weights int8
    """
    network = load_network(checkpoint)
    names = None if subnetworks is None else [each.strip() for each in subnetworks.split(",")]
    folder = out or checkpoint.parent / format
    with given(), _steps(Console(stderr=True)) as progress:
        result = nsn.export(
            network,
            folder,
            format,
            names,
            max_batch=max_batch,
            weights=_dtype_of(weights),
            progress=progress,
        )
    files = {name: facts["bytes"] for name, facts in result.files.items()}
    say(
        as_json,
        {"folder": str(folder), **json.loads((folder / "manifest.json").read_text())},
        "\n".join(
            [f"Wrote {folder}", *(f"  {name}: {size:,} bytes" for name, size in files.items())]
        ),
    )


def _dtype_of(name: str) -> torch.dtype:
    for dtype in WEIGHTS:
        if str(dtype) == f"torch.{name}":
            return dtype
    raise ValueError(
        f"--weights must be one of {', '.join(str(each)[6:] for each in WEIGHTS)}, but is '{name}'."
    )


@command(app, "verify")
def verify_(
    checkpoint: CheckpointArgument,
    exports: Annotated[
        list[Path] | None,
        typer.Argument(metavar="EXPORT", help="Folders that nsn export wrote."),
    ] = None,
    data: DataOption = None,
    samples: Annotated[int, typer.Option(min=1, help="How many inputs to compare on.")] = 64,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check that all ways to run the sub-networks give the same numbers.

    Runs each sub-network as a view, and compares with it on the same test data of the recipe: the
    joint pass, the packed view, the extracted copy, the network saved and loaded again, the
    sub-network loaded by itself, and each program of each export, whose files are held against
    their checksums first. A way may differ by rounding: docs/shipping.md has the tolerances. Where
    one is further off, or does not run, the exit code is 3. Of exports whose weights are narrower
    than float32, the accuracy on all test data stands beside the view's.

    Example:
      nsn verify runs/demo/model.safetensors demo-onnx demo-executorch
    """
    network = load_network(checkpoint)
    found = data_of(checkpoint, network, data)
    if found is None:
        inputs = random_inputs(network, samples, _RANDOM_SEED)
        source = f"random inputs, seed {_RANDOM_SEED}, since the checkpoint names no recipe"
    else:
        inputs, _ = found.test.batch(found.test.ordered()[:samples])
        source = "inputs of the test data"
    use_threads(threads)
    rows: list[Row] = []
    with given(), _status(Console(stderr=True)) as status:
        accuracy = None if found is None else partial(accuracy_of, split=found.test)
        rows.extend(verify(checkpoint, exports or [], inputs, status, accuracy))
    agree = all(row.ok for row in rows)
    if as_json:
        document = {
            "agree": agree,
            "samples": len(inputs),
            "inputs": source,
            "rows": [row.document() for row in rows],
        }
        typer.echo(json_text(document, indent=2))
    else:
        _show(rows, f"{checkpoint}: against the view, on {len(inputs)} {source}")
    if not agree:
        raise typer.Exit(DISAGREE)


def _show(rows: list[Row], title: str) -> None:
    console = tables_console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(verification_table(rows))
    for row in rows:
        if row.problem:
            text = f"{row.way}{', ' if row.subnetwork else ''}{row.subnetwork}: {row.problem}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    failed = sum(not row.ok for row in rows)
    console.print(f"{failed} of {len(rows)} FAIL" if failed else f"all {len(rows)} agree")


@contextmanager
def _steps(console: Console) -> Iterator[Steps]:
    """A bar on a terminal, and else a line for each step."""
    if not console.is_terminal:
        yield lambda message, done, steps: console.print(
            f"{done + 1}/{steps}  {message}", markup=False, highlight=False, soft_wrap=True
        )
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda message, done, steps: bar.update(
            task, description=message, completed=done, total=steps
        )


@contextmanager
def _status(console: Console) -> Iterator[Callable[[str], None]]:
    """What runs now, on a terminal."""
    if not console.is_terminal:
        yield lambda message: None
        return
    with console.status("starting") as status:
        yield status.update
