"""The runtime from Python: sub-networks of a file that ``nsn.export(..., format="runtime")`` wrote.

The same library that applications without LibTorch use, by its C interface (``nsn_runtime.h``,
docs/runtime.md). Inside a Python program :class:`nsn.Pack` does the same over a network in memory.
"""

import ctypes
import operator
import os
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nsn import files
from nsn.checks import expect, expect_batch, expect_name, kind_of, refuse_tracing, shown

# Of `nsn_status`; what is no ValueError.
_NO_SUCH_ROW = 5
_ERRORS: dict[int, type[Exception]] = {7: OSError, 9: MemoryError, 10: RuntimeError}

# Of tensors that stand for others and have no memory to read, as bits: each run looks at them.
_WRAPPERS = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
    .add(torch._C.DispatchKey.FuncTorchBatched)
    .add(torch._C.DispatchKey.FuncTorchGradWrapper)
    .add(torch._C.DispatchKey.Functionalize)
    .raw_repr()
)


def _stands_for_others(x: Tensor) -> bool:
    return bool(torch._C._dispatch_keys(x).raw_repr() & _WRAPPERS)


def _ends_in_storage(x: Tensor) -> bool:
    """Whether all of a contiguous tensor is in its storage, which may have been made smaller."""
    end = (x.storage_offset() + x.numel()) * x.element_size()
    return end <= x.untyped_storage().nbytes()


# The most of a session's options, as nsn::runtime::SessionOptions has it.
_MOST = {"max_batch": 2**30, "threads": 1024}


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
        ("flops", ctypes.c_double),
    )


@cache
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent / "lib"
    (path,) = folder.glob("libnsn_runtime.so.*")
    library = ctypes.CDLL(str(path))
    handle, place = ctypes.c_void_p, ctypes.c_size_t
    library.nsn_message.restype = ctypes.c_char_p
    library.nsn_model_count.restype = ctypes.c_size_t
    options = [ctypes.c_int64, ctypes.c_int]
    for name, arguments in {
        "nsn_model_open": [ctypes.c_char_p, ctypes.POINTER(handle)],
        "nsn_model_in_memory": [handle, ctypes.c_size_t, ctypes.POINTER(handle)],
        "nsn_model_close": [handle],
        "nsn_model_grow": [handle],
        "nsn_model_grow_to": [handle, ctypes.c_size_t],
        "nsn_model_count": [handle],
        "nsn_model_subnetwork": [handle, place, ctypes.POINTER(_Subnetwork)],
        "nsn_model_load": [handle, place],
        "nsn_session_open": [handle, *options, ctypes.POINTER(handle)],
        "nsn_session_bytes": [handle, *options, ctypes.POINTER(ctypes.c_int64)],
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
    raise _ERRORS.get(status, ValueError)(message)


def _whole(value: object) -> int:
    """A whole number, such as NumPy's; -1 for what is none."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return -1


def _check_options(where: str, model: object, **options: object) -> list[int]:
    expect(f"{where}: model", model, Model, "a Model", "Open the file: nsn.runtime.Model(path).")
    result = []
    for name, value in options.items():
        result.append(_whole(value))
        if not 1 <= result[-1] <= _MOST[name]:
            raise ValueError(
                f"{where}: {name} must be a whole number, at least 1 and at most {_MOST[name]}, "
                f"but is {shown(value)}."
            )
    return result


def _as_tensor(buffer: Any) -> Tensor:
    """A buffer's memory as a tensor of uint8, which keeps it where it is."""
    where = "nsn.runtime.Model.in_memory: the buffer"
    if isinstance(buffer, Tensor):
        kind = (buffer.dtype, buffer.device.type, buffer.layout)
        if kind != (torch.uint8, "cpu", torch.strided) or not buffer.is_contiguous():
            raise ValueError(
                f"{where} must be contiguous and of torch.uint8 on the CPU, but is of "
                f"{buffer.dtype} on {buffer.device}, or has gaps. Convert it."
            )
        has_memory = not _stands_for_others(buffer) and not buffer._is_zerotensor()
        if not has_memory or not _ends_in_storage(buffer):
            raise ValueError(
                f"{where} has no memory, as a fake or zero tensor has none, or less than its "
                f"{buffer.numel()} bytes. Give one that has, such as its clone()."
            )
        return buffer.detach()
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(
            f"{where} must be bytes, or have memory as these do, but is {kind_of(buffer)}. Of a "
            f"file give the path to nsn.runtime.Model."
        ) from None
    if not view.c_contiguous:
        raise ValueError(f"{where} must be contiguous, but has gaps. Copy it: bytes(buffer).")
    if view.nbytes == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes may not be written, and are not
        return torch.frombuffer(view, dtype=torch.uint8)


@dataclass(frozen=True)
class Subnetwork:
    """One sub-network of a file.

    Attributes:
        name: its name.
        input_shape, output_shape: without the batch.
        dtype: of the input; the output is float32.
        file_bytes: how much of the file it needs, from its begin on.
        weight_bytes: what it reads of that.
        flops: floating-point operations for one sample.
        is_there: whether the file holds all of it by now.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    file_bytes: int
    weight_bytes: int
    flops: int
    is_there: bool


class Model:
    """A mapped file; what no sub-network in use needs is never read.

    Args:
        path: the file.

    Raises:
        OSError: where it cannot be read (FileNotFoundError where there is none), or is none of the
            runtime's. ValueError: where the path has a NUL byte.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        encoded = files.readable(path)
        self._handle = ctypes.c_void_p()
        self._memory: Tensor | None = None
        _check(_library().nsn_model_open(encoded, ctypes.byref(self._handle)))

    @classmethod
    def in_memory(cls, buffer: Any, size: int | None = None) -> "Model":
        """A file in memory, as one that a program carries or that arrives piece by piece.

        Nothing is copied: the buffer is kept, and its bytes must stay as they are. It begins at a
        multiple of 4 bytes, best of 64.

        Args:
            buffer: bytes or what has memory as these do (bytearray, mmap, a NumPy array), or a
                tensor of uint8.
            size: how many of its bytes are there by now; all where None.

        Raises:
            OSError: where it is none of the runtime's files. ValueError: where its memory cannot be
                used. TypeError: where it has none.
        """
        model = cls.__new__(cls)
        model._handle = ctypes.c_void_p()
        model._memory = _as_tensor(buffer)
        size = model._checked("in_memory", model._memory.numel() if size is None else size)
        # Nothing of an empty buffer is read, which may have no address.
        address = model._memory.data_ptr() or 64
        _check(_library().nsn_model_in_memory(address, size, ctypes.byref(model._handle)))
        return model

    def _checked(self, call: str, size: int) -> int:
        most = self._memory.numel() if self._memory is not None else 2**63 - 1
        result = _whole(size)
        if not 0 <= result <= most:
            raise ValueError(
                f"nsn.runtime.Model.{call}: size must be a whole number of bytes, at most the "
                f"buffer's {most}, but is {shown(size)}."
            )
        return result

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "nsn.runtime.Model: a model cannot be copied or pickled. Use this one, which sessions "
            "share, or open the file again: nsn.runtime.Model(path)."
        )

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
            # As in os.fsdecode: it may be none of UTF-8.
            name = found.name.decode(errors="surrogateescape")
            result[name] = Subnetwork(
                name=name,
                input_shape=tuple(found.input_shape[: found.input_dimensions]),
                output_shape=tuple(found.output_shape[: found.output_dimensions]),
                dtype=torch.int64 if found.takes_numbers else torch.float32,
                file_bytes=found.file_bytes,
                weight_bytes=found.weight_bytes,
                flops=int(found.flops),
                is_there=bool(found.is_there),
            )
        return result

    def grow(self) -> None:
        """Looks how long the file is by now: what has been appended is there for sessions too.

        Raises:
            OSError: where it is shorter than before.
        """
        _check(_library().nsn_model_grow(self._handle))

    def grow_to(self, size: int) -> None:
        """The same for a file in memory, of which so many bytes are there by now.

        Raises:
            ValueError: where they are fewer than before, or more than the buffer has.
        """
        size = self._checked("grow_to", size)
        _check(_library().nsn_model_grow_to(self._handle, size))

    def load(self, name: str) -> None:
        """Reads what a sub-network needs from the disk, so that no run waits for it.

        Raises:
            ValueError: where there is none of this name, or the file ends before it.
        """
        _check(_library().nsn_model_load(self._handle, self._place(name)))

    def _place(self, name: str) -> int:
        expect_name("nsn.runtime: name", name)
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
        threads: how many compute it; more than one are the session's own, and of this process.

    Raises:
        ValueError: where an option is out of range. MemoryError: where there is no memory for it.
            RuntimeError: where the system does not give its threads.
    """

    def __init__(self, model: Model, max_batch: int = 1, threads: int = 1) -> None:
        max_batch, threads = _check_options(
            "nsn.runtime.Session", model, max_batch=max_batch, threads=threads
        )
        self._model = model
        self._max_batch = max_batch
        self._in_use = threading.Lock()
        self._places = {name: (i, one) for i, (name, one) in enumerate(model.subnetworks.items())}
        # The process that has its threads, where it has any, and the lock.
        self._process = os.getpid()
        self._has_threads = threads > 1
        self._handle = ctypes.c_void_p()
        _check(
            _library().nsn_session_open(
                model._handle, max_batch, threads, ctypes.byref(self._handle)
            )
        )

    @staticmethod
    def bytes_for(model: Model, max_batch: int = 1, threads: int = 1) -> int:
        """Bytes of the memory that such a session would take.

        It is what the file's plans ask for, however small the file is: of a file from strangers,
        ask first.

        Raises:
            ValueError: where an option is out of range.
        """
        max_batch, threads = _check_options(
            "nsn.runtime.Session.bytes_for", model, max_batch=max_batch, threads=threads
        )
        result = ctypes.c_int64()
        _check(
            _library().nsn_session_bytes(model._handle, max_batch, threads, ctypes.byref(result))
        )
        return result.value

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "nsn.runtime.Session: a session cannot be copied or pickled. Make another one: "
            "nsn.runtime.Session(model, ...)."
        )

    def _is_elsewhere(self) -> bool:
        """Whether its threads are another process's, for which it would wait for ever."""
        return self._has_threads and self._process != os.getpid()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and not self._is_elsewhere():
            _library().nsn_session_close(self._handle)

    def run(self, name: str, x: Tensor) -> Tensor:
        """One sub-network of ``(B, *input)`` on the CPU: ``(B, *output)``, float32.

        There are no gradients: whatever the input requires, the output requires none.

        Raises:
            ValueError: where there is no such sub-network or it is not in the file yet, the batch
                is too large, or the input does not fit. RuntimeError: while another thread runs
                the session, in a process forked from that of a session of several threads, and
                while torch traces.
        """
        if self._is_elsewhere():
            raise RuntimeError(
                "nsn.runtime: this session has threads of its own, which a forked process has not. "
                "Make a session in each process."
            )
        refuse_tracing()
        expect_name("nsn.runtime.Session.run: name", name)
        expect_batch("nsn.runtime.Session.run", x)
        if name not in self._places:
            self._model._place(name)  # which says what there is
        place, own = self._places[name]
        if x.layout != torch.strided or x.is_nested:
            raise ValueError(
                f"nsn.runtime: '{name}' takes a dense batch, but the input is "
                f"{'nested' if x.is_nested else f'of {x.layout}'}. Convert it with to_dense(), or "
                f"a nested one with to_padded_tensor()."
            )
        # Detached, a tensor may become a fake one, where these are made.
        is_dual = forward_ad.unpack_dual(x).tangent is not None
        if is_dual or _stands_for_others(x) or _stands_for_others(x.detach()):
            raise ValueError(
                f"nsn.runtime: '{name}' reads the memory of its input, but the input is a fake "
                f"tensor, one with a tangent, or seen through a transform of torch.func. Run the "
                f"session outside of that, or net.extract(name), a plain torch module."
            )
        fits = x.dim() > 0 and tuple(x.shape[1:]) == own.input_shape
        if not fits or x.device.type != "cpu" or x.dtype != own.dtype:
            extents = "".join(f", {extent}" for extent in own.input_shape)
            raise ValueError(
                f"nsn.runtime: '{name}' takes a batch of shape (B{extents}) and {own.dtype} on the "
                f"CPU, but the input is of shape {tuple(x.shape)} and {x.dtype} on {x.device}. "
                f"Convert it."
            )
        if len(x) > self._max_batch:
            raise ValueError(
                f"nsn.runtime: '{name}' is given {len(x)} samples, but the session was made for at "
                f"most {self._max_batch}. Make one with max_batch={len(x)}, or run parts."
            )
        x = x.detach().resolve_neg().resolve_conj().contiguous()
        if x._is_zerotensor():
            x = x.clone()  # which has memory
        if not _ends_in_storage(x):
            raise ValueError(
                f"nsn.runtime: '{name}' reads the memory of its input, but the input's storage "
                f"ends before its elements do. Give a batch that has memory."
            )
        y = torch.empty((len(x), *own.output_shape), dtype=torch.float32, device="cpu")
        library = _library()
        run: Any = library.nsn_session_run
        if own.dtype == torch.int64:
            run = library.nsn_session_run_numbers
        if self._process != os.getpid():
            # Forked, maybe while another thread was running it, of which there is none here.
            self._process, self._in_use = os.getpid(), threading.Lock()
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "nsn.runtime: another thread runs this session, which is the memory of one run at "
                "a time. Make a session for each thread, over the same model."
            )
        try:
            status = run(self._handle, place, x.data_ptr(), y.data_ptr(), len(x))
        finally:
            self._in_use.release()
        if status == _NO_SUCH_ROW:
            raise ValueError(
                f"nsn.runtime: the input of '{name}' holds numbers from {x.min()} to {x.max()}, "
                f"some of which are no row of the table that they are embedded by. Give numbers of "
                f"its rows."
            )
        _check(status)
        return y
