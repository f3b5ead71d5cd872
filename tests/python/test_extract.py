"""Extracted sub-networks: plain modules of torch, with the view's outputs."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nsn
from conftest import paper_network
from random_networks import KINDS, random_description, random_input


def scramble(net: nsn.Network) -> nsn.Network:
    """Other values in all parameters and buffers, as training would leave."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for buffer in net.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5 if buffer.is_floating_point() else 3)
    return net


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = expected.detach().abs().max().clamp_min(1)
    return ((found - expected).detach().abs().max() / scale).item()


def random_cases(kind: str) -> Iterator[tuple[int, nsn.Network, Tensor]]:
    """Seeds, random networks with values all over, and batches for them."""
    for seed in range(40):
        document = random_description(seed, kind)
        net = scramble(nsn.Network(nsn.Description.from_json(json.dumps(document))).double())
        yield seed, net.eval(), random_input(document, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str) -> None:
    for seed, net, x in random_cases(kind):
        owned = {tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values()}
        for name in net.subnetworks:
            module = net.extract(name)
            assert difference(module(x), net.view(name)(x)) < 1e-12, (seed, name)
            tensors = dict(module.state_dict())
            assert all(tensor.is_contiguous() for tensor in tensors.values())
            assert not owned & {each.untyped_storage().data_ptr() for each in tensors.values()}
            assert not module.training
            count = sum(parameter.numel() for parameter in module.parameters())
            if "TiedOutput" not in net.description.to_json():  # whose weight may have two widths
                assert count == net.description.parameter_count(name), (seed, name)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_embeddings_and_what_is_tied_to_them(dtype: torch.dtype) -> None:
    def network(dropout: float) -> nsn.Network:
        net = nsn.Network(
            input=(4,),
            dtype=dtype,
            blocks={
                "words": nsn.Embedding(7, 6, dropout=dropout),
                "hidden": nsn.Dense(6, 6, activation="tanh"),
                "output": nsn.TiedOutput("words", 7, 6, bias=True),
            },
            subnetworks={
                "half": nsn.Subnetwork(
                    ["words", "hidden", "output"], width={"words": 3, "hidden": 3}
                ),
                "narrow_end": nsn.Subnetwork(["words", "hidden", "output"], width={"hidden": 2}),
            },
        )
        return scramble(net).double().eval()

    x = torch.randint(7, (5, 4)).to(dtype)
    for dropout in (0.0, 0.5):
        net = network(dropout)
        for name in net.subnetworks:
            module = net.extract(name)
            assert difference(module(x), net.view(name)(x)) < 1e-12
            tied = name != "narrow_end"
            assert len([each for each in module.parameters() if each.shape[:1] == (7,)]) == (
                2 if tied else 3  # weight and bias; or the output's weight too
            )
        module = net.extract("half")
        module.get_parameter("output.weight").data.zero_()
        embedding = (
            "words.weight" if dtype != torch.uint8 and not dropout else "words.embedding.weight"
        )
        assert not module.get_parameter(embedding).any()


def test_names_mode_and_dropout_are_the_networks() -> None:
    net = paper_network(width=12)
    net.hidden2.weight.requires_grad_(False)
    module = net.extract("sub1")
    assert isinstance(module, nn.Sequential) and module.training
    assert [name for name, _ in module.named_children()] == ["hidden2", "output"]
    assert {name: each.requires_grad for name, each in module.named_parameters()} == {
        "hidden2.linear.weight": False,
        "hidden2.linear.bias": True,
        "output.weight": True,
        "output.bias": True,
    }
    kinds = [type(each) for each in module.hidden2]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] and type(module.output) is nn.Linear
    assert module.hidden2.dropout.p == 0.2
    assert net.extract("base").hidden2.dropout.p == 0.5
    assert not net.eval().extract("sub1").training
    state = torch.get_rng_state()
    net.extract("base")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="no sub-network 'sub9'"):
        net.extract("sub9")


def test_the_copy_is_trained_as_the_subnetwork_alone() -> None:
    """The same losses, gradients and statistics as a network's pass of one sub-network."""
    net = nsn.Network(
        input=(2, 6, 6),
        blocks={
            "conv": nsn.Conv2d(2, 4, 3, activation="swiglu", scale=True),
            "norm": nsn.BatchNorm(4, momentum=0.3),
            "rest": nsn.Residual({"conv": nsn.Conv2d(4, 4, 3, padding=1)}),
            "fixed": nsn.BatchNorm(4, track=False),
            "flat": nsn.Flatten(),
            "output": nsn.Dense(64, 3),
        },
        dtype=torch.float64,
    )
    module = net.extract("base")
    x, labels = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    for run in (net, module):
        nn.functional.cross_entropy(run(x), labels).backward()
    own = dict(module.named_parameters())
    for name, parameter in net.named_parameters():
        head, _, leaf = name.rpartition(".")
        path = {"conv.weight": "conv.conv.weight", "conv.bias": "conv.scale.bias"}.get(name, name)
        path = "conv.scale.weight" if name == "conv.scale" else path
        assert parameter.grad is not None and own[path].grad is not None, (head, leaf)
        assert difference(own[path].grad, parameter.grad) < 1e-12, name
    for part in ("norm", "fixed"):
        for leaf in ("running_mean", "running_var"):
            expected = net.get_buffer(f"{part}.{leaf}")
            assert difference(module.get_buffer(f"{part}.{leaf}"), expected) < 1e-12
    assert module.norm.running_mean.any() and not module.fixed.running_mean.any()


_WITHOUT_NSN = """
import sys
sys.modules["nsn"] = None
import torch
for name in sys.argv[2:]:
    module = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=False)
    x, expected = torch.load(f"{sys.argv[1]}/{name}.io")
    assert not module.training
    assert torch.equal(module(x), expected), name
    module.train()
    copy = __import__("copy").deepcopy(module)
    assert copy.training and copy(x).shape == expected.shape
assert not [each for each in sys.modules if each.startswith("nsn.")]
print("done")
"""


def test_it_needs_no_nsn(tmp_path: Path) -> None:
    net = nsn.Network(
        input=(5,),
        dtype=torch.int64,
        blocks={
            "words": nsn.Embedding(9, 8),
            "place": nsn.PositionEmbedding(5, 8),
            "block": nsn.Transformer(8, 2, 12, activation="swiglu", dropout=0.1),
            "gate": nsn.Dense(8, 8, activation="reglu", scale=True),
            "extra": nsn.Residual({"norm": nsn.LayerNorm(8), "dense": nsn.Dense(8, 8)}),
            "output": nsn.TiedOutput("words", 9, 8),
        },
        subnetworks={"short": ["words", "place", "block", "output"]},
    ).eval()
    x = torch.randint(9, (3, 5))
    for name in net.subnetworks:
        module = net.extract(name)
        again = copy.deepcopy(module)
        assert torch.equal(again(x), module(x))
        torch.save(module, tmp_path / f"{name}.pt")
        torch.save((x, module(x)), tmp_path / f"{name}.io")
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NSN, str(tmp_path), *net.subnetworks],
        capture_output=True,
        text=True,
    )
    assert result.stdout == "done\n", result.stderr
