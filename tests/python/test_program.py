"""Programs: what one sub-network computes, as steps; by the tests' own interpreter and the view."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import nsn
from interpreter import PRIMITIVES, run
from nsn import extract
from random_networks import KINDS
from test_extract import _INPUTS, SINGLE, difference, random_cases, scramble


def interpreted(net: nsn.Network, name: str, x: Tensor) -> Tensor:
    return run(json.loads(net.description.program(name)), net._parameters_now(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str) -> None:
    for seed, net, x in random_cases(kind):
        for name in net.subnetworks:
            found = interpreted(net, name, x)
            assert difference(found, net.view(name)(x)) < 1e-12, (seed, name)


@pytest.mark.parametrize(("block", "rank"), SINGLE, ids=lambda value: type(value).__name__)
def test_each_block_by_itself(block: nsn.blocks.BlockOptions, rank: int) -> None:
    net = nsn.Network(input=_INPUTS[rank], blocks={"only": block}, dtype=torch.float64)
    scramble(net).eval()
    x = torch.randn(3, *_INPUTS[rank], dtype=torch.float64)
    view, pack = net.view("base")(x), net.pack().view("base")(x)
    assert difference(interpreted(net, "base", x), view) < 1e-12
    assert difference(pack, view) < 1e-12


def steps(block: nsn.blocks.BlockOptions, rank: int) -> list[dict[str, Any]]:
    net = nsn.Network(input=_INPUTS[rank], blocks={"only": block})
    result: list[dict[str, Any]] = json.loads(net.description.program("base"))["steps"]
    return result


def test_the_tables_have_all_primitives() -> None:
    """Those that blocks lower to; the interpreter has no blocks of one's own."""
    words = nsn.Description(input=(4,), dtype=torch.int64, blocks={"words": nsn.Embedding(7, 6)})
    lowered = {step["primitive"] for block, rank in SINGLE for step in steps(block, rank)}
    lowered |= {step["primitive"] for step in json.loads(words.program("base"))["steps"]}
    assert lowered == set(PRIMITIVES)
    assert lowered | {"block"} == set(extract._MODULES)


def test_a_program_is_written_for_people() -> None:
    net = nsn.Network(
        input=(8,),
        blocks={
            "hidden": nsn.Dense(8, 6, activation="relu", dropout=0.5),
            "out": nsn.Dense(6, 3, bias=False),
        },
        subnetworks={"half": nsn.Subnetwork(["hidden", "out"], width={"hidden": 0.5})},
    )
    assert net.description.program_text("half").splitlines() == [
        "%0: (8)",
        "%1 = product(%0, hidden.weight (3 of 6, 8), hidden.bias (3 of 6)) -> (3)",
        "%2 = activation(%1, function=relu) -> (3)",
        "%3 = dropout(%2, probability=0.5) -> (3)",
        "%4 = product(%3, out.weight (3, 3 of 6)) -> (3)",
    ]
