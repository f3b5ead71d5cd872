"""The loops in examples/python/loops train every sub-network, run as their first lines say."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nsn
from conftest import ROOT

LOOPS = ROOT / "examples" / "python" / "loops"
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture
def loops() -> Iterator[None]:
    """Their folder as one that is imported from."""
    sys.path.insert(0, str(LOOPS))
    yield
    sys.path.remove(str(LOOPS))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain", PYTHON),
        ("accumulate", PYTHON),
        ("lightning_loop", PYTHON),
        ("accelerate_loop", PYTHON),
        ("ddp", TORCHRUN),
    ],
)
def test_a_loop_trains_every_subnetwork(name: str, how: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*how, str(LOOPS / f"{name}.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    line = next(each for each in done.stdout.splitlines() if each.startswith("base"))
    words = line.split()
    scores = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert list(scores) == ["base", "half", "quarter", "shallow"]
    assert min(scores.values()) > 0.95, scores
    if name == "ddp":
        assert "the same weights on both" in done.stdout


def test_parts_add_up_to_the_batch(loops: None) -> None:
    import accumulate

    blocks = {"hidden": nsn.Dense(16, 8, activation="relu"), "output": nsn.Dense(8, 4)}
    x, y = torch.randn(24, 16), torch.randint(4, (24,))
    turn = nsn.schedule.Turn(["base", "small"], {"small": 0.5})
    after, norms = [], []
    for parts in (list(zip(x.split(8), y.split(8), strict=True)), [(x, y)]):
        torch.manual_seed(5)
        net = nsn.Network(
            input=(16,),
            blocks=blocks,
            subnetworks={"small": nsn.Subnetwork(width=0.5)},
            merge=nsn.merge.mean(),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        before = [each.detach().clone() for each in net.parameters()]
        norms.append(accumulate.step(net, optimizer, parts, turn, most=0.1))
        after.append([each.detach() for each in net.parameters()])
        moved = torch.stack([(a - b).norm() for a, b in zip(after[-1], before, strict=True)]).norm()
        assert norms[-1] > 0.1 and abs(moved - 0.1) < 1e-4  # clipped: no step is longer
    assert torch.allclose(*norms, rtol=1e-5)
    for a, b in zip(*after, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_callback_logs_and_recalibrates(loops: None, tmp_path: Path) -> None:
    import common
    import lightning_loop

    scores = lightning_loop.main(str(tmp_path))
    (log,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(log.open()) if row["accuracy/quarter"]]
    assert len(rows) == 5  # one an epoch
    for name, score in scores.items():
        assert float(rows[-1][f"accuracy/{name}"]) == pytest.approx(score)

    net = common.make_network()
    module = lightning_loop.JointModule(net)
    data = common.make_data().tensors[0]
    lightning_loop.EachSubnetwork([data]).on_validation_epoch_start(
        type("Trainer", (), {"sanity_checking": False})(), module
    )
    with torch.no_grad():
        expected = torch.nn.functional.linear(data, net.hidden1.weight, net.hidden1.bias).mean(0)
    for name in net.subnetworks:
        mean = net.norm1.get_buffer(f"running_mean_{name}")
        assert torch.allclose(mean, expected[: len(mean)], atol=1e-5)
