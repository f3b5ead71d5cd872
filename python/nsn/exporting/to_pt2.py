"""``torch.export``: a file for each sub-network, which holds its weights alone."""

from pathlib import Path

import torch
from torch import Tensor

from nsn.exporting.folder import Program
from nsn.exporting.job import BATCH, Job, quiet, tracing, versions
from nsn.extract import extract

PACKAGES: tuple[str, ...] = ()


def steps(job_size: int) -> int:
    """How many steps ``write`` takes for a number of sub-networks."""
    return job_size


def write(job: Job, folder: Path) -> tuple[list[Program], dict[str, str]]:
    """Writes ``<sub-network>.pt2`` for each; what runs, and what made it."""
    programs = []
    for name in job.subnetworks:
        job.step(f"{name}: torch.export")
        module = extract(job.network, name).cpu().eval().requires_grad_(False)
        batch = torch.export.Dim(BATCH, min=1)
        with tracing():
            exported = torch.export.export(
                module, (job.example(2),), dynamic_shapes=({0: batch},), strict=False
            )
            torch.export.save(exported, folder / f"{name}.pt2")
        programs.append(Program(name, "", f"{name}.pt2", "", *job.signature(name)))
    return programs, versions()


class Runner:
    """Runs one program of an export."""

    def __init__(self, folder: Path, program: Program) -> None:
        with quiet():
            self._module = torch.export.load(folder / program.file).module()

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self._module(x)
        return result
