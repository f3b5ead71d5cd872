"""The levels of vectors (NSN_CPU_LEVEL), and what computes with them at each one there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nsn

ROOT = Path(__file__).parents[2]
#: What multiplies, in float32 and otherwise: random networks, packs, the paper's steps.
TESTS = (
    "test_batch_norm.py",
    "test_elastic.py",
    "test_gradients.py",
    "test_pack.py",
    "test_paper_steps.py",
)


def run(command: list[str], level: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NSN_CPU_LEVEL": level}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_highest_level_is_the_default() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NSN_CPU_LEVEL"}
    command = [sys.executable, "-c", "import nsn; print(nsn.cpu_level())"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == nsn.cpu_levels()[-1]


@pytest.mark.parametrize("level", nsn.cpu_levels())
def test_a_level_can_be_forced_and_is_told(level: str) -> None:
    program = "from nsn.cli import main; main()"
    result = run([sys.executable, "-c", program, "--version"], level)
    assert result.stdout.rstrip().endswith(f"CPU level {level}")


@pytest.mark.parametrize("level", ["v9", "AVX2", "V3"])
def test_unknown_levels_are_refused(level: str) -> None:
    result = run([sys.executable, "-c", "import nsn"], level)
    assert result.returncode != 0
    levels = ", ".join(nsn.cpu_levels())
    assert (
        f"ValueError: NSN_CPU_LEVEL must name a level that this processor has ({levels}), but is "
        f"'{level}'. Set one of these, or unset it for the highest." in result.stderr
    )


@pytest.mark.parametrize("level", [each for each in nsn.cpu_levels() if each != nsn.cpu_level()])
def test_networks_and_packs_at_the_other_levels(level: str) -> None:
    tests = [str(ROOT / "tests" / "python" / name) for name in TESTS]
    result = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests], level)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
