"""Checkpoints: one safetensors file with the parameters and, in its metadata, the description.

A network may be loaded in part, one sub-network at first and the rest later, in place::

    net = nsn.load("model.safetensors", only="small")
    small = net.view("small")                  # runs already
    nsn.load_rest(net, "model.safetensors")    # and now the others do; `small` stays valid
"""

import os
from collections.abc import Callable, Mapping

from torch import Tensor

from nsn import _C
from nsn.checks import expect, expect_functions, expect_name, kind_of, shown
from nsn.description import Description
from nsn.files import AnyPath
from nsn.network import Network
from nsn.parameters import ParameterTable, network_in


def save(
    network: ParameterTable,
    path: AnyPath,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a network atomically: ``path`` is either complete or untouched.

    Args:
        network: what to save.
        path: the file, by custom ``*.safetensors``.
        metadata: free text to go with it; the keys "nsn", "nsn_format" and "format" are the
            library's.

    Raises:
        OSError: where the system refuses.
        ValueError: where a metadata key is the library's own, a parameter does not fit, or the
            network was loaded in part.
        TypeError: where metadata is no text, or a parameter has no plain memory.
    """
    network = network_in("nsn.save: network", network)
    expect("nsn.save: metadata", metadata or {}, Mapping, "a dict of strings")
    network._check_loaded(network.subnetworks)
    network._check_nothing_added("nsn.save")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"nsn.save: metadata must map strings to strings, but {shown(key)} has "
                f"{kind_of(value)}. Write it as text, for example with str() or "
                f"json.dumps()."
            )
    parameters = [tensor.detach() for tensor in network._plain_parameters("save")]
    _C.write_checkpoint(network.description, parameters, os.fsencode(path), dict(metadata or {}))


def load(
    path: AnyPath,
    rules: Mapping[str, Callable[..., Tensor]] | None = None,
    *,
    only: str | None = None,
) -> Network:
    """Reads a network; no architecture in code, no pickle.

    Args:
        path: a file that :func:`save`, or ``nsn::save`` in C++, wrote. It may be anybody's.
        rules: merge functions by name, which a file cannot hold. Without them inference works, and
            a joint pass that needs gradients says which is missing.
        only: a sub-network, to read its parameters alone. The network has the whole description,
            and parameters of full shapes, but what was not read takes address space alone;
            ``network.loaded`` names what runs, and :func:`load_rest` adds the others. A file that
            is cut behind what the sub-network needs will do.

    Raises:
        OSError: where the system refuses (FileNotFoundError where there is no such file).
        ValueError: where the contents are wrong; says what.
    """
    expect_functions("nsn.load: rules", rules or {})
    if only is not None:
        expect_name("nsn.load: only", only)
    description, parameters, report = _C.read_checkpoint(os.fsencode(path), dict(rules or {}), only)
    return Network._from_parameters(Description._of(description), parameters, report)


def load_rest(network: ParameterTable, path: AnyPath, only: str | None = None) -> None:
    """Adds what :func:`load` with ``only`` left out.

    It is read into the parameters that there are, so optimizers and views see it and stay valid.
    What is there already is not written: it may have been trained further, and views of it may run
    meanwhile, in other threads.

    Args:
        network: a network that was loaded in part, and has not been moved or converted since.
        path: the file that it came from.
        only: the sub-network to add; default: all.

    Raises:
        OSError: where the system refuses.
        ValueError: where the file has another description or is wrong otherwise, or where the
            parameters are no longer as in the file.
    """
    network = network_in("nsn.load_rest: network", network)
    if only is not None:
        expect_name("nsn.load_rest: only", only)
    parameters = [tensor.detach() for tensor in network._parameters_now()]
    report = _C.LoadReport(set(network._missing), network.bytes_read)
    network._note(_C.read_rest(network.description, parameters, report, os.fsencode(path), only))


def load_metadata(path: AnyPath) -> dict[str, str]:
    """The free text that was saved with a network; raises as :func:`load`."""
    return _C.read_metadata(os.fsencode(path))
