"""What the benchmark programs share: configurations, timing, memory, and results as JSON.

A program measures in processes of its own, one for each level of vectors and number of threads.
Where the processor has AVX-512, it runs natively and once more with everything that can be held to
AVX2 held to it: nsn, torch with its compiler, MKL, and oneDNN with OpenVINO, which is built on it.
ONNX Runtime and XNNPACK (ExecuTorch) have no switch for it, and stay native.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import nsn

#: Where results lie, and what is kept for the next time.
BENCH = Path(__file__).resolve().parents[1] / "build" / "bench"
THREADS = ("1", "2")
#: Name of a level to the environment that holds a process to it.
LEVELS: dict[str, dict[str, str]] = {
    "native": {},
    "AVX2": {
        "NSN_CPU_LEVEL": "v3",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    },
}
VECTORS = {"v2": "SSE4.2", "v3": "AVX2", "v4": "AVX-512"}
LEAST_ROUNDS, MOST_ROUNDS = 5, 40

Step = Callable[[], None]
Release = Callable[[], None]
Document = dict[str, Any]


def arguments_of(description: str, **more: Any) -> argparse.ArgumentParser:
    """A parser with what all programs take. ``more`` are the choices of ``--child``, if any."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    has_avx512 = nsn.cpu_level() == "v4"
    default = list(LEVELS) if has_avx512 else ["native"]
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), default=default)
    parser.add_argument("--threads", nargs="+", default=list(THREADS))
    parser.add_argument("--out", type=Path, help="write the results here, as they come")
    parser.add_argument("--child", help=argparse.SUPPRESS, **more)
    return parser


def configurations(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Each level, and each number of threads."""
    for level in arguments.levels:
        for threads in arguments.threads:
            yield level, threads


def child(level: str, threads: str, *arguments: str) -> Any:
    """The JSON that this program prints last with ``--child`` in a process of its own."""
    command = [sys.executable, sys.argv[0], "--child", *arguments]
    # The compiler's cache does not tell levels apart.
    cache = BENCH / f"torchinductor-{level}-{threads}"
    environment = {
        **os.environ,
        **LEVELS[level],
        "OMP_NUM_THREADS": threads,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    output = subprocess.run(command, env=environment, capture_output=True, check=False)
    if output.returncode != 0:
        sys.exit(output.stderr.decode())
    return json.loads(output.stdout.splitlines()[-1])


def measure_everywhere(
    arguments: argparse.Namespace,
    show: Callable[[str, Any], None],
    *more: str,
    **facts: Any,
) -> None:
    """Runs a child for each level and number of threads, prints what each gives, and writes all.

    ``more`` are what the child is told besides; ``facts`` go into the document beside the machine.
    """
    levels: Document = {}
    document = {"machine": machine(), **facts, "levels": levels}
    for level, threads in configurations(arguments):
        result = child(level, threads, *more)
        levels.setdefault(level, {})[threads] = result
        show(title(level, threads), result)
        write_json(arguments.out, document)


def run(description: str, measure: Callable[[], Any], show: Callable[[str, Any], None]) -> None:
    """A whole program of one measurement, which its children make."""
    arguments = arguments_of(description, action="store_true").parse_args()
    if arguments.child:
        torch.manual_seed(0)
        print(json.dumps(measure()))
        return
    measure_everywhere(arguments, show)


def level_name(level: str) -> str:
    """A level as nsn names it."""
    return LEVELS[level].get("NSN_CPU_LEVEL", nsn.cpu_level())


def title(level: str, threads: str) -> str:
    """What stands above a table: the processor, its vectors, threads."""
    has = VECTORS.get(nsn.cpu_level(), nsn.cpu_level())
    vectors = has if level == "native" else f"{level} (held to it; the processor has {has})"
    return f"{cpu_model()}, {vectors}, {threads} thread{'s' if threads != '1' else ''}"


def interleaved(
    ways: Mapping[str, tuple[Step, Release]], seconds: float, steps: int = 3
) -> Document:
    """Medians and 10th and 90th percentiles in ms, and peak bytes, of all ways.

    Each round runs all ways, beginning with another one; of each way's steps in a round the first
    warms its caches and is not counted. Rounds end with the seconds, but not before the least.
    """
    names = list(ways)
    for step, _ in ways.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    number = 0
    while number < LEAST_ROUNDS or (number < MOST_ROUNDS and time.perf_counter() < end):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            step = ways[name][0]
            step()
            for _ in range(steps):
                started = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - started))
        number += 1
    return {
        "median_ms": {name: statistics.median(each) for name, each in times.items()},
        "p10_p90_ms": {name: spread(each) for name, each in times.items()},
        "peak_bytes": {name: peak_bytes(*way) for name, way in ways.items()},
        "steps": number * steps,
    }


def spread(times: list[float]) -> list[float]:
    """The 10th and the 90th percentile."""
    quantiles = statistics.quantiles(times, n=10)
    return [quantiles[0], quantiles[-1]]


def peak_bytes(step: Step, release: Release) -> int:
    """The most that one step has allocated at once, on top of what outlives steps."""
    release()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def cpu_model() -> str:
    """The processor's name, with the family and model that tell those of one name apart."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor()
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"


def machine() -> Document:
    """What the numbers depend on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cpu_level": nsn.cpu_level(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }


def write_json(path: Path | None, document: Document) -> None:
    """Writes what a program has so far, whole or not at all; makes the folder that it goes to."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)
