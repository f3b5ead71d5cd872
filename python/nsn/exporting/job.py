"""What the formats have in common: what to export, and sub-networks over the network's tensors."""

import importlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsn.extract import Use, lower
from nsn.network import Network

#: Called before each step with what comes now, the number of steps done, and that of all.
Progress = Callable[[str, int, int], None]

BATCH = "batch"


class MissingPackageError(ImportError):
    """A format's packages are not installed; says how to get them."""


def need(extra: str, *modules: str) -> None:
    """Checks that a format's packages are there.

    Raises:
        MissingPackageError: where one is not.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(
                f"nsn: the format {extra} needs the package {name.partition('.')[0]}, which cannot "
                f"be imported: {error}. Install it with: pip install 'nsn[{extra}]'"
            ) from None


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages, torch's among them."""
    return {name: importlib.metadata.version(name) for name in ("torch", *packages)}


@dataclass
class Job:
    """What to export.

    Attributes:
        network: in evaluation; is not changed.
        subnetworks: the names of those to export.
        max_batch: for formats that need a limit.
        progress: told of each step.
        steps: how many there are.
    """

    network: Network
    subnetworks: Sequence[str]
    max_batch: int
    progress: Progress
    steps: int
    _done: int = 0

    def step(self, message: str) -> None:
        """Says what comes now."""
        self.progress(message, self._done, self.steps)
        self._done += 1

    def example(self, batch: int) -> Tensor:
        """An input of zeros, ``(batch, *input)``."""
        return torch.zeros((batch, *self.network.description.input_shape), dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the input."""
        return input_dtype(self.network)

    def signature(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Input and output of a sub-network's program, as a manifest has them."""
        network = self.network
        floating = next((each.dtype for each in network.parameters()), self.dtype)
        return (
            _signal("input", network.description.input_shape, self.dtype),
            _signal("output", network.description.output_shape(name), floating),
        )


def _signal(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    return {"name": name, "shape": [BATCH, *shape], "dtype": str(dtype).removeprefix("torch.")}


def input_dtype(network: Network) -> torch.dtype:
    """What a network reads: integers as described, or else the dtype that its parameters have."""
    described = getattr(torch, json.loads(network.description.to_json())["input"]["dtype"])
    assert isinstance(described, torch.dtype)
    if not described.is_floating_point:
        return described
    return next((each.dtype for each in network.parameters()), described)


class Shared(nn.Module):
    """A sub-network over the network's whole tensors, whose forward takes its parts of them.

    Its parameters are the network's own, as ``t<place in the table>``; a tool that exports several
    of these meets the same tensors again.

    Args:
        network: whose tensors it reads.
        name: the sub-network.
        narrowed: whether the parts are taken now: those that are not whole are then tensors of
            their own, as ``t<place>_<number>``.
    """

    def __init__(self, network: Network, name: str, *, narrowed: bool = False) -> None:
        super().__init__()
        module, uses = lower(network.description, name)
        # In a list, so that it is no child: its own parameters hold nothing.
        self._module = [module.eval()]
        self._uses: list[tuple[str, Use]] = []
        table = network._parameters_now()
        own: dict[tuple[Any, ...], str] = {}
        for use in uses:
            if use.path.endswith("num_batches_tracked"):  # no output depends on it
                continue
            key, tensor = f"t{use.place}", table[use.place].detach()
            if narrowed and not use.is_whole:
                key = own.setdefault(use.part, f"{key}_{len(own)}")
                tensor = use.of(tensor).clone(memory_format=torch.contiguous_format)
                use = Use(use.path, use.place, use.is_buffer, use.shape, use.shape, use.shape)
            if key not in self._buffers:
                self.register_buffer(key, tensor)
            self._uses.append((key, use))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        tensors = {use.path: use.of(getattr(self, key)) for key, use in self._uses}
        result: Tensor = torch.func.functional_call(self._module[0], tensors, (x,))
        return result


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what exporters say of their own insides, which is much and concerns no user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
