"""From a process's start to the first answer of a sub-network, by one way; start.py runs it.

    python benchmarks/first_answer.py WAY FILE SUBNETWORK

prints the first number of the output, and waits until its input ends, so that its memory can be
looked at. It imports what the way needs and nothing else. One thread, as start.py's environment
says; engines that do not read that are told.
"""

import sys
from collections.abc import Callable
from pathlib import Path

PIXELS = 784
VALUE = 0.5


def runtime_ctypes(file: str, name: str) -> float:
    """The runtime by its C interface alone, without torch."""
    import ctypes
    import importlib.util

    spec = importlib.util.find_spec("nsn")
    assert spec is not None and spec.origin is not None
    (path,) = (Path(spec.origin).parent / "lib").glob("libnsn_runtime.so.*")
    library = ctypes.CDLL(str(path))
    model, session, place = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    x, y = (ctypes.c_float * PIXELS)(*[VALUE] * PIXELS), (ctypes.c_float * 10)()
    statuses = [
        library.nsn_model_open(file.encode(), ctypes.byref(model)),
        library.nsn_model_find(model, name.encode(), ctypes.byref(place)),
        library.nsn_session_open(model, ctypes.c_int64(1), 1, ctypes.byref(session)),
        library.nsn_session_run(session, place, x, y, ctypes.c_int64(1)),
    ]
    assert not any(statuses)
    return y[0]


def runtime_python(file: str, name: str) -> float:
    """``nsn.runtime``, which imports torch."""
    import torch

    import nsn.runtime

    session = nsn.runtime.Session(nsn.runtime.Model(file))
    return float(session.run(name, torch.full((1, PIXELS), VALUE))[0, 0])


def packed(file: str, name: str) -> float:
    """``nsn.load`` and a packed view."""
    import torch

    import nsn

    network = nsn.load(file, only=name).eval()
    return float(network.pack([name]).view(name)(torch.full((1, PIXELS), VALUE))[0, 0])


def onnxruntime(file: str, name: str) -> float:
    """ONNX Runtime."""
    del name
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x = numpy.full((1, PIXELS), VALUE, dtype=numpy.float32)
    return float(session.run(None, {session.get_inputs()[0].name: x})[0][0, 0])


def openvino(file: str, name: str) -> float:
    """OpenVINO."""
    del name
    import numpy
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    model = openvino.Core().compile_model(file, "CPU", settings)
    return float(model(numpy.full((1, PIXELS), VALUE, dtype=numpy.float32))[0][0, 0])


def executorch(file: str, name: str) -> float:
    """ExecuTorch."""
    del name
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(Path(file)).load_method("forward")
    assert method is not None
    return float(method.execute([torch.full((1, PIXELS), VALUE)])[0][0, 0])


WAYS: dict[str, Callable[[str, str], float]] = {
    "runtime_ctypes": runtime_ctypes,
    "runtime_python": runtime_python,
    "packed": packed,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "executorch": executorch,
}


if __name__ == "__main__":
    first = WAYS[sys.argv[1]](sys.argv[2], sys.argv[3])
    print(f"answer {first:.9g}", flush=True)
    sys.stdin.read()
