"""The order of layers holds, and the check of it notices what goes against it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/check_layers.py"), str(root)]
    return subprocess.run(command, capture_output=True, text=True)


def test_nothing_goes_up() -> None:
    result = check(ROOT)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "csrc/src/values/layout.cpp",
            '#include "blocks/support.h"',
            "values includes blocks/support.h, but blocks stands above it",
        ),
        (
            "csrc/include/nsn/network/view.h",
            "#include <nsn/inference/pack.h>",
            "network includes nsn/inference/pack.h, but inference stands above it",
        ),
        ("csrc/src/stray.cpp", "", "csrc/src/stray.cpp: is in the folder of no layer"),
        ("python/nsn/view.py", "from nsn import cli", "imports nsn.cli, which stands above it"),
        ("python/nsn/stray.py", "", "python/nsn/stray.py: is in no layer"),
        (
            "python/nsn/training/recipe.py",
            "def late():\n    from nsn.training.loop import Run",
            "nsn.training.recipe -> nsn.training.loop -> nsn.training.recipe is a cycle",
        ),
    ],
)
def test_what_goes_up_is_found(file: str, line: str, message: str, tmp_path: Path) -> None:
    for folder in ("csrc", "python"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n{line}\n")
    result = check(tmp_path)
    assert result.returncode == 1
    assert message in result.stdout
