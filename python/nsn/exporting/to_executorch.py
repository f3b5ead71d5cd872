"""ExecuTorch: one program with a method for each sub-network."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsn.exporting.folder import Program
from nsn.exporting.job import BATCH, Job, Shared, quiet, tracing, versions

PACKAGES = (
    "executorch.exir",
    "executorch.runtime",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
)

VARIANTS = ("portable", "xnnpack")


def steps(job_size: int) -> int:
    """How many steps ``write`` takes for a number of sub-networks."""
    return len(VARIANTS) * (job_size + 1)


def write(job: Job, folder: Path) -> tuple[list[Program], dict[str, str]]:
    """Writes ``portable.pte`` and ``xnnpack.pte``; what runs, and what made it.

    In ``portable.pte`` a narrow sub-network slices the whole tensors when it runs. XNNPACK takes
    weights that are constants, not slices of some, so in ``xnnpack.pte`` narrow parts are constants
    of their own; what is kept whole is there once for all.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    programs = []
    for variant in VARIANTS:
        methods = {}
        for name in job.subnetworks:
            job.step(f"{variant}: {name}")
            module = Shared(job.network, name, as_constants=variant == "xnnpack")
            methods[name] = _exported(job, module)
        job.step(f"{variant}.pte")
        partitioners = [XnnpackPartitioner()] if variant == "xnnpack" else None
        with tracing():
            lowered = to_edge_transform_and_lower(methods, partitioner=partitioners)
            content = lowered.to_executorch().buffer
        (folder / f"{variant}.pte").write_bytes(content)
        for name in job.subnetworks:
            signature = job.signature(name)
            file = f"{variant}.pte"
            programs.append(Program(name, variant, file, name, *signature, job.max_batch))
    return programs, versions("executorch")


def _exported(job: Job, module: Shared) -> torch.export.ExportedProgram:
    shapes: Any = None
    if job.max_batch > 1:
        shapes = ({0: torch.export.Dim(BATCH, min=1, max=job.max_batch)},)
    with tracing():
        return torch.export.export(
            module, (job.example(min(2, job.max_batch)),), dynamic_shapes=shapes, strict=False
        )


class Runner:
    """Runs one program of an export, with ExecuTorch's runtime."""

    def __init__(self, folder: Path, program: Program) -> None:
        from executorch.runtime import Runtime

        with quiet():
            self._program = Runtime.get().load_program(folder / program.file)
            method = self._program.load_method(program.method)
        if method is None:
            raise RuntimeError(f"nsn: '{program.file}' has no method '{program.method}'.")
        self._method = method

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._method.execute([x])[0]
        return result.clone()  # the method's own memory, which its next call overwrites
