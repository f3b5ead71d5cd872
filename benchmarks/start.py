"""From a process's start to the first answer, and its memory then: the paper's sub2 and base.

Each way starts a process of its own again and again, in turn, with one thread, batch 1 and files
that are in the system's cache. Time is from before the process is made to when its first answer has
come; memory is what the process has then, in all, of its own ("anonymous") and of mapped files, and
the most that it had. first_answer.py has the ways from Python, each of which imports what it needs;
start.cpp is the one from C++.

    python benchmarks/start.py --program build/benchmarks/bench_start --out build/bench/start.json
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, title, write_json
from engines import example, onnx_file, prepared, pte_file, versions
from first_answer import PIXELS, VALUE, WAYS
from rich.console import Console
from rich.table import Table

import nsn

NAMES = ("sub2", "base")
#: Of a process's memory, by what /proc calls them.
FIELDS = {"all": "VmRSS", "anonymous": "RssAnon", "of_files": "RssFile", "most": "VmHWM"}
TITLES = {
    "runtime_cpp": "runtime, C++",
    "runtime_ctypes": "runtime, Python (ctypes, no torch)",
    "runtime_python": "nsn.runtime, Python (imports torch)",
    "packed": "nsn.load and pack, Python",
    "onnxruntime": "ONNX Runtime, Python",
    "openvino": "OpenVINO, Python",
    "executorch": "ExecuTorch, Python (imports torch)",
}


def commands_of(program: Path, folder: Path) -> tuple[dict[str, dict[str, list[str]]], Any]:
    """How each way is started for each sub-network, and the numbers that are to come."""
    network, models = prepared("mlp")
    nsn.export(network, folder / "runtime", format="runtime")
    nsn.save(network, folder / "network.safetensors")
    files = {
        "packed": folder / "network.safetensors",
        **dict.fromkeys(
            ("runtime_cpp", "runtime_ctypes", "runtime_python"), folder / "runtime/network.nsnrt"
        ),
    }
    commands: dict[str, dict[str, list[str]]] = {}
    expected = {}
    for name in NAMES:
        module, x = network.extract(name), example(network, 1)
        onnx = onnx_file(module, x, models / f"{name}-1.onnx")
        pte = pte_file(module, x, models / f"{name}-1.pte")
        own = {**files, "onnxruntime": onnx, "openvino": onnx, "executorch": pte}
        for way in TITLES:
            script = [sys.executable, str(Path(__file__).with_name("first_answer.py")), way]
            start = script if way in WAYS else [str(program)]
            commands.setdefault(way, {})[name] = [*start, str(own[way]), name]
        expected[name] = float(module(torch.full((1, PIXELS), VALUE))[0, 0])
    return commands, expected


def started(command: list[str], expected: float) -> dict[str, float]:
    """One start: milliseconds, and KiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        # What libraries print comes before.
        answer = next((line for line in process.stdout if line.startswith(b"answer ")), None)
        result = {"ms": 1e3 * (time.perf_counter() - begin)}
        if answer is None:
            sys.exit(process.stderr.read().decode())
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.communicate()
    found = float(answer.split()[1])
    if abs(found - expected) > 1e-4:
        sys.exit(f"{' '.join(command)}: {found} instead of {expected}")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return result | {name: int(lines[field].split()[0]) for name, field in FIELDS.items()}


def measure(commands: dict[str, dict[str, list[str]]], expected: Any, rounds: int) -> Any:
    """Medians of all rounds but the first, which fills the system's cache."""
    every: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number in range(rounds + 1):
        for way, names in commands.items():
            for name, command in names.items():
                one = started(command, expected[name])
                if number > 0:
                    every.setdefault(way, {}).setdefault(name, []).append(one)
    return {
        way: {
            name: {
                key: round(statistics.median(one[key] for one in each), 2)
                for key in ("ms", *FIELDS)
            }
            for name, each in names.items()
        }
        for way, names in every.items()
    }


def show(ways: Any) -> None:
    """Prints a row a way."""
    table = Table(
        title=f"from start to the first answer, and memory then: {title('native', '1')}",
        title_justify="left",
    )
    table.add_column("")
    for name in NAMES:
        for column in ("ms", "MB", "own MB", "files' MB", "most MB"):
            table.add_column(f"{name}, {column}", justify="right")
    for way, names in ways.items():
        cells = []
        for each in names.values():
            cells.append(f"{each['ms']:.1f}")
            cells += [f"{each[field] * 1024 / 1e6:.1f}" for field in FIELDS]
        table.add_row(TITLES[way], *cells)
    Console(width=180).print(table)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ways = measure(*commands_of(arguments.program, Path(folder)), arguments.rounds)
    show(ways)
    document = {
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
        "rounds": arguments.rounds,
        "ways": ways,
    }
    write_json(arguments.out, document)


if __name__ == "__main__":
    main()
