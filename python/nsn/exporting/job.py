"""What the formats have in common: what to export, and sub-networks over the network's tensors."""

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsn.description import described_dtype
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
            with quiet():
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
        weights: the dtype that weights are held as.
        progress: told of each step.
        steps: how many there are.
    """

    network: Network
    subnetworks: Sequence[str]
    max_batch: int
    weights: torch.dtype
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
    described = described_dtype(network.description)
    if not described.is_floating_point:
        return described
    return next((each.dtype for each in network.parameters()), described)


class Shared(nn.Module):
    """A sub-network over the network's whole tensors, whose forward takes its parts of them.

    Its buffers are the network's own tensors (on the CPU), as ``t<place in the table>``; a tool
    that exports several of these meets the same ones again.

    Args:
        network: whose tensors it reads.
        name: the sub-network.
        as_constants: for a tool that wants its weights whole and as they are: parts of tensors are
            taken now, as buffers of their own, and batch norms become the scale and shift that they
            are in evaluation, which the tool could otherwise multiply into shared weights.
    """

    def __init__(self, network: Network, name: str, *, as_constants: bool = False) -> None:
        super().__init__()
        module, uses = lower(network.description, name)
        # In a list, so that it is no child: its own parameters hold nothing.
        self._module = [module.eval()]
        table = [tensor.detach().cpu() for tensor in network._parameters_now()]
        self._sources: dict[str, tuple[str, Use | None]] = {}
        if as_constants:
            tensors = {use.path: use.of(table[use.place]) for use in uses}
            for path, tensor in _without_batch_norms(module, tensors).items():
                self._take(path, path.replace(".", "_"), tensor.contiguous(), None)
        else:
            for use in uses:
                if not use.path.endswith("num_batches_tracked"):  # no output depends on it
                    self._take(use.path, f"t{use.place}", table[use.place], use)
        self.eval()

    def _take(self, path: str, key: str, tensor: Tensor, use: Use | None) -> None:
        if key not in self._buffers:
            self.register_buffer(key, tensor)
        self._sources[path] = key, use

    def forward(self, x: Tensor) -> Tensor:
        tensors = {}
        for path, (key, use) in self._sources.items():
            tensor = getattr(self, key)
            tensors[path] = tensor if use is None else use.of(tensor)
        result: Tensor = torch.func.functional_call(self._module[0], tensors, (x,))
        return result


class _ScaleAndShift(nn.Module):
    """x * weight + bias, both over the second dimension."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


def _without_batch_norms(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts what batch norms are in evaluation in their place; the tensors that there are then."""
    result = dict(tensors)
    for path, norm in list(module.named_modules()):
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        own = {
            name.removeprefix(f"{path}."): result.pop(name)
            for name in tensors
            if name.startswith(f"{path}.")
        }
        weight = own.get("weight", 1.0) / torch.sqrt(own["running_var"] + norm.eps)
        scaled = _ScaleAndShift()
        for name, tensor in (
            ("weight", weight),
            ("bias", own.get("bias", 0.0) - own["running_mean"] * weight),
        ):
            scaled.register_buffer(name, torch.empty_like(tensor, device="meta"))
            result[f"{path}.{name}"] = tensor
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, scaled)
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


@contextmanager
def tracing() -> Iterator[None]:
    """How exporters run here: quietly, and for any batch.

    oneDNN and NNPACK are off, since asking whether they would take a convolution limits the batch
    to 15 where the example's is smaller.
    """
    with (
        quiet(),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.nnpack.flags(enabled=False),
    ):
        yield
