"""Widths of sub-networks as Python and JSON say them."""

import json
import time
from typing import Any

import pytest
import torch
from rich.console import Console

import nsn
from nsn.describing import tables


def cnn(**subnetworks: Any) -> nsn.Network:
    return nsn.Network(
        input=(1, 8, 8),
        blocks={
            "conv": nsn.Conv2d(1, 4, 3, padding=1, activation="relu"),
            "stage": nsn.Sequence(
                {"conv": nsn.Conv2d(4, 8, 3, padding=1), "norm": nsn.BatchNorm(8)}
            ),
            "pool": nsn.GlobalAvgPool(),
            "output": nsn.Dense(8, 10),
        },
        subnetworks=subnetworks,
    )


def test_one_number_for_all() -> None:
    net = cnn(
        half=nsn.Subnetwork(width=0.5),
        named=nsn.Subnetwork(["conv", "stage", "pool", "output"], width={"*": 0.25, "conv": 1.0}),
        inner=nsn.Subnetwork(width={"stage": {"conv": 0.5}}),
    )
    outputs = net(torch.rand(3, 1, 8, 8), nsn.ALL)
    assert all(output.shape == (3, 10) for output in outputs.values())
    widths = {
        each["name"]: {
            block["name"]: {name: width["kept"] for name, width in block["widths"].items()}
            for block in each["blocks"]
        }
        for each in net.describe()
    }
    assert widths["half"] == {
        "conv": {"out": 2},
        "stage": {"conv.out": 4},
        "pool": {},
        "output": {"out": 10},
    }
    assert widths["named"]["conv"] == {"out": 4} and widths["named"]["stage"] == {"conv.out": 2}
    assert widths["inner"]["stage"] == {"conv.out": 4}
    again = nsn.Description.from_json(net.description.to_json())
    assert again == net.description and again.to_json() == net.description.to_json()
    alone = net.description.alone("half")
    assert alone.parameter_count() == net.description.parameter_count("half")


@pytest.mark.parametrize(
    ("subnetwork", "error", "message"),
    [
        ({"width": 2}, ValueError, "must be a fraction above 0 and up to 1, but got 2"),
        ({"width": 1}, ValueError, r"but got 1\..*1 keeps one.*1\.0 keeps all"),
        ({"width": {"output": 0.5}}, ValueError, r"output from \(10\) to \(5\)\. Leave it out"),
        ({"width": {"stage": {"norm": 0.5}}}, ValueError, "no dimension 'norm'"),
        ({"width": {"conv": 9}}, ValueError, r"from 1 to 4, but got 9.*1 keeps one"),
        ({"width": "half"}, TypeError, "must be a dict of blocks or one fraction for all"),
        ({"width": [0.5]}, TypeError, "must be a dict of blocks or one fraction for all"),
        ({"dropout": 0.5}, TypeError, "dropout must be a dict of blocks, but is a float"),
        ({"blocks": "conv"}, TypeError, r"Write \['conv'\]"),
    ],
)
def test_what_is_refused(subnetwork: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cnn(s=nsn.Subnetwork(**subnetwork))


def test_what_changes_the_output_has_to_be_named() -> None:
    net = cnn(few=nsn.Subnetwork(width={"output": {"out": 0.5}}))
    assert net.description.output_shape("few") == (5,)


def test_describe_says_what_numbers_mean() -> None:
    console = Console(width=200, record=True)
    console.print(tables(cnn(half=nsn.Subnetwork(width=0.5)).description))
    text = " ".join(console.export_text().split())
    assert "1 keeps one" in text and "1.0 keeps all" in text


def test_long_networks_are_narrowed_in_a_moment() -> None:
    """Streams, and blocks that what comes before cannot narrow: the time is in proportion."""
    description = json.loads(
        nsn.Description(
            input=(4,),
            blocks={
                "a": nsn.Dense(4, 4),
                "b": nsn.Residual({"up": nsn.Dense(4, 8), "down": nsn.Dense(8, 4)}),
            },
        ).to_json()
    )
    first, residual = description["blocks"]
    blocks = [first, *({**residual, "name": f"b{i}"} for i in range(15_000))]
    description |= {"blocks": blocks, "subnetworks": [{"name": "half", "width": 0.5}]}
    started = time.perf_counter()
    made = nsn.Description.from_json(json.dumps(description))
    assert time.perf_counter() - started < 10
    assert made.output_shape("half") == (4,)
    assert made.parameter_count("half") < 0.6 * made.parameter_count("base")
