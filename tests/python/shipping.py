"""Networks that the tests of exports and verification ship, one of each kind."""

import functools
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import nsn
from conftest import paper_network

#: Small, since memory is planned for it; 16 is where some layers' channels are.
MAX_BATCH = 16


def mlp() -> nsn.Network:
    """The paper's network at its size, and half as wide."""
    blocks = ["hidden1", "hidden2", "output"]
    paper = paper_network().description
    document = paper.to_json().replace(
        '"subnetworks":[',
        '"subnetworks":[{"name":"half","blocks":["hidden1","hidden2","output"],'
        '"width":{"hidden1":0.5,"hidden2":0.5}},',
    )
    assert blocks == paper.blocks
    return nsn.Network(nsn.Description.from_json(document))


def cnn() -> nsn.Network:
    """Convolutions at two widths and two depths, with a batch norm of each one's own."""
    blocks = ["conv", "stage", "deep", "flat", "output"]
    net = nsn.Network(
        input=(1, 12, 12),
        blocks={
            "conv": nsn.Conv2d(1, 8, 3, padding=1, activation="swiglu"),
            "stage": nsn.Sequence(
                {
                    "conv": nsn.Conv2d(8, 16, 3, padding=1, bias=False),
                    "norm": nsn.BatchNorm(16, per_subnetwork=["affine", "statistics"]),
                    "pool": nsn.MaxPool2d(4),
                }
            ),
            "deep": nsn.Residual({"conv": nsn.Conv2d(16, 16, 1, activation="relu")}),
            "flat": nsn.Flatten(),
            "output": nsn.Dense(144, 10, scale=True),
        },
        subnetworks={
            "half": nsn.Subnetwork(blocks, width={"conv": 0.5, "stage": {"conv.out": 0.5}}),
            "shallow": ["conv", "stage", "flat", "output"],
        },
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "scale" in name:
                parameter.add_(torch.rand_like(parameter))
    net.recalibrate([torch.randn(32, 1, 12, 12)])
    return net


def transformer() -> nsn.Network:
    """Attention heads and hidden layers at two widths, and a tied output."""
    blocks = ["words", "place", "block", "gate", "norm", "output"]
    return nsn.Network(
        input=(12,),
        dtype=torch.int64,
        blocks={
            "words": nsn.Embedding(11, 32),
            "place": nsn.PositionEmbedding(12, 32),
            "block": nsn.Transformer(32, 4, 64, causal=True, per_subnetwork=["affine"]),
            "gate": nsn.Residual(
                {"norm": nsn.RMSNorm(32), "dense": nsn.Dense(32, 32, activation="swiglu")}
            ),
            "norm": nsn.LayerNorm(32),
            "output": nsn.TiedOutput("words", 11, 32),
        },
        subnetworks={
            "half": nsn.Subnetwork(blocks, width={"block": {"heads": 2, "ffn": 0.5}}),
        },
    )


KINDS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


@functools.cache
def network(kind: str) -> nsn.Network:
    """One of ``KINDS``, in evaluation; made once, and not to be changed."""
    torch.manual_seed(3)
    return KINDS[kind]().eval()


_exports: dict[tuple[str, str], nsn.Export] = {}


def max_batch_of(format: str) -> int | None:
    return MAX_BATCH if format == "executorch" else None


def exported(kind: str, format: str) -> nsn.Export:
    """Its export, made once, since exporters take their time; not to be changed."""
    if (kind, format) not in _exports:
        folder = Path(tempfile.mkdtemp(prefix="nsn-test-")) / format
        _exports[kind, format] = nsn.export(
            network(kind), folder, format, max_batch=max_batch_of(format)
        )
    return _exports[kind, format]


def remove_exports() -> None:
    """Removes all that ``exported`` made."""
    for export in _exports.values():
        shutil.rmtree(export.folder.parent)
    _exports.clear()


def inputs(kind: str, batch: int) -> Tensor:
    net = network(kind)
    if kind == "transformer":
        return torch.randint(11, (batch, *net.description.input_shape))
    return torch.randn(batch, *net.description.input_shape)


def one_copy(net: nsn.Network) -> int:
    """Bytes of all parameters and buffers that outputs depend on, each once."""
    tensors = net.state_dict().items()
    return sum(each.nbytes for name, each in tensors if "num_batches_tracked" not in name)
