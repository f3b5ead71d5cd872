"""What it costs to switch from one sub-network of the paper's network to another, and to run it.

"switch" is what an application does to switch: one of several views that it made once, picked by a
value known at run time, becomes its current one. A single choice is shorter than a look at the
clock, so that 16 are timed together: the median and the 99.9th percentile are over these batches,
for each choice. "switch and forward" is a choice and the first forward after it, batch 1, with
another sub-network having run just before. The alternatives get sub1 ready to run in plain torch.
One thread; both programs, C++ and Python, run by themselves.

    python benchmarks/switch.py --program build/benchmarks/bench_switch --out switch.json
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from common import child, machine, title, write_json
from rich.console import Console
from rich.table import Table
from torch import nn

import nsn

PIXELS, CLASSES = 784, 10
TOGETHER, BATCHES, FORWARDS, REPEATS, WARM = 16, 50_000, 5_000, 500, 200


def spread(values: list[float]) -> dict[str, float]:
    """The median and the 99.9th percentile."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p999": round(ordered[len(ordered) * 999 // 1000], 2),
    }


def network() -> nsn.Network:
    """The paper's."""
    return nsn.Network(
        input=(PIXELS,),
        blocks={
            "hidden1": nsn.Dense(PIXELS, PIXELS, activation="relu"),
            "hidden2": nsn.Dense(PIXELS, PIXELS, activation="relu"),
            "output": nsn.Dense(PIXELS, CLASSES),
        },
        subnetworks={"sub1": ["hidden2", "output"], "sub2": ["output"]},
    )


def python_switches() -> dict[str, Any]:
    """Choosing a view from Python, alone and with the first forward after."""
    net, x = network(), torch.rand(1, PIXELS)
    views = [net.view(name) for name in net.description.names]
    choices = [random.randrange(len(views)) for _ in range(TOGETHER * 256)]
    times = []
    for batch in range(BATCHES):
        first = batch * TOGETHER % len(choices)
        following = choices[first : first + TOGETHER]
        start = perf_counter_ns()
        for choice in following:
            current = views[choice]
        times.append((perf_counter_ns() - start) / TOGETHER)
    forwards = {}
    for place, view in enumerate(views):
        own = []
        for call in range(WARM + FORWARDS):
            others = views[:place] + views[place + 1 :]
            current = others[choices[call % len(choices)] % len(others)]
            current(x)
            start = perf_counter_ns()
            current = views[place]
            current(x)
            own.append((perf_counter_ns() - start) / 1e3)
        forwards[view.name] = spread(own[WARM:])
    return {"switch_ns": spread(times), "switch_and_forward_us": forwards}


def plain_sub1() -> nn.Sequential:
    """sub1 in plain torch."""
    return nn.Sequential(nn.Linear(PIXELS, PIXELS), nn.ReLU(), nn.Linear(PIXELS, CLASSES))


def alternatives() -> dict[str, float]:
    """Medians, in microseconds, of getting sub1 ready without nsn."""
    source, target = plain_sub1(), plain_sub1()
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}

    def rebuild() -> None:
        fresh = plain_sub1()
        with torch.no_grad():
            for own, weight in zip(fresh.parameters(), source.parameters(), strict=True):
                own.copy_(weight)

    ways: dict[str, Callable[[], Any]] = {
        "rebuild": rebuild,
        "load_state_dict": lambda: target.load_state_dict(state),
        "deepcopy": lambda: copy.deepcopy(source),
    }
    result = {}
    for name, way in ways.items():
        times = []
        for _ in range(WARM + REPEATS):
            start = perf_counter_ns()
            way()
            times.append((perf_counter_ns() - start) / 1e3)
        result[name] = round(statistics.median(times[WARM:]), 1)
    return result


def run(program: Path) -> Any:
    """What the C++ program prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run([program], env=environment, capture_output=True, check=True)
    return json.loads(output.stdout)


def print_tables(document: dict[str, Any]) -> None:
    """One table for nsn, one for the alternatives."""
    table = Table(
        title=f"median (99.9th percentile), batch 1: {title('native', '1')}", title_justify="left"
    )
    for column in ("", "C++", "Python"):
        table.add_column(column, justify="right" if column else "left")
    sides = [document["cpp"], document["python"]]

    def row(title: str, values: list[dict[str, float]], unit: str) -> None:
        table.add_row(title, *(f"{v['median']} ({v['p999']}) {unit}" for v in values))

    row("switch", [side["switch_ns"] for side in sides], "ns")
    for name in document["cpp"]["switch_and_forward_us"]:
        values = [side["switch_and_forward_us"][name] for side in sides]
        row(f"switch to {name} and forward", values, "us")
    cpp = document["cpp"]
    table.add_row("allocations of a switch", str(cpp["allocations"]), "")
    for name, count in cpp["forward_allocations"].items():
        table.add_row(f"allocations of {name}'s forward", str(count), "")
    for name, median in document["alternatives_us"].items():
        table.add_row(f"{name} of sub1 in plain torch", "", f"{median} us")
    Console(width=100).print(table)


def main() -> None:
    """Runs the C++ program, then this one in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        torch.manual_seed(1)
        print(json.dumps({"python": python_switches(), "alternatives_us": alternatives()}))
        return
    if arguments.program is None:
        parser.error("--program is missing: build/benchmarks/bench_switch")
    document = {
        "machine": {**machine(), "threads": 1},
        "cpp": run(arguments.program),
        **child("native", "1"),
    }
    print_tables(document)
    write_json(arguments.out, document)


if __name__ == "__main__":
    main()
