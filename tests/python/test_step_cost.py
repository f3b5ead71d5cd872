"""What one training step costs in calls, allocations and instructions, against committed counts.

Unlike times, counts are the same on a noisy machine. Where a change makes a step dearer for a good
reason, or cheaper, write what ``tests/cost/step_cost`` and this test print to
``tests/cost/expected.json``.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "tests" / "cost" / "step_cost"
EXPECTED = json.loads((ROOT / "tests" / "cost" / "expected.json").read_text())
# Compilers and versions of torch differ by a little.
MARGIN = 1.1
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# The highest level that valgrind runs.
LEVEL = "v3"


def instructions_inside(profile: str, library: str) -> int:
    """Instructions of a callgrind profile whose code lies in a library, without what it calls."""
    names: dict[str, str] = {}
    inside, is_call, total = False, False, 0
    for line in profile.splitlines():
        if match := re.match(r"ob=\((\d+)\)(?: (.*))?$", line):
            number, name = match.groups()
            names.setdefault(number, name or "")
            inside = library in names[number]
        elif match := re.match(r"cob=\((\d+)\) (.*)$", line):
            names.setdefault(*match.groups())
        elif line.startswith("calls="):
            is_call = True  # the next line is what the callee costs
        elif match := re.match(r"[+\-*\d]\S* (\d+)$", line):
            if inside and not is_call:
                total += int(match.group(1))
            is_call = False
    return total


def test_calls_and_allocations_of_a_step() -> None:
    output = subprocess.run(
        [PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    counts = json.loads(output)
    print(counts)
    for name in ("aten_calls", "allocations", "peak_bytes"):
        assert 0 < counts[name] <= EXPECTED[name] * MARGIN, (name, counts, EXPECTED)


def test_a_packed_call_allocates_its_output_alone() -> None:
    """Nor does it lock, or touch memory that it has not; however large its arena is."""
    output = subprocess.run(
        [PROGRAM.with_name("packed_cost")],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    counts = json.loads(output)
    nothing = {
        "allocations beside the output": 0,
        "with out": {"allocations": 0, "locks": 0, "page faults": 0},
    }
    assert len(counts) == 16
    assert {case: count for case, count in counts.items() if count != nothing} == {}


def test_instructions_of_a_step(tmp_path: Path) -> None:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.fail("valgrind is missing; `make setup` installs it")
    profile = tmp_path / "callgrind.out"
    subprocess.run(
        [
            valgrind,
            "--tool=callgrind",
            f"--callgrind-out-file={profile}",
            "--collect-atstart=no",
            "--toggle-collect=measured_step",
            PROGRAM,
            "once",
        ],
        env={**ENVIRONMENT, "NSN_CPU_LEVEL": LEVEL},
        capture_output=True,
        check=True,
    )
    count = instructions_inside(profile.read_text(), "libnsn.so")
    print("instructions", count)
    assert 0 < count <= EXPECTED["instructions"] * MARGIN, (count, EXPECTED)


def test_the_profile_is_read_right() -> None:
    profile = "\n".join(
        [
            "ob=(1) /lib/libnsn.so.0.1",
            "fn=(1) f",
            "12 100",
            "cob=(2) /lib/libtorch.so",
            "cfn=(2) g",
            "calls=3 0",
            "+2 5000",
            "* 7",
            "ob=(2)",
            "fn=(2)",
            "1 5000",
            "ob=(1)",
            "fn=(3) h",
            "-3 20",
        ]
    )
    assert instructions_inside(profile, "libnsn.so") == 127
