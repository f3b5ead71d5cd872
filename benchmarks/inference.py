"""Inference of a network's sub-networks, by nsn and by engines.

Each way has a model of its own for each sub-network and, where it asks for one, batch size; nsn has
one network, one pack and one runtime file for all of them.

- runtime: the runtime, called from C++; "runtime (python)": the same by ``nsn.runtime``;
- view, packed: ``net.view(name)``, ``net.pack().view(name)``;
- sequential: ``net.extract(name)``, plain ``torch.nn``, under ``inference_mode``;
- onnxruntime, openvino, executorch, compiled (``torch.compile``), and for the paper's network aoti
  (AOTInductor), all from that: engines.py says how they are set up.

Beside each stands how much of the processor's peak of multiply-adds the runtime reaches, and how
much of the best engine's time is left at that peak, which is the least that anything could reach.

All but the first are called from Python; what a call of an empty function takes stands beside. The
ways of a sub-network run interleaved in one process, and are checked to compute the same. Bytes are
those of the weights that each way holds to serve all sub-networks, for engines by the sizes of the
model files that they load.

    python benchmarks/inference.py --library build/benchmarks/libbench_runtime.so --prepare
    python benchmarks/inference.py --library build/benchmarks/libbench_runtime.so --out results.json

The first exports and compiles what is to be measured; it need not be run, and needs no quiet
machine. The second writes what this processor does by itself to results.json, and what it does when
it is held to AVX2 to results-v3.json. What is there already, of the same build, machine and
packages, is not measured again, so that a run that was ended goes on where it was; what is there of
others becomes results-before.json.
"""

import argparse
import ctypes
import hashlib
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import (
    arguments_of,
    child,
    configurations,
    level_name,
    machine,
    spread,
    title,
    write_json,
)
from engines import RECIPES, Way, Ways, example, times_of, versions, wrong_ones
from inference_tables import markdown, show, show_targets

import nsn

BATCHES = (1, 8, 128)
#: Batches that take longer have a third of the rounds.
SLOW_SECONDS = 0.02
#: The pause between two ways, and a way's warm-up.
WARM_SECONDS = 0.004
#: For how long multiply-adds alone are computed.
PEAK_SECONDS = 0.2
#: As long as ONNX Runtime's threads wait busily for more, and a reserve.
MOST_REST_SECONDS = 0.2

Document = dict[str, Any]


def rest() -> None:
    """Waits until the threads of the way before are asleep, which may wait busily for more."""
    end = time.perf_counter() + MOST_REST_SECONDS
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(WARM_SECONDS)
        if time.process_time() - used < WARM_SECONDS / 4:
            return


def medians(ways: dict[str, Way], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Medians, and 10th and 90th percentiles, in microseconds; rounds begin with another way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    if times_of(ways[names[0]], 0)[0] > 1e6 * SLOW_SECONDS:
        rounds = max(2, rounds // 3)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            rest()
            times_of(ways[name], WARM_SECONDS)
            times[name] += times_of(ways[name], seconds)
    return {
        "median_us": {name: round(statistics.median(each), 2) for name, each in times.items()},
        "p10_p90_us": {
            name: [round(value, 2) for value in spread(each)] for name, each in times.items()
        },
    }


def read_bandwidth(count: int, rounds: int, seconds: float) -> float:
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
    best: float = min(medians(ways, rounds, seconds)["median_us"].values())
    return 4 * count / (1e-6 * best)


def peak_flops(library: Path, threads: int) -> float:
    """Operations a second of nothing but multiply-adds, in vectors of this process's level."""
    peak = ctypes.CDLL(str(library)).nsn_peak
    peak.restype, peak.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
    rest()
    lanes = {"v4": 16, "v3": 8}.get(nsn.cpu_level(), 4)
    with ThreadPoolExecutor(threads) as pool:
        of_threads = pool.map(lambda _: peak(lanes, PEAK_SECONDS), range(threads))
        return 2.0 * sum(of_threads)


def measure(kind: str, arguments: argparse.Namespace) -> Document:
    """All sub-networks and batch sizes in this process."""
    rounds, seconds = arguments.rounds, arguments.seconds
    batches: Document = {}
    measuring = 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        every = Ways(kind, arguments.library, Path(folder))
        for batch in arguments.batches:
            with torch.inference_mode():
                x = example(every.network, batch)
            results = batches[str(batch)] = {}
            for name in every.network.subnetworks:
                ways = every.of(name, x)
                with torch.inference_mode():
                    wrong = wrong_ones(ways)
                    if not arguments.prepare:
                        begin = time.perf_counter()
                        results[name] = {
                            **medians(ways, rounds, seconds),
                            "wrong": {way: {"off": off} for way, off in wrong.items()},
                        }
                        # What a way takes that computes something else is not held against others.
                        for way, found in results[name]["wrong"].items():
                            found["median_us"] = results[name]["median_us"].pop(way)
                        measuring += time.perf_counter() - begin
        result: Document = {"batch": batches, "bytes": every.bytes}
        result["flops"] = {name: every.network.description.flops(name) for name in results}
        if not arguments.prepare:
            result["peak_flops"] = peak_flops(arguments.library, torch.get_num_threads())
        if kind == "mlp" and not arguments.prepare:
            weights = {name: parameters_of(every.network, name) for name in results}
            result["weights"] = weights
            with torch.inference_mode():
                result["read_bandwidth"] = {
                    name: read_bandwidth(each, rounds, seconds) for name, each in weights.items()
                }
    if not arguments.prepare:
        empty = medians({"empty": lambda: None}, rounds, seconds)
        result["empty_call_us"] = empty["median_us"]["empty"]
    everything = time.perf_counter() - started
    result["seconds"] = {"all": round(everything), "measuring": round(measuring)}
    return result


def parameters_of(network: nsn.Network, name: str) -> int:
    """How many parameters a sub-network has."""
    return sum(each.numel() for each in network.extract(name).parameters())


def facts(arguments: argparse.Namespace) -> Document:
    """What results depend on, but for the day."""
    libraries = hashlib.sha256(arguments.library.read_bytes())
    for path in sorted((Path(nsn.__file__).parent).rglob("*.so*")):
        libraries.update(path.read_bytes())
    return {
        "machine": {key: value for key, value in machine().items() if key != "date"},
        "versions": versions(),
        "libraries": libraries.hexdigest()[:12],
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "batches": arguments.batches,
    }


def documents_of(arguments: argparse.Namespace) -> dict[str, tuple[Path | None, Document]]:
    """Each level's file and what it holds, if that is of the same facts."""
    known = facts(arguments)
    result: dict[str, tuple[Path | None, Document]] = {}
    for level in arguments.levels:
        named = level_name(level)
        document: Document = {"level": named, **known, "date": machine()["date"], "kinds": {}}
        path = arguments.out
        if path is not None and level != "native":
            path = path.with_stem(f"{path.stem}-{named}")
        if path is not None and path.exists() and not arguments.fresh:
            found = json.loads(path.read_text())
            others = [key for key, value in known.items() if found.get(key) != value]
            if others:
                before = path.rename(path.with_stem(f"{path.stem}-before"))
                text = f"{path} was of other {', '.join(others)}: it is {before} now"
                print(text, file=sys.stderr)
            else:
                document = found
        result[level] = path, document
    return result


def main() -> None:
    """Measures what is missing, writes as it comes, and prints."""
    parser = arguments_of(__doc__, metavar="KIND")
    parser.add_argument("--kinds", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.02, help="of one way in one round")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--prepare", action="store_true", help="export and compile, and no more")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of the docs alone"
    )
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(measure(arguments.child, arguments)))
        return
    told = ["--library", str(arguments.library), "--rounds", str(arguments.rounds)]
    told += ["--seconds", str(arguments.seconds), "--batches", *map(str, arguments.batches)]
    documents = documents_of(arguments)
    for kind in arguments.kinds:
        for level, threads in configurations(arguments):
            above = f"{kind}: {title(level, threads)}"
            if arguments.prepare:
                seconds = child(level, threads, kind, "--prepare", *told)["seconds"]["all"]
                print(f"{above}: prepared in {seconds} s", flush=True)
                continue
            path, document = documents[level]
            results = document["kinds"].setdefault(kind, {"threads": {}})["threads"]
            if threads not in results:
                results[threads] = child(level, threads, kind, *told)
                write_json(path, document)
            if not arguments.markdown:
                show(above, level, results[threads])
    if arguments.markdown:
        for level, (_, document) in documents.items():
            print(markdown(level, document), end="\n\n")
    elif not arguments.prepare:
        for level, (_, document) in documents.items():
            show_targets(level, document)


if __name__ == "__main__":
    main()
