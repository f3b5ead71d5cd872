"""Checkpoints: one safetensors file with the parameters and, in its metadata, the description."""

import os
from collections.abc import Callable, Mapping

from torch import Tensor

from nsn import _C
from nsn.description import Description
from nsn.network import Network


def save(
    network: Network,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a network atomically: ``path`` is either complete or untouched.

    Args:
        network: what to save.
        path: the file, by custom ``*.safetensors``.
        metadata: free text to go with it; the keys "nsn" and "format" are the library's.

    Raises:
        OSError: where the system refuses.
        ValueError: where a metadata key is the library's own, or a parameter does not fit.
    """
    parameters = [tensor.detach() for tensor in network._parameters_now()]
    _C.write_checkpoint(network.description, parameters, os.fspath(path), dict(metadata or {}))


def load(
    path: str | os.PathLike[str],
    rules: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Network:
    """Reads a network; no architecture in code, no pickle.

    Args:
        path: a file that :func:`save`, or ``nsn::save`` in C++, wrote.
        rules: merge functions by name, which a file cannot hold. Without them inference works, and
            a joint pass that needs gradients says which is missing.

    Raises:
        OSError: where the system refuses (FileNotFoundError where there is no such file).
        ValueError: where the contents are wrong; says what.
    """
    description, parameters, _ = _C.read_checkpoint(os.fspath(path), dict(rules or {}))
    own = Description.from_json(description.to_json(), description.functions())
    return Network._from_parameters(own, parameters)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text that was saved with a network; raises as :func:`load`."""
    return _C.read_checkpoint(os.fspath(path), {})[2]
