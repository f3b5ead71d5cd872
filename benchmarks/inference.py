"""Inference of a network's sub-networks, by nsn and by engines, from Python.

Each way has a model of its own for each sub-network and, where it asks for one, batch size; nsn has
one network and one pack for all of them.

- view, packed: ``net.view(name)``, ``net.pack().view(name)``;
- sequential: ``net.extract(name)``, plain ``torch.nn``, under ``inference_mode``;
- compiled, aoti: ``torch.compile`` of that, and AOTInductor's package of it (the paper's network
  alone: compilation takes minutes);
- onnxruntime, openvino: from an ONNX graph of that, in float32; executorch: with XNNPACK.

Engines are set up as their documentation advises for latency: ONNX Runtime with inputs and outputs
bound to memory that is there (I/O binding), OpenVINO with one stream and tensors that share the
caller's memory, all with as many threads as torch. Bytes are those of the weights that each way
holds to serve all sub-networks, for engines by the sizes of the model files that they load.

    python benchmarks/inference.py --out build/bench/inference.json
    python benchmarks/inference.py --kinds transformer --threads 1  # takes minutes to export
"""

import contextlib
import io
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import arguments_of, child, configurations, machine, spread, title, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nsn
from nsn.training.recipe import load_recipe

BATCHES = (1, 8, 128)
ROUNDS = 9
#: Of batches that take longer than SLOW_SECONDS.
SLOW_ROUNDS, SLOW_SECONDS = 3, 0.02
#: Of one way in one round, and its warm-up before.
SECONDS, WARM_SECONDS = 0.02, 0.004
#: Engines that cannot be held to fewer vectors than the processor has.
NATIVE = ("onnxruntime", "executorch")

Way = Callable[[], Any]


#: The recipe whose network each kind is.
RECIPES = {"mlp": "paper", "cnn": "cnn", "transformer": "transformer"}


def prepared(kind: str) -> nsn.Network:
    """A network of the kind with new weights, in evaluation."""
    torch.manual_seed(0)
    network = nsn.Network(load_recipe(RECIPES[kind], []).description)
    if kind == "cnn":  # running statistics
        with torch.no_grad():
            for _ in range(3):
                network(example(network, 32), nsn.ALL)
    return network.eval()


def example(network: nsn.Network, batch: int) -> Tensor:
    """A batch of random inputs, ``(batch, *input)``."""
    shape = (batch, *network.description.input_shape)
    document = json.loads(network.description.to_json())
    if document["input"]["dtype"] == "int64":
        return torch.randint(50, shape)
    return torch.rand(shape)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what exporters say."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def onnx_file(module: nn.Module, x: Tensor, path: Path) -> Path:
    """Writes a module as ONNX, for inputs like x."""
    with quiet():
        torch.onnx.export(module, (x,), path, dynamo=True, external_data=False, verbose=False)
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


def aoti(module: nn.Module, x: Tensor, path: Path) -> Way:
    """Runs a module on x with AOTInductor."""
    with quiet():
        exported = torch.export.export(module, (x,))
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
        runner = torch._inductor.aoti_load_package(package)
    return lambda: runner(x)


def executorch(module: nn.Module, x: Tensor, path: Path) -> Way:
    """Runs a module on x with ExecuTorch and XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    with quiet():
        exported = torch.export.export(module, (x,))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
        method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return lambda: method.execute([x])[0]


def ways_of(
    network: nsn.Network, pack: nsn.Pack, name: str, kind: str, x: Tensor, folder: Path
) -> tuple[dict[str, Way], dict[str, int]]:
    """Ways to run one sub-network on x, and the bytes of the weights that engines hold for it."""
    view, packed, module = network.view(name), pack.view(name), network.extract(name)
    path = onnx_file(module, x, folder / f"{name}.onnx")
    ways: dict[str, Way] = {
        "view": lambda: view(x),
        "packed": lambda: packed(x),
        "sequential": lambda: module(x),
        "onnxruntime": onnxruntime(path, x),
        "openvino": openvino(path, x),
        "executorch": executorch(module, x, folder / f"{name}.pte"),
    }
    if kind == "mlp":
        compiled = torch.compile(module)
        ways["compiled"] = lambda: compiled(x)
        ways["aoti"] = aoti(module, x, folder / f"{name}.pt2")
    files = {"onnxruntime": path, "openvino": path, "executorch": folder / f"{name}.pte"}
    bytes_of = {way: file.stat().st_size for way, file in files.items()}
    own = sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
    return ways, bytes_of | dict.fromkeys(("sequential", "compiled", "aoti"), own)


def medians(ways: dict[str, Way], seconds: float = SECONDS) -> dict[str, dict[str, Any]]:
    """Medians, and 10th and 90th percentiles, in microseconds; rounds begin with another way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    started = time.perf_counter()
    ways[names[0]]()
    slow = time.perf_counter() - started > SLOW_SECONDS
    for number in range(SLOW_ROUNDS if slow else ROUNDS):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            run = ways[name]
            # Thread pools of the way before may wait busily for more; and caches are to be warm.
            time.sleep(WARM_SECONDS)
            end = time.perf_counter() + WARM_SECONDS
            while time.perf_counter() < end:
                run()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                started = time.perf_counter()
                run()
                times[name].append(1e6 * (time.perf_counter() - started))
    return {
        "median_us": {name: round(statistics.median(each), 2) for name, each in times.items()},
        "p10_p90_us": {
            name: [round(value, 2) for value in spread(each)] for name, each in times.items()
        },
    }


def read_bandwidth(count: int) -> float:
    """Bytes a second at which torch reads so many floats again and again, the best of its ways."""
    floats = torch.rand(count)
    rows = floats[: count // 64 * 64].view(64, -1)
    one = torch.rand(rows.size(1))
    ways: dict[str, Way] = {
        "sum": floats.sum,
        "max": floats.max,
        "norm": lambda: torch.linalg.vector_norm(floats),
        "mv": lambda: torch.mv(rows, one),
    }
    return 4 * count / (1e-6 * min(medians(ways)["median_us"].values()))


def leave_out_wrong(ways: dict[str, Way]) -> dict[str, float]:
    """Removes ways that do not give what the view gives; returns how far they are off.

    OpenVINO is wrong for convolutions where oneDNN is held to AVX2 on a processor with AVX-512.
    """
    expected = ways["view"]()
    wrong = {}
    for name, run in list(ways.items()):
        difference = float((run() - expected).abs().max() / expected.abs().max())
        if difference < 1e-4:
            continue
        if name != "openvino" or "ONEDNN_MAX_CPU_ISA" not in os.environ:
            raise SystemExit(f"{name} differs from the view by {difference:.1e}")
        wrong[name] = difference
        del ways[name]
    return wrong


def measure(kind: str) -> dict[str, Any]:
    """All sub-networks and batch sizes in this process."""
    network = prepared(kind)
    pack = network.pack()
    batches: dict[str, Any] = {}
    total = {
        "view": sum(each.nbytes for each in (*network.parameters(), *network.buffers())),
        "packed": pack.bytes,
    }
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for batch in BATCHES:
            x = example(network, batch).clone()
            results = batches[str(batch)] = {}
            for name in network.subnetworks:
                with torch.inference_mode(False), torch.no_grad():
                    ways, held = ways_of(network, pack, name, kind, x, Path(folder))
                wrong = leave_out_wrong(ways)
                results[name] = {**medians(ways), "wrong": wrong}
                if batch == BATCHES[0]:
                    for way, size in held.items():
                        if way in ways:
                            total[way] = total.get(way, 0) + size
    result = {"batch": batches, "bytes": total}
    if kind == "mlp":
        weights = {name: parameters_of(network, name) for name in network.subnetworks}
        result["weights"] = weights
        result["read_bandwidth"] = {name: read_bandwidth(each) for name, each in weights.items()}
    return result


def parameters_of(network: nsn.Network, name: str) -> int:
    """How many parameters a sub-network has."""
    return sum(each.numel() for each in network.extract(name).parameters())


def main() -> None:
    """Measures, prints and writes."""
    parser = arguments_of(__doc__, metavar="KIND")
    parser.add_argument("--kinds", nargs="+", choices=list(RECIPES), default=["mlp", "cnn"])
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(measure(arguments.child)))
        return
    levels: dict[str, Any] = {}
    document: dict[str, Any] = {"machine": machine(), "levels": levels}
    for kind in arguments.kinds:
        for level, threads in configurations(arguments):
            if kind != "mlp" and threads != arguments.threads[0]:
                continue  # it stands beside
            result = child(level, threads, kind)
            levels.setdefault(level, {}).setdefault(threads, {})[kind] = result
            show(f"{kind}: {title(level, threads)}", level, result)
            write_json(arguments.out, document)


def show(above: str, level: str, result: dict[str, Any]) -> None:
    """Prints medians, and how nsn stands beside the others."""
    rows = [each for names in result["batch"].values() for each in names.values()]
    columns = list(dict.fromkeys(way for row in rows for way in row["median_us"]))
    table = Table(title=f"{above}, median us", title_justify="left")
    table.add_column("batch, sub-network", no_wrap=True)
    for way in columns:
        is_native = level != "native" and way in NATIVE
        table.add_column(way + (" (native)" if is_native else ""), justify="right")
    # Of what is held to the same vectors.
    for column in ("packed / best", "view / seq."):
        table.add_column(column, justify="right")
    for batch, names in result["batch"].items():
        for name, measured in names.items():
            median = measured["median_us"]
            beside = ("view", "packed") if level == "native" else ("view", "packed", *NATIVE)
            others = {way: time for way, time in median.items() if way not in beside}
            best = min(others, key=lambda way: others[way])
            table.add_row(
                f"{batch}, {name}",
                *(f"{median[way]:.1f}" if way in median else "wrong" for way in columns),
                f"{median['packed'] / others[best]:.2f} {best}",
                f"{median['view'] / median['sequential']:.2f}",
            )
    console = Console(width=160)
    console.print(table)
    for name, bandwidth in result.get("read_bandwidth", {}).items():
        time = result["batch"]["1"][name]["median_us"]["packed"]
        reached = 4 * result["weights"][name] / (1e-6 * time)
        console.print(
            f"{name}, batch 1: packed reads its weights at {reached / 1e9:.0f} GB/s, "
            f"{reached / bandwidth:.0%} of the {bandwidth / 1e9:.0f} at which torch reads as many"
        )
    console.print("bytes: " + "  ".join(f"{way} {size:,}" for way, size in result["bytes"].items()))


if __name__ == "__main__":
    main()
