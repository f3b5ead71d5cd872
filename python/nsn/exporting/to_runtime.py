"""The runtime's own format: one file that is mapped, for all sub-networks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsn import _C, runtime
from nsn.exporting.folder import NARROW, Program
from nsn.exporting.job import Job, versions

PACKAGES: tuple[str, ...] = ()

#: What weights may be held as; all is computed in float32.
WEIGHTS: tuple[torch.dtype, ...] = (
    torch.float32,
    *(getattr(torch, name) for name in NARROW),
)

_FILE = "network.nsnrt"


def steps(job_size: int) -> int:
    """How many steps ``write`` takes for a number of sub-networks."""
    del job_size
    return 1


def write(job: Job, folder: Path) -> tuple[list[Program], dict[str, str]]:
    """Writes ``network.nsnrt``; what runs, and what made it."""
    job.step("plans and weights")
    network = job.network
    _C.write_runtime(
        network._core,
        network._plain_parameters("export"),
        bytes(folder / _FILE),
        list(job.subnetworks),
        job.weights,
    )
    narrow = None if job.weights == torch.float32 else str(job.weights).removeprefix("torch.")
    programs = [
        Program(name, "", _FILE, name, *_signature(job, name), weights=narrow)
        for name in job.subnetworks
    ]
    return programs, versions()


def _signature(job: Job, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers are int64 in the runtime, whichever the network takes."""
    taken, given = job.signature(name)
    if not job.dtype.is_floating_point:
        taken = {**taken, "dtype": "int64"}
    return taken, given


class Runner:
    """Runs one program of an export."""

    def __init__(self, folder: Path, program: Program) -> None:
        self._model = runtime.Model(folder / program.file)
        self._name = program.method
        self._session, self._most = runtime.Session(self._model, 32), 32

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > self._most:
            self._most = len(x)
            self._session = runtime.Session(self._model, self._most)
        return self._session.run(self._name, x if x.is_floating_point() else x.long())
