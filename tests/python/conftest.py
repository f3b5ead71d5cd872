import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import nsn

sys.path.insert(0, str(Path(__file__).parent))
# Tensors here are small: with several threads these wait for each other far longer than they compute
# where another program has a core. Tests of threads set how many they want.
torch.set_num_threads(1)
# A shell that starts the tests behind itself has them ignore Ctrl-C, and so the programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("nsn", deadline=None, print_blob=True)
settings.load_profile("nsn")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _leaves_nothing_behind() -> Iterator[None]:
    """Tests write into folders of their own, not where they are run."""
    before = set(Path.cwd().iterdir())
    yield
    left = set(Path.cwd().iterdir()) - before
    left = {each.name for each in left} - {".hypothesis", ".pytest_cache", ".coverage"}
    assert not left, f"tests left {sorted(left)} in {Path.cwd()}"


@pytest.fixture
def mnist() -> Path:
    return ROOT / "data" / "mnist"


@pytest.fixture
def net() -> nsn.Network:
    """A small network of the paper's form."""
    return paper_network(width=12).eval()


@pytest.fixture
def path(net: nsn.Network, tmp_path: Path) -> Path:
    """Its checkpoint, with a note of one's own."""
    nsn.save(net, tmp_path / "net.safetensors", {"note": "mine"})
    return tmp_path / "net.safetensors"


def paper_network(dropout: bool = True, width: int = 784, **options: object) -> nsn.Network:
    """The paper's network, or a narrower one of its form."""
    p = 1.0 if dropout else 0.0
    return nsn.Network(
        input=(width,),
        blocks={
            "hidden1": nsn.Dense(width, width, activation="relu", dropout=0.2 * p),
            "hidden2": nsn.Dense(width, width, activation="relu", dropout=0.5 * p),
            "output": nsn.Dense(width, 10),
        },
        subnetworks={
            "sub1": nsn.Subnetwork(["hidden2", "output"], dropout={"hidden2": 0.2 * p}),
            "sub2": ["output"],
        },
        **{"merge": nsn.merge.two_smallest_mean(), **options},
    )
