"""Whether all ways to run a network's sub-networks give the same numbers, on the same inputs.

The reference is the view of the network as it is loaded. Held against it are the joint pass, the
packed view, the extracted copy, the network saved and loaded again, the sub-network loaded by
itself, and each program of each export.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from nsn.checkpoint import load, save
from nsn.exporting import Export, Program
from nsn.exporting.formats import runner
from nsn.exporting.job import MissingPackageError, input_dtype
from nsn.network import ALL, Network

#: By the outputs' dtype, how far a way may be from the view, as a share of the largest magnitude
#: among the view's outputs. The ways order their sums differently, so that they differ by rounding,
#: some ten times the dtype's epsilon in the networks of the recipes; a wrong weight moves outputs
#: by a share of the same order as itself.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}

#: The same for exports whose weights are narrower than what they compute in, by their dtype. int8
#: has the precision of bfloat16 where all of a row's weights are as large as its largest.
WEIGHT_TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2, "int8": 8e-2}

#: One sub-network's output for a batch.
Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """How one way to run one sub-network compares with the view.

    Attributes:
        way: what ran.
        subnetwork: which; "" where a row is about files.
        difference: the largest absolute difference between two outputs; None where it did not run.
        relative: that, as a share of the largest magnitude among the view's outputs.
        argmax: the share of the outputs whose largest element is at the same place.
        tolerance: what ``relative`` may be.
        problem: why it did not run, or what is wrong; "" otherwise.
        accuracy, view_accuracy: on all test data, of exports with narrower weights.
    """

    way: str
    subnetwork: str
    difference: float | None
    relative: float | None
    argmax: float | None
    tolerance: float
    problem: str = ""
    accuracy: float | None = None
    view_accuracy: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it ran and is within the tolerance."""
        return self.relative is not None and self.relative <= self.tolerance

    def document(self) -> dict[str, Any]:
        """As JSON has it; what is no number there is None."""
        finite = {
            key: None if isinstance(value, float) and not abs(value) < float("inf") else value
            for key, value in asdict(self).items()
        }
        return {**finite, "ok": self.ok}


def verify(
    checkpoint: Path,
    exports: Sequence[Path],
    x: Tensor,
    progress: Callable[[str], None] = lambda message: None,
    accuracy: Callable[[Way], float] | None = None,
) -> Iterator[Row]:
    """Runs all ways and compares each with the view.

    Args:
        checkpoint: a model.safetensors.
        exports: folders that ``nsn.export`` wrote.
        x: the inputs, ``(B, *input)``.
        progress: told of each way before it runs.
        accuracy: what a way reaches on test data; asked for exports with narrower weights.

    Yields:
        A row for each way and sub-network. Where files of an export are not as its manifest says,
        there is a row for each of those files, and nothing of the export is run.

    Raises:
        OSError, ValueError: where a checkpoint or manifest cannot be read.
        ImportError: where the packages of an export's format are not installed.
    """
    network = load(checkpoint).eval()
    opened = [Export.open(folder) for folder in exports]
    exported = {program.subnetwork for export in opened for program in export.programs}
    # Cells of a grid are not listed, but may have been exported.
    known = [*network.subnetworks, *sorted(filter(network.description.has_cell, exported))]
    views = {name: network.view(name)(x) for name in known}
    reached: dict[str, float] = {}  # by views, where it was asked for
    for title, ways in _ways_of(network, checkpoint, x):
        progress(title)
        for name in network.subnetworks:
            yield compare(title, name, views[name], ways(name)(x))
    for export in opened:
        damaged = export.check()
        for message in damaged:
            yield _failed(str(export.folder), "", message)
        for program in export.programs if not damaged else ():
            title = f"{export.folder.name}: {program.label}"
            progress(f"{title}, {program.subnetwork}")
            row = _of_program(title, export, program, views, x)
            if accuracy is not None and program.weights is not None and row.difference is not None:
                own = accuracy(_in_parts(export, program))
                name = program.subnetwork
                if name not in reached:
                    reached[name] = accuracy(network.view(name))
                row = replace(row, accuracy=own, view_accuracy=reached[name])
            yield row


# Each of these makes one way to run a sub-network.


def _joint(network: Network, x: Tensor) -> Callable[[str], Way]:
    with torch.no_grad():
        outputs = network(x, ALL)
    return lambda name: lambda _: outputs[name]


def _packed(network: Network) -> Callable[[str], Way]:
    pack = network.pack()
    return lambda name: pack.view(name)


def _extracted(network: Network) -> Callable[[str], Way]:
    return lambda name: torch.no_grad()(network.extract(name))


def _reloaded(network: Network) -> Callable[[str], Way]:
    with tempfile.TemporaryDirectory() as folder:
        save(network, Path(folder) / "again.safetensors")
        again = load(Path(folder) / "again.safetensors")
    return lambda name: again.view(name)


def _in_part(checkpoint: Path) -> Callable[[str], Way]:
    return lambda name: load(checkpoint, only=name).view(name)


def _ways_of(
    network: Network, checkpoint: Path, x: Tensor
) -> Iterator[tuple[str, Callable[[str], Way]]]:
    yield "joint pass", _joint(network, x)
    yield "packed view", _packed(network)
    yield "extracted copy", _extracted(network)
    yield "saved and reloaded", _reloaded(network)
    yield "loaded in part", _in_part(checkpoint)


def _of_program(
    title: str, export: Export, program: Program, views: dict[str, Tensor], x: Tensor
) -> Row:
    name = program.subnetwork
    if name not in views:
        return _failed(title, name, "the checkpoint has no such sub-network")
    try:
        output = _in_parts(export, program)(x)
    except MissingPackageError:
        raise
    except Exception as error:  # each runtime has its own
        return _failed(title, name, f"does not run: {str(error).strip() or repr(error)}")
    tolerance = None if program.weights is None else WEIGHT_TOLERANCES[program.weights]
    return compare(title, name, views[name], output, tolerance)


def _in_parts(export: Export, program: Program) -> Way:
    """A program for batches of any size."""
    run = runner(export, program)
    return lambda x: torch.cat([run(part) for part in x.split(program.max_batch or len(x))])


def _failed(way: str, name: str, problem: str) -> Row:
    return Row(way, name, None, None, None, 0.0, problem)


def compare(
    way: str, name: str, expected: Tensor, found: Tensor, tolerance: float | None = None
) -> Row:
    """Holds one way's outputs against the view's, within a tolerance, by default the dtype's."""
    tolerance = TOLERANCES[expected.dtype] if tolerance is None else tolerance
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return _failed(
            way,
            name,
            f"gives {found.dtype} of shape {tuple(found.shape)}, but the view {expected.dtype} of "
            f"shape {tuple(expected.shape)}",
        )
    precise = expected.double()
    bad = int((~precise.isfinite()).sum())
    if bad:
        return _failed(
            way,
            name,
            f"{bad} of the view's {precise.numel()} outputs are NaN or infinite, so that nothing "
            f"can be compared: train the network again, for example at a lower learning rate",
        )
    difference = (precise - found.double()).abs().max().item()
    scale = precise.abs().max().item()
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
    # A difference that is not a number is not within any tolerance.
    return Row(way, name, difference, difference / scale if scale else difference, same, tolerance)


def random_inputs(network: Network, count: int, seed: int = 0) -> Tensor:
    """Inputs for a network without data: normal numbers, or integers that its embeddings take.

    Args:
        network: what is to read them.
        count: how many, B.
        seed: the same one gives the same inputs.

    Returns:
        ``(B, *input)``.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *network.description.input_shape)
    dtype = input_dtype(network)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    document = json.loads(network.description.to_json())
    limit = min(_vocabularies(document["blocks"]), default=2)
    return torch.randint(min(limit, torch.iinfo(dtype).max), shape, generator=generator).to(dtype)


def _vocabularies(blocks: list[dict[str, Any]]) -> Iterator[int]:
    for block in blocks:
        if block["type"] == "Embedding":
            yield block["num_embeddings"]
        yield from _vocabularies(block.get("blocks", []))


def table(rows: Sequence[Row]) -> Table:
    """The rows for a person."""
    result = Table()
    for heading in ("way", "sub-network"):
        result.add_column(heading, overflow="fold")
    has_accuracy = any(row.accuracy is not None for row in rows)
    numbers_of = ["largest\ndifference", "relative", "tolerance", "same\nargmax"]
    if has_accuracy:
        numbers_of.append("accuracy\n(view's)")
    for heading in (*numbers_of, ""):
        result.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        if row.difference is None or row.relative is None or row.argmax is None:
            numbers = ["-"] * 4
        else:
            numbers = [
                f"{row.difference:.1e}",
                f"{row.relative:.1e}",
                f"{row.tolerance:.0e}",
                f"{100 * row.argmax:.1f} %",
            ]
        if has_accuracy:
            both = row.accuracy, row.view_accuracy
            numbers.append("-" if None in both else "{:.4f} ({:.4f})".format(*both))
        result.add_row(row.way, row.subnetwork, *numbers, "ok" if row.ok else "FAILS")
    return result
