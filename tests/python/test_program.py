"""Programs: what one sub-network computes, as steps; by the tests' own interpreter and the view."""

import json

import pytest
from torch import Tensor

import nsn
from interpreter import run
from random_networks import KINDS
from test_extract import difference, random_cases


def interpreted(net: nsn.Network, name: str, x: Tensor) -> Tensor:
    return run(json.loads(net.description.program(name)), net._parameters_now(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str) -> None:
    for seed, net, x in random_cases(kind):
        for name in net.subnetworks:
            found = interpreted(net, name, x)
            assert difference(found, net.view(name)(x)) < 1e-12, (seed, name)


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
