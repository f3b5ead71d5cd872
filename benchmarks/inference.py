"""Inference of each sub-network: nsn's views and packed views beside the engines made for it.

The network of the paper, and beside it the recipes ``cnn`` and ``transformer`` with new weights.
All run from Python, in one process for each number of threads, in interleaved rounds. Each engine
gets one model for each sub-network and batch size, as it likes it best; nsn has one network and one
pack for all of them.

- view, packed: ``net.view(name)``, ``net.pack().view(name)``;
- sequential: ``net.extract(name)``, plain ``torch.nn``, under ``inference_mode``;
- compiled: ``torch.compile`` of that (the paper's network alone: compilation takes minutes);
- onnxruntime, openvino: from an ONNX graph of that, in float32; executorch: with XNNPACK.

Bytes are those of the weights that each way holds to serve all sub-networks, for engines by the
sizes of the model files that they load.

    python benchmarks/inference.py --out build/bench/inference.json
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import THREADS, child, machine, write_json
from torch import Tensor, nn

import nsn
from nsn.training.recipe import load_recipe

BATCHES = (1, 8, 128)
ROUNDS = 12
#: Of batches that take longer than SLOW_SECONDS.
SLOW_ROUNDS, SLOW_SECONDS = 3, 0.02
#: Of one way in one round, and its warm-up before.
SECONDS, WARM_SECONDS = 0.04, 0.005

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
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(path: Path, x: Tensor) -> Way:
    """Runs an ONNX file on x with OpenVINO."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))

    def run() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    return run


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
    files = {"onnxruntime": path, "openvino": path, "executorch": folder / f"{name}.pte"}
    bytes_of = {way: file.stat().st_size for way, file in files.items()}
    own = sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
    return ways, bytes_of | {"sequential": own, "compiled": own}


def medians(ways: dict[str, Way]) -> dict[str, dict[str, Any]]:
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
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                started = time.perf_counter()
                run()
                times[name].append(1e6 * (time.perf_counter() - started))
    spread = {}
    for name, each in times.items():
        quantiles = statistics.quantiles(each, n=10)
        spread[name] = [round(quantiles[0], 2), round(quantiles[-1], 2)]
    return {
        "median_us": {name: round(statistics.median(each), 2) for name, each in times.items()},
        "p10_p90_us": spread,
    }


def check(ways: dict[str, Way]) -> None:
    """All ways give what the view gives."""
    expected = ways["view"]()
    for name, run in ways.items():
        difference = (run() - expected).abs().max() / expected.abs().max()
        if not difference < 1e-4:
            raise SystemExit(f"{name} differs from the view by {difference:.1e}")


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
                check(ways)
                results[name] = medians(ways)
                if batch == BATCHES[0]:
                    for way, size in held.items():
                        if way in ways:
                            total[way] = total.get(way, 0) + size
    return {"batch": batches, "bytes": total}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/inference.json"))
    parser.add_argument("--kinds", nargs="+", default=["mlp", "cnn", "transformer"])
    parser.add_argument("--child", metavar="KIND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(measure(arguments.child)))
        return
    document: dict[str, Any] = {"machine": machine()}
    for kind in arguments.kinds:
        threads = {}
        for count in THREADS:
            result = child(count, kind)
            sizes = result.pop("bytes")
            threads[count] = result
        part = {"threads": threads, "bytes": sizes}
        # The paper's network is the one that targets are set for; the others stand beside it.
        document |= part if kind == "mlp" else {kind: part}
        show(kind, part)
    write_json(arguments.out, document)


def show(kind: str, part: dict[str, Any]) -> None:
    """Prints medians, and how nsn stands beside the others."""
    for threads, result in part["threads"].items():
        for batch, names in result["batch"].items():
            for name, measured in names.items():
                median = measured["median_us"]
                best = min(median[way] for way in median if way not in ("view", "packed"))
                text = "  ".join(f"{way} {value:.1f}" for way, value in median.items())
                print(
                    f"{kind}, {threads} thread(s), batch {batch}, {name}: {text} us; "
                    f"packed / best other {median['packed'] / best:.2f}, "
                    f"view / sequential {median['view'] / median['sequential']:.2f}"
                )
    print(f"{kind}, bytes: " + "  ".join(f"{way} {size:,}" for way, size in part["bytes"].items()))


if __name__ == "__main__":
    main()
