"""The runtime from Python: sub-networks of a file that ``nsn.export(..., format="runtime")`` wrote.

The same library that applications without LibTorch use, by its C interface (``nsn_runtime.h``,
docs/runtime.md). Inside a Python program :class:`nsn.Pack` does the same over a network in memory.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsn.checks import shown

_BAD_FILE = 6


class _Subnetwork(ctypes.Structure):
    """``nsn_subnetwork``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("input_shape", ctypes.POINTER(ctypes.c_int64)),
        ("input_dimensions", ctypes.c_size_t),
        ("output_shape", ctypes.POINTER(ctypes.c_int64)),
        ("output_dimensions", ctypes.c_size_t),
        ("input_elements", ctypes.c_int64),
        ("output_elements", ctypes.c_int64),
        ("takes_numbers", ctypes.c_int),
        ("is_there", ctypes.c_int),
        ("file_bytes", ctypes.c_int64),
        ("weight_bytes", ctypes.c_int64),
    )


@cache
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent / "lib"
    (path,) = folder.glob("libnsn_runtime.so.*")
    library = ctypes.CDLL(str(path))
    handle, place = ctypes.c_void_p, ctypes.c_size_t
    library.nsn_message.restype = ctypes.c_char_p
    library.nsn_model_count.restype = ctypes.c_size_t
    for name, arguments in {
        "nsn_model_open": [ctypes.c_char_p, ctypes.POINTER(handle)],
        "nsn_model_close": [handle],
        "nsn_model_grow": [handle],
        "nsn_model_count": [handle],
        "nsn_model_subnetwork": [handle, place, ctypes.POINTER(_Subnetwork)],
        "nsn_model_load": [handle, place],
        "nsn_session_open": [handle, ctypes.c_int64, ctypes.c_int, ctypes.POINTER(handle)],
        "nsn_session_close": [handle],
        "nsn_session_run": [handle, place, handle, handle, ctypes.c_int64],
        "nsn_session_run_numbers": [handle, place, handle, handle, ctypes.c_int64],
    }.items():
        getattr(library, name).argtypes = arguments
    return library


def _check(status: int) -> None:
    if status == 0:
        return
    message = (_library().nsn_message() or b"").decode(errors="replace")
    raise OSError(message) if status == _BAD_FILE else ValueError(message)


@dataclass(frozen=True)
class Subnetwork:
    """One sub-network of a file.

    Attributes:
        name: its name.
        input_shape, output_shape: without the batch.
        dtype: of the input; the output is float32.
        file_bytes: how much of the file it needs, from its begin on.
        weight_bytes: what it reads of that.
        is_there: whether the file holds all of it by now.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    file_bytes: int
    weight_bytes: int
    is_there: bool


class Model:
    """A mapped file; what no sub-network in use needs is never read.

    Args:
        path: the file.

    Raises:
        OSError: where it cannot be read, or is none of the runtime's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._handle = ctypes.c_void_p()
        _check(_library().nsn_model_open(os.fsencode(path), ctypes.byref(self._handle)))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _library().nsn_model_close(self._handle)

    @property
    def subnetworks(self) -> dict[str, Subnetwork]:
        """All that the file names, by name, in the network's order."""
        result = {}
        for place in range(_library().nsn_model_count(self._handle)):
            found = _Subnetwork()
            _check(_library().nsn_model_subnetwork(self._handle, place, ctypes.byref(found)))
            name = found.name.decode()
            result[name] = Subnetwork(
                name=name,
                input_shape=tuple(found.input_shape[: found.input_dimensions]),
                output_shape=tuple(found.output_shape[: found.output_dimensions]),
                dtype=torch.int64 if found.takes_numbers else torch.float32,
                file_bytes=found.file_bytes,
                weight_bytes=found.weight_bytes,
                is_there=bool(found.is_there),
            )
        return result

    def grow(self) -> None:
        """Looks how long the file is by now: what has been appended is there for sessions too.

        Raises:
            OSError: where it is shorter than before.
        """
        _check(_library().nsn_model_grow(self._handle))

    def load(self, name: str) -> None:
        """Reads what a sub-network needs from the disk, so that no run waits for it.

        Raises:
            ValueError: where there is none of this name, or the file ends before it.
        """
        _check(_library().nsn_model_load(self._handle, self._place(name)))

    def _place(self, name: str) -> int:
        names = list(self.subnetworks)
        if name not in names:
            raise ValueError(
                f"nsn.runtime: the file has no sub-network {shown(name)}. It has "
                f"{', '.join(names)}."
            )
        return names.index(name)


class Session:
    """The memory of one caller's runs, taken at once; used by one thread at a time.

    Args:
        model: what it runs.
        max_batch: the most samples of a run.
        threads: how many compute it; more than one are the session's own.

    Raises:
        ValueError: where an option is out of range.
    """

    def __init__(self, model: Model, max_batch: int = 1, threads: int = 1) -> None:
        for option, value in (("max_batch", max_batch), ("threads", threads)):
            if not isinstance(value, int) or not 1 <= value <= 2**30:
                raise ValueError(
                    f"nsn.runtime.Session: {option} must be a whole number, at least 1, but is "
                    f"{shown(value)}."
                )
        self._model = model
        self._places = {name: (i, one) for i, (name, one) in enumerate(model.subnetworks.items())}
        self._handle = ctypes.c_void_p()
        _check(
            _library().nsn_session_open(
                model._handle, max_batch, threads, ctypes.byref(self._handle)
            )
        )

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _library().nsn_session_close(self._handle)

    def run(self, name: str, x: Tensor) -> Tensor:
        """One sub-network of ``(B, *input)`` on the CPU: ``(B, *output)``, float32.

        Raises:
            ValueError: where there is no such sub-network or it is not in the file yet, the batch
                is too large, or the input does not fit.
        """
        if name not in self._places:
            self._model._place(name)  # which says what there is
        place, own = self._places[name]
        if x.device.type != "cpu" or x.dtype != own.dtype or tuple(x.shape[1:]) != own.input_shape:
            raise ValueError(
                f"nsn.runtime: '{name}' takes a batch of shape (B, {str(own.input_shape)[1:]} and "
                f"{own.dtype} on the CPU, but the input is of shape {tuple(x.shape)} and {x.dtype} "
                f"on {x.device}. Convert it."
            )
        x = x.detach().resolve_neg().resolve_conj().contiguous()
        y = torch.empty((len(x), *own.output_shape), dtype=torch.float32, device="cpu")
        library = _library()
        run: Any = library.nsn_session_run
        if own.dtype == torch.int64:
            run = library.nsn_session_run_numbers
        _check(run(self._handle, place, x.data_ptr(), y.data_ptr(), len(x)))
        return y
