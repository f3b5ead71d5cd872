"""Extracted sub-networks: plain modules of torch, with the view's outputs."""

import copy
import inspect
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
from nsn import blocks
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


B = blocks
_INPUTS: dict[int, tuple[int, ...]] = {1: (8,), 2: (8, 6), 3: (8, 6, 6)}
#: Each block with all its options, and the rank of what it reads; docs/blocks.md has the list.
SINGLE: list[tuple[nsn.blocks.BlockOptions, int]] = [
    *((B.Dense(8, 5, activation=each, scale=True), 1) for each in ("linear", "relu", "gelu")),
    *((B.Dense(6, 5, activation=each, scale=True), 2) for each in ("glu", "reglu", "geglu")),
    (B.Dense(6, 5, bias=False, activation="swiglu", dropout=0.5), 2),
    (B.Dense(8, 5, bias=False, scale=True), 1),
    (B.Conv1d(8, 4, 3, stride=2, padding=1, groups=2, activation="silu"), 2),
    (B.Conv1d(8, 4, 3, dilation=2, causal=True, scale=True, activation="swiglu"), 2),
    (B.Conv2d(8, 4, (3, 1), (2, 1), (1, 0), (1, 2), activation="sigmoid", dropout=0.2), 3),
    (B.Conv2d(8, 8, 3, groups=8, scale=True, bias=False, activation="tanh"), 3),
    (B.Conv2d(8, 4, 1, activation="geglu", scale=True), 3),
    (B.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, activation="relu"), 3),
    (B.ConvTranspose2d(8, 4, (1, 2), bias=False, dilation=(1, 2)), 3),
    (B.Upsample(2), 3),
    (B.Upsample(2, "bilinear"), 3),
    (B.MaxPool1d(3, 2, 1), 2),
    (B.MaxPool2d((2, 3)), 3),
    (B.AvgPool1d(3, 1, 1), 2),
    (B.AvgPool2d(2, (1, 2)), 3),
    (B.GlobalAvgPool(), 2),
    (B.GlobalAvgPool(), 3),
    (B.Flatten(), 3),
    (B.PositionEmbedding(9, 6, dropout=0.1), 2),
    (B.PositionEmbedding(9, 6), 2),
    (B.LayerNorm(6, 0.1), 2),
    (B.LayerNorm(6, bias=False), 2),
    (B.LayerNorm(8, affine=False), 1),
    (B.RMSNorm(6, 0.1), 2),
    (B.RMSNorm(8, affine=False), 1),
    (B.GroupNorm(2, 8, 0.1), 3),
    (B.GroupNorm(4, 8, affine=False), 2),
    *((B.BatchNorm(8, 0.1, track=False), rank) for rank in (1, 2, 3)),
    (B.BatchNorm(8, affine=False), 3),
    *((B.Activation(each), 1) for each in ("linear", "relu", "gelu", "silu", "sigmoid", "tanh")),
    (B.Dropout(0.4), 1),
    (
        B.Sequence(
            {"append": B.Dense(8, 4), "class": B.Activation("relu"), "graph": B.Dense(4, 3)}
        ),
        1,
    ),
    (B.Residual({"code": B.Dense(8, 4), "lambda": B.Sequence({"x": B.Dense(4, 8)})}), 1),
    (B.Attention(6, 2, head_dim=5, causal=True, bias=False, dropout=0.1), 2),
    (B.Attention(6, 3), 2),
    (B.Transformer(6, 2, 7, head_dim=2, causal=True, activation="swiglu", norm="rms"), 2),
    (B.Transformer(6, 2, 7, bias=False, dropout=0.1), 2),
]


@pytest.mark.parametrize(("block", "rank"), SINGLE, ids=lambda value: type(value).__name__)
def test_each_block_by_itself(block: nsn.blocks.BlockOptions, rank: int) -> None:
    net = nsn.Network(input=_INPUTS[rank], blocks={"only": block}, dtype=torch.float64)
    scramble(net).eval()
    x = torch.randn(3, *_INPUTS[rank], dtype=torch.float64)
    module = net.extract("base")
    assert difference(module(x), net.view("base")(x)) < 1e-12
    dropout = getattr(block, "dropout", getattr(block, "p", 0.0))
    if dropout > 0:
        assert not torch.equal(module.train()(x), module.eval()(x))
    else:
        assert not any(isinstance(each, nn.Dropout) for each in module.modules())


def test_the_list_above_has_all_blocks() -> None:
    known = {
        name
        for name, each in inspect.getmembers(blocks, inspect.isclass)
        if issubclass(each, blocks.BlockOptions) and each is not blocks.BlockOptions
    }
    assert {type(block).__name__ for block, _ in SINGLE} | {"Embedding", "TiedOutput"} == known


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
