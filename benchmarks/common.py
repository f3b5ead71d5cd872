"""What the benchmark programs share: timing, memory, and one process for each number of threads."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

THREADS = ("1", "2")

Step = Callable[[], None]
Release = Callable[[], None]


def interleaved(
    ways: Mapping[str, tuple[Step, Release]], rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Medians and 10th and 90th percentiles in ms, and peak bytes, of all ways.

    Each round runs all ways, beginning with another one; of each way's steps in a round the first
    warms its caches and is not counted.
    """
    names = list(ways)
    for step, _ in ways.values():
        for _ in range(5):
            step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            step = ways[name][0]
            step()
            for _ in range(steps):
                started = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - started))
    spread = {}
    for name, each in times.items():
        quantiles = statistics.quantiles(each, n=10)
        spread[name] = [quantiles[0], quantiles[-1]]
    return {
        "median_ms": {name: statistics.median(each) for name, each in times.items()},
        "p10_p90_ms": spread,
        "peak_bytes": {name: peak_bytes(*way) for name, way in ways.items()},
    }


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


def child(threads: str, *arguments: str) -> Any:
    """The JSON that this program prints with ``--child`` in a process of its own."""
    command = [sys.executable, sys.argv[0], "--child", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    output = subprocess.run(command, env=environment, capture_output=True, check=False)
    if output.returncode != 0:
        sys.exit(output.stderr.decode())
    return json.loads(output.stdout)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "torch": torch.__version__}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a program's results, and makes the folder that they go to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
