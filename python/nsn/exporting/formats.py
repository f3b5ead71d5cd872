"""``nsn.export``: a network in a format that runs without nsn."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import nsn
from nsn import files
from nsn.checks import names_of, shown
from nsn.exporting import to_executorch, to_onnx, to_pt2, to_runtime
from nsn.exporting.folder import Export, Program, write_manifest
from nsn.exporting.job import Job, Progress, need
from nsn.network import Network
from nsn.parameters import network_in

_WRITERS: dict[str, ModuleType] = {
    "executorch": to_executorch,
    "onnx": to_onnx,
    "pt2": to_pt2,
    "runtime": to_runtime,
}

#: The formats. "executorch" and "onnx" are optional extras of the package.
FORMATS = tuple(_WRITERS)


def export(
    network: Network,
    folder: str | os.PathLike[str],
    format: str = "onnx",
    subnetworks: Sequence[str] | None = None,
    *,
    max_batch: int | None = None,
    weights: torch.dtype = torch.float32,
    progress: Progress = lambda message, done, steps: None,
) -> Export:
    """Writes sub-networks into a new folder, in a format that runs without nsn.

    ``executorch``: ``portable.pte`` and ``xnnpack.pte``, each with a method for each sub-network.
    ``onnx``: ``<sub-network>.onnx`` for each, all over one ``weights.bin``. ``pt2``:
    ``<sub-network>.pt2`` for each, of ``torch.export``, with its weights alone. ``runtime``:
    ``network.nsnrt``, one file of all, for nsn's runtime without LibTorch. Beside them a
    ``manifest.json``. docs/shipping.md says how to run them, and what is stored once.

    Args:
        network: what to export, as it evaluates; is not changed.
        folder: which must not exist; it is there complete, or not at all.
        format: one of the four.
        subnetworks: the names of those to export; default: all that are listed.
        max_batch: of ``executorch``, the largest batch, which its memory is planned for; 32 where
            None. The others take any, and no limit.
        weights: of ``runtime``, what the weights of products and convolutions are rounded to,
            float16, bfloat16 or int8; all is computed in float32. The others keep the network's.
        progress: called before each step with what comes now, the steps done, and all steps.

    Raises:
        ValueError: where there is no such format or sub-network, a limit is below 1, or something
            is given that the format does not take.
        FileExistsError: where the folder exists. OSError: where the system refuses.
        ImportError: where the format's packages are not installed; says how to get them.
    """
    if not isinstance(format, str) or format not in _WRITERS:
        raise ValueError(
            f"nsn.export: format must be one of {', '.join(FORMATS)}, but is {shown(format)}."
        )
    held = network_in("nsn.export: network", network)
    assert isinstance(held, Network)
    network = held
    if isinstance(subnetworks, str):
        raise TypeError(
            f"nsn.export: subnetworks must be a list of names, but is a str. Write "
            f"['{subnetworks}']."
        )
    names = (
        network.subnetworks
        if subnetworks is None
        else names_of("nsn.export: subnetworks", subnetworks)
    )
    for name in names:
        network.description.index_of(name)
    network._check_loaded(names)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"nsn.export: subnetworks must name each one once, and at least one, but is {names}."
        )
    if max_batch is None:
        max_batch = 32
    elif format != "executorch":
        raise ValueError(
            f"nsn.export: max_batch is of the format executorch, whose memory is planned for it, "
            f"but the format is {format}, which takes batches of any size. Leave it out."
        )
    if max_batch < 1:
        raise ValueError(f"nsn.export: max_batch must be at least 1, but is {max_batch}.")
    if format != "runtime" and weights != torch.float32:
        raise ValueError(
            f"nsn.export: weights of other types are of the format runtime, but the format is "
            f"{format}, which keeps the network's, and weights is {weights!r}. Leave it out."
        )
    if weights not in to_runtime.WEIGHTS:
        raise ValueError(
            f"nsn.export: weights must be torch.float32, which keeps them as they are, "
            f"torch.float16, torch.bfloat16 or torch.int8, but is {weights!r}."
        )
    writer = _WRITERS[format]
    need(format, *writer.PACKAGES)
    job = Job(network, names, max_batch, weights, progress, writer.steps(len(names)))
    with files.new_folder(folder) as made:
        programs, made_with = writer.write(job, made)
        write_manifest(made, format, programs, {"nsn": nsn.__version__, **made_with})
    return Export.open(Path(os.fsdecode(folder)))


def runner(export: Export, program: Program) -> Callable[[Tensor], Tensor]:
    """What runs one program of an export: ``(B, *input)`` to ``(B, *output)``, on the CPU.

    Raises:
        ValueError: where the export's format is none of this version's.
        ImportError: where the format's packages are not installed; says how to get them.
        Exception: of the format's runtime, where it refuses the file.
    """
    if export.format not in _WRITERS:
        raise ValueError(
            f"nsn: '{export.folder}' has the format '{export.format}', which is unknown."
        )
    writer = _WRITERS[export.format]
    need(export.format, *writer.PACKAGES)
    run: Callable[[Tensor], Tensor] = writer.Runner(export.folder, program)
    return run
