"""The table of cases: gradients, all ways to run a sub-network, and that nothing is missing in it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsn
import test_elastic
from cases import Case, table
from conftest import ROOT
from interpreter import PRIMITIVES, run
from nsn import _C, extract
from nsn.exporting import runner
from test_extract import difference, scramble

CASES = table()
RULES = [name for name, _, takes, _ in _C.merge.rules() if takes == "nothing"]


# ---- nothing is missing --------------------------------------------------------------------------


def types_in(blocks: list[dict[str, Any]]) -> set[str]:
    inner = [types_in(block.get("blocks", [])) for block in blocks]
    return {block["type"] for block in blocks}.union(*inner)


def primitives_of(case: Case) -> set[str]:
    description = case.description()
    programs = [json.loads(description.program(name)) for name in description.names]
    return {step["primitive"] for program in programs for step in program["steps"]}


def test_every_block_is_in_a_case() -> None:
    found = [
        types_in(json.loads(case.description().to_json())["blocks"]) for case in CASES.values()
    ]
    missing = {name for name, *_ in _C.block_types()}.difference(*found)
    assert not missing, f"tests/python/cases.py has no case with {', '.join(sorted(missing))}"


def test_every_primitive_is_in_a_case() -> None:
    """But "block", which is what a block of one's own is; and Python's tables have them all."""
    header = (ROOT / "csrc/include/nsn/program/primitives.h").read_text()
    known = set(re.findall(r'kName = "(\w+)"', header))
    assert "block" in known and "product" in known
    missing = (known - {"block"}).difference(*map(primitives_of, CASES.values()))
    assert not missing, f"no program of tests/python/cases.py has {', '.join(sorted(missing))}"
    assert set(PRIMITIVES) == known - {"block"}
    assert set(extract._MODULES) == known


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_merged_gradients(name: str, rule: str) -> None:
    """Against plain autograd, one sub-network at a time; of all sub-networks, and of some."""
    description = CASES[name].description(torch.float64, getattr(nsn.merge, rule)())
    document = json.loads(description.to_json())
    for seed in range(3):
        case = test_elastic.Case(seed, document)
        if seed == 0:
            case.lanes = case.in_loss = case.names
            case.loss_weights = dict.fromkeys(case.names, 1.0)
            case.net.train().requires_grad_(True)
        test_elastic.check_pass(case)


def backward(net: nsn.Network, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a joint pass of all sub-networks, with the same masks each time."""
    torch.manual_seed(1)
    sum(output.sin().sum() for output in net(x, nsn.ALL).values()).backward()
    return {name: each.grad for name, each in net.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_float32_are_those_in_float64(name: str) -> None:
    """There the library's own kernels run."""
    case = CASES[name]
    net = nsn.Network(case.description(torch.float32, nsn.merge.mean()))
    x = case.batch_of_inputs()
    exact = backward(copy.deepcopy(net).double(), x.double() if x.is_floating_point() else x)
    scale = max(float(each.abs().max()) for each in exact.values())
    for key, found in backward(net, x).items():
        assert (found.double() - exact[key]).abs().max() < 2e-5 * max(1.0, scale), key


# ---- all ways to run a sub-network ---------------------------------------------------------------


def prepared(case: Case, dtype: torch.dtype) -> tuple[nsn.Network, Tensor]:
    """Its network with values all over, in evaluation, and a batch."""
    net = scramble(nsn.Network(case.description(dtype)).to(dtype))
    return net.eval(), case.batch_of_inputs(dtype)


def exported(net: nsn.Network, folder: Path, format: str, x: Tensor) -> dict[str, Tensor]:
    export = nsn.export(net, folder / format, format)
    return {each.subnetwork: runner(export, each)(x) for each in export.programs}


@pytest.mark.parametrize("name", CASES)
def test_all_ways_give_the_views_numbers(name: str, tmp_path: Path) -> None:
    net, x = prepared(CASES[name], torch.float64)
    pack, joint, files = net.pack(), net(x, nsn.ALL), exported(net, tmp_path, "pt2", x)
    assert len(net.subnetworks) > 1
    for each in net.subnetworks:
        view, copied = net.view(each)(x), net.extract(each)
        program = json.loads(net.description.program(each))
        ways = {
            "joint": joint[each],
            "packed": pack.view(each)(x),
            "extracted": copied(x),
            "interpreted": run(program, net._parameters_now(), x),
            "exported": files[each],
        }
        for way, found in ways.items():
            assert difference(found, view) < 1e-12, (way, each)
        if any(step["primitive"] == "dropout" for step in program["steps"]):
            assert difference(copied.train()(x), view) > 0, each
        else:
            assert not any(isinstance(module, nn.Dropout) for module in copied.modules())


@pytest.mark.parametrize("name", CASES)
def test_float32_gives_the_views_numbers_too(name: str, tmp_path: Path) -> None:
    net, x = prepared(CASES[name], torch.float32)
    exact = copy.deepcopy(net).double()
    pack, joint, files = net.pack(), net(x, nsn.ALL), exported(net, tmp_path, "runtime", x)
    for each in net.subnetworks:
        expected = exact.view(each)(x.double() if x.is_floating_point() else x)
        ways = {
            "joint": joint[each],
            "view": net.view(each)(x),
            "packed": pack.view(each)(x),
            "extracted": net.extract(each)(x),
            "runtime": files[each],
        }
        for way, found in ways.items():
            assert found.dtype == torch.float32
            assert difference(found.double(), expected) < 1e-5, (way, each)


def cover() -> list[str]:
    """A few cases that have all primitives."""
    primitives = {name: primitives_of(case) for name, case in CASES.items()}
    left = set().union(*primitives.values())
    chosen = []
    while left:
        chosen.append(max(primitives, key=lambda name: len(primitives[name] & left)))
        left -= primitives[chosen[-1]]
    return chosen


@pytest.mark.parametrize("name", cover())
def test_every_primitive_runs_as_onnx(name: str, tmp_path: Path) -> None:
    net, x = prepared(CASES[name], torch.float32)
    export = nsn.export(net, tmp_path / "onnx", "onnx", ["narrow"])
    (program,) = export.programs
    assert difference(runner(export, program)(x), net.view("narrow")(x)) < 1e-5
