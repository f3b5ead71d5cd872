"""The ways to run a sub-network that inference.py and start.py measure, and the models for them.

Each engine is set up as its documentation advises for latency on a CPU, with as many threads as
torch, and computes in float32:

- ONNX Runtime: the defaults of its page on threads (sequential, all optimizations, threads that
  wait busily), input and output bound to memory that is there ("I/O binding");
- OpenVINO: the hint LATENCY with one stream, tensors that share the caller's memory ("Performance
  tricks in OpenVINO for latency mode");
- ExecuTorch: all that can be is lowered to XNNPACK ("XNNPACK backend");
- torch.compile: "max-autotune" with frozen weights in inference mode, for fixed shapes ("Using
  Max-Autotune Compilation on CPU for Better Performance"); AOTInductor's packages likewise.

Exports take minutes. They lie in build/bench/models, for all levels and numbers of threads.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from common import BENCH
from torch import Tensor, nn

import nsn
import nsn.runtime
from nsn.training.recipe import description_of
from nsn.verifying import WEIGHT_TOLERANCES

#: The recipe whose network each kind is.
RECIPES = {"mlp": "paper", "cnn": "cnn", "transformer": "transformer"}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch")
#: Engines that cannot be held to fewer vectors than the processor has: neither MLAS nor XNNPACK has
#: a switch.
NATIVE = ("onnxruntime", "executorch")

Way = Callable[[], Any]

torch._inductor.config.freezing = True
# What "max-autotune" chose, perhaps while others were busy, is not kept; compiled code is.
torch._inductor.config.fx_graph_cache = False


@dataclass(frozen=True)
class Stored:
    """How a way's runtime file is written, and how far its outputs may be off."""

    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4


#: Ways that call the runtime from C++. One with narrower weights is a line more.
RUNTIMES = {
    "runtime": Stored(),
    **{
        f"runtime {name}": Stored({"weights": getattr(torch, name)}, tolerance)
        for name, tolerance in WEIGHT_TOLERANCES.items()
    },
}


def versions() -> dict[str, str]:
    """Of the packages that are measured."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def example(network: nsn.Network, batch: int) -> Tensor:
    """A batch of random inputs, ``(batch, *input)``."""
    shape = (batch, *network.description.input_shape)
    document = json.loads(network.description.to_json())
    if document["input"]["dtype"] == "int64":
        return torch.randint(50, shape)
    return torch.rand(shape)


def models_of(kind: str, network: nsn.Network) -> Path:
    """The folder of a network's exports: another one where anything that they depend on is new."""
    facts = [network.description.to_json(), sorted(versions().items())]
    facts += [str(network.extract(name)) for name in network.subnetworks]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    folder = BENCH / "models" / f"{kind}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepared(kind: str) -> tuple[nsn.Network, Path]:
    """A network of the kind in evaluation, and the folder of its exports.

    Its weights are drawn once: levels differ in the last bits of what they draw.
    """
    torch.manual_seed(0)
    network = nsn.Network(description_of(RECIPES[kind]))
    folder = models_of(kind, network)
    if not (folder / "weights.pt").exists():
        if kind == "cnn":  # running statistics
            with torch.no_grad():
                for _ in range(3):
                    network(example(network, 32), nsn.ALL)
        with written(folder / "weights.pt") as path:
            torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(folder / "weights.pt"))
    return network.eval(), folder


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to, which is moved to its place when all is there."""
    partial = path.with_name(f"partial-{path.name}")
    yield partial
    partial.replace(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what exporters say."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def onnx_file(module: nn.Module, x: Tensor, path: Path) -> Path:
    """Writes a module as ONNX, for inputs like x, unless it is there."""
    if not path.exists():
        with quiet(), written(path) as partial:
            torch.onnx.export(
                module, (x,), partial, dynamo=True, external_data=False, verbose=False
            )
    return path


def pte_file(module: nn.Module, x: Tensor, path: Path) -> Path:
    """Writes a module for ExecuTorch with XNNPACK, unless it is there."""
    if not path.exists():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        with quiet(), written(path) as partial:
            exported = torch.export.export(module, (x,))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            partial.write_bytes(lowered.to_executorch().buffer)
    return path


def onnxruntime(path: Path, x: Tensor) -> Way:
    """Runs an ONNX file on x with ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0].name, session.get_outputs()[0].name
    # One run tells the shape; from then on nothing is allocated or copied.
    y = torch.from_numpy(session.run(None, {given: x.numpy()})[0]).clone()
    binding = session.io_binding()
    dtype = x.numpy().dtype
    binding.bind_input(given, "cpu", 0, dtype, list(x.shape), x.data_ptr())
    binding.bind_output(made, "cpu", 0, y.numpy().dtype, list(y.shape), y.data_ptr())

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return run


def openvino(path: Path, x: Tensor) -> Way:
    """Runs an ONNX file on x with OpenVINO."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    model = ov.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    y = torch.empty(tuple(model.output(0).shape))
    request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
    request.set_output_tensor(ov.Tensor(y.numpy(), shared_memory=True))

    def run() -> Tensor:
        request.infer()
        return y

    return run


def executorch(path: Path, x: Tensor) -> Way:
    """Runs a module on x with ExecuTorch and XNNPACK."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return lambda: method.execute([x])[0]


def compiled(module: nn.Module, x: Tensor) -> Way:
    """Runs a module on x with torch.compile."""
    torch._dynamo.reset()  # it gives up where a class has been compiled for the ninth time
    run = torch.compile(module, mode="max-autotune", dynamic=False, fullgraph=True)
    with quiet(), torch.inference_mode():
        run(x)
    return lambda: run(x)


def aoti(module: nn.Module, x: Tensor, path: Path) -> Way:
    """Runs AOTInductor's package of a module on x."""
    with quiet():
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(module, (x,)),
            package_path=str(path),
            inductor_configs={"max_autotune": True},
        )
    runner = torch._inductor.aoti_load_package(package)
    return lambda: runner(x)


class FromCpp:
    """Runs a sub-network of a runtime file on x, called from C++ (runtime.cpp)."""

    MOST = 1 << 16

    def __init__(self, library: Path, file: Path, name: str, x: Tensor) -> None:
        handle, numbers = ctypes.c_void_p, ctypes.c_int64
        self._code = ctypes.CDLL(str(library))
        self._code.nsn_runs_new.restype = handle
        self._code.nsn_runs_new.argtypes = [ctypes.c_char_p] * 2 + [numbers, ctypes.c_int]
        self._code.nsn_runs_free.argtypes = [handle]
        self._code.nsn_runs_time.restype = numbers
        self._code.nsn_runs_time.argtypes = [
            *(handle, handle, handle, numbers, ctypes.c_double, handle, numbers)
        ]
        arguments = (os.fsencode(file), name.encode(), len(x), torch.get_num_threads())
        self._handle = self._code.nsn_runs_new(*arguments)
        if not self._handle:
            raise SystemExit(f"the runtime cannot run '{name}' of {file}")
        shape = nsn.runtime.Model(file).subnetworks[name].output_shape
        self._x, self._y = x, torch.empty(len(x), *shape)
        self._times = torch.empty(self.MOST, dtype=torch.float64)

    def __del__(self) -> None:
        self._code.nsn_runs_free(self._handle)

    def __call__(self) -> Tensor:
        self.times(0)
        return self._y

    def times(self, seconds: float) -> list[float]:
        """Microseconds of each of the runs that there was time for, one at least."""
        count = self._code.nsn_runs_time(
            *(self._handle, self._x.data_ptr(), self._y.data_ptr(), len(self._x)),
            *(seconds, self._times.data_ptr(), self.MOST),
        )
        if count == 0:
            raise SystemExit("a run of the runtime went wrong")
        return self._times[:count].tolist()


def times_of(run: Way, seconds: float) -> list[float]:
    """Microseconds of each of the runs that there was time for, one at least."""
    if isinstance(run, FromCpp):
        return run.times(seconds)
    result: list[float] = []
    end = time.perf_counter() + seconds
    while not result or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        result.append(1e6 * (time.perf_counter() - started))
    return result


class Ways:
    """All ways to run the sub-networks of one network of a kind.

    Args:
        kind: which.
        library: what runtime.cpp has become.
        folder: where what is made for this process alone goes.
    """

    def __init__(self, kind: str, library: Path, folder: Path) -> None:
        self.kind, self._library, self._folder = kind, library, folder
        self.network, self._models = prepared(kind)
        self._pack = self.network.pack()
        self._files = {}
        for way, stored in RUNTIMES.items():
            exported = folder / way
            nsn.export(self.network, exported, format="runtime", **stored.options)
            self._files[way] = exported / "network.nsnrt"
        held = (*self.network.parameters(), *self.network.buffers())
        #: Bytes of the weights that serve all sub-networks; of engines, of the files they load.
        self.bytes = {
            "view": sum(each.nbytes for each in held),
            "packed": self._pack.bytes,
            **{way: file.stat().st_size for way, file in self._files.items()},
        }

    def of(self, name: str, x: Tensor) -> dict[str, Way]:
        """Those that run one sub-network on x."""
        view, packed, module = (
            self.network.view(name),
            self._pack.view(name),
            self.network.extract(name),
        )
        stem = f"{name}-{len(x)}"
        onnx = onnx_file(module, x, self._models / f"{stem}.onnx")
        pte = pte_file(module, x, self._models / f"{stem}.pte")
        model = nsn.runtime.Model(self._files["runtime"])
        session = nsn.runtime.Session(model, len(x), torch.get_num_threads())
        ways: dict[str, Way] = {
            way: FromCpp(self._library, file, name, x) for way, file in self._files.items()
        }
        ways |= {
            "runtime (python)": lambda: session.run(name, x),
            "packed": lambda: packed(x),
            "view": lambda: view(x),
            "sequential": lambda: module(x),
            "onnxruntime": onnxruntime(onnx, x),
            "openvino": openvino(onnx, x),
            "executorch": executorch(pte, x),
            "compiled": compiled(module, x),
        }
        if self.kind == "mlp":
            ways["aoti"] = aoti(module, x, self._folder / f"{stem}.pt2")
        if len(x) == 1:
            own = sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
            files = {"onnxruntime": onnx, "openvino": onnx, "executorch": pte}
            for way in ways.keys() - RUNTIMES.keys() - {"runtime (python)", "packed", "view"}:
                size = files[way].stat().st_size if way in files else own
                self.bytes[way] = self.bytes.get(way, 0) + size
        return ways


def wrong_ones(ways: dict[str, Way]) -> dict[str, float]:
    """Ways that do not give what the view gives, and how far they are off.

    OpenVINO is wrong where oneDNN is held to AVX2 on a processor with AVX-512: its releases have no
    switch for its own kernels, and these then lay out memory as oneDNN's do not read it.
    """
    expected = ways["view"]()
    wrong = {}
    for name, run in ways.items():
        difference = float((run() - expected).abs().max() / expected.abs().max())
        tolerance = RUNTIMES[name].tolerance if name in RUNTIMES else 1e-4
        if difference < tolerance:
            continue
        if name != "openvino" or "ONEDNN_MAX_CPU_ISA" not in os.environ:
            raise SystemExit(f"{name} differs from the view by {difference:.1e}")
        wrong[name] = difference
    return wrong
