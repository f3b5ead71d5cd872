"""`make wheel` makes a package that installs where there is no compiler."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]

_USE = """
import sys
import nsn, torch
assert nsn.__file__.startswith(sys.prefix), nsn.__file__
net = nsn.Network(
    input=(4,),
    blocks={"hidden": nsn.Dense(4, 4, activation="relu"), "output": nsn.Dense(4, 2)},
    subnetworks={"small": ["output"]},
)
x = torch.ones(3, 4)
sum(y.sum() for y in net(x, nsn.ALL).values()).backward()
assert net.output.weight.grad is not None
torch.testing.assert_close(net.pack().view("small")(x), net.view("small")(x))
print("done")
"""


def test_the_wheel_installs_without_a_compiler(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    subprocess.run([*build, "-w", tmp_path / "dist", ROOT], check=True)
    (wheel,) = (tmp_path / "dist").glob("nsn-*.whl")
    assert "linux" in wheel.name and f"cp3{sys.version_info.minor}" in wheel.name

    home = tmp_path / "empty"
    venv.create(home, with_pip=True)
    (site,) = home.glob("lib/python*/site-packages")
    # Torch and the like are there already; what is in the environment itself comes first.
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    environment = {**os.environ, "PATH": str(home / "bin"), "CC": "none", "CXX": "none"}
    environment.pop("PYTHONPATH", None)
    python = home / "bin/python"
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*install, "--force-reinstall", wheel], check=True, env=environment)
    result = subprocess.run([python, "-c", _USE], capture_output=True, text=True, env=environment)
    assert result.stdout == "done\n", result.stderr
    command = [home / "bin/nsn", "--version"]
    assert "nsn" in subprocess.run(command, capture_output=True, text=True, env=environment).stdout
