"""Every option of every block, away from its default, survives whatever a network goes through."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import nsn
from nsn.blocks import BlockOptions

#: (block, input's shape, its options), such that each field is somewhere away from its default.
TABLE: list[tuple[type[BlockOptions], tuple[int, ...], dict[str, Any]]] = [
    (
        nsn.Dense,
        (4,),
        {
            "in_features": 4,
            "out_features": 6,
            "activation": "swiglu",
            "dropout": 0.25,
            "weight_init": "xavier_uniform",
            "bias_init": 0.5,
            "scale": True,
            "per_subnetwork": ["bias", "scale"],
        },
    ),
    (nsn.Dense, (4,), {"in_features": 4, "out_features": 6, "bias": False}),
    (
        nsn.Conv1d,
        (4, 9),
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "dilation": 2,
            "groups": 2,
            "scale": True,
            "activation": "gelu",
            "dropout": 0.25,
            "weight_init": "xavier_uniform",
            "bias_init": 0.5,
            "per_subnetwork": ["bias", "scale"],
        },
    ),
    (
        nsn.Conv1d,
        (4, 9),
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "causal": True, "bias": False},
    ),
    (
        nsn.Conv2d,
        (4, 9, 9),
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 0),
            "dilation": (2, 1),
            "groups": 2,
            "scale": True,
            "activation": "silu",
            "dropout": 0.25,
            "weight_init": "xavier_uniform",
            "bias_init": 0.5,
            "per_subnetwork": ["bias", "scale"],
        },
    ),
    (
        nsn.Conv2d,
        (4, 9, 9),
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "bias": False},
    ),
    (
        nsn.ConvTranspose2d,
        (4, 5, 5),
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "stride": (3, 2),
            "padding": (1, 0),
            "output_padding": (1, 0),
            "dilation": (2, 1),
            "activation": "tanh",
            "dropout": 0.25,
            "per_subnetwork": ["bias"],
        },
    ),
    (
        nsn.ConvTranspose2d,
        (4, 5, 5),
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "bias": False},
    ),
    (nsn.Upsample, (4, 5, 5), {"scale_factor": 3, "mode": "bilinear"}),
    (nsn.MaxPool1d, (4, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nsn.MaxPool2d, (4, 9, 9), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    (nsn.AvgPool1d, (4, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nsn.AvgPool2d, (4, 9, 9), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    (nsn.GlobalAvgPool, (4, 9), {}),
    (nsn.Flatten, (4, 9), {}),
    (nsn.Embedding, (3,), {"num_embeddings": 5, "embedding_dim": 4, "std": 0.5, "dropout": 0.25}),
    (nsn.PositionEmbedding, (3, 4), {"length": 3, "features": 4, "std": 0.5, "dropout": 0.25}),
    (
        nsn.LayerNorm,
        (4,),
        {"features": 4, "eps": 1e-3, "bias": False, "per_subnetwork": ["affine"]},
    ),
    (nsn.LayerNorm, (4,), {"features": 4, "affine": False}),
    (nsn.RMSNorm, (4,), {"features": 4, "eps": 1e-3, "per_subnetwork": ["affine"]}),
    (nsn.RMSNorm, (4,), {"features": 4, "affine": False}),
    (
        nsn.GroupNorm,
        (4, 3),
        {"groups": 2, "channels": 4, "eps": 1e-3, "per_subnetwork": ["affine"]},
    ),
    (nsn.GroupNorm, (4, 3), {"groups": 2, "channels": 4, "affine": False}),
    (
        nsn.BatchNorm,
        (4, 3),
        {
            "features": 4,
            "eps": 1e-3,
            "momentum": 0.5,
            "per_subnetwork": ["affine", "statistics"],
        },
    ),
    (nsn.BatchNorm, (4, 3), {"features": 4, "affine": False, "track": False}),
    (nsn.Activation, (4,), {"function": "sigmoid"}),
    (nsn.Dropout, (4,), {"p": 0.25}),
    (
        nsn.Attention,
        (3, 4),
        {
            "features": 4,
            "heads": 2,
            "head_dim": 3,
            "causal": True,
            "dropout": 0.25,
            "per_subnetwork": ["bias"],
        },
    ),
    (nsn.Attention, (3, 4), {"features": 4, "heads": 2, "bias": False}),
    (
        nsn.Transformer,
        (3, 4),
        {
            "features": 4,
            "heads": 2,
            "ffn": 6,
            "head_dim": 3,
            "causal": True,
            "activation": "geglu",
            "dropout": 0.25,
            "norm": "rms",
            "per_subnetwork": ["affine", "bias"],
        },
    ),
    (nsn.Transformer, (3, 4), {"features": 4, "heads": 2, "ffn": 6, "bias": False}),
    *(
        (
            kind,
            (4,),
            {
                "blocks": {
                    "one": nsn.Dense(4, 4, dropout=0.5, activation="relu"),
                    "two": nsn.Sequence(
                        {"in": nsn.Dropout(0.25), "out": nsn.Dense(4, 4, bias=False)},
                        keeps_dropout=["in"],
                    ),
                },
                "keeps_dropout": ["two"],
            },
        )
        for kind in (nsn.Sequence, nsn.Residual)
    ),
]


def test_the_table_has_every_option_of_every_block() -> None:
    missing = []
    for kind in BlockOptions.__subclasses__():
        if kind is nsn.TiedOutput:
            continue  # has a test of its own
        given = [options for each, _, options in TABLE if each is kind]
        assert given, kind
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            values = [options[field.name] for options in given if field.name in options]
            if not any(value != field.default for value in values):
                missing.append(f"{kind.__name__}.{field.name}")
    assert not missing


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def ways(net: nsn.Network, folder: Path) -> dict[str, nsn.Network]:
    """The network after all that it may go through."""
    nsn.save(net, folder / "net")
    return {
        "json": nsn.Network(nsn.Description.from_json(net.description.to_json())),
        "file": nsn.load(folder / "net"),
        "part": nsn.load(folder / "net", only="s"),
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "double": copy.deepcopy(net).double(),
    }


@pytest.mark.parametrize(
    ("kind", "shape", "options"), TABLE, ids=[each[0].__name__ for each in TABLE]
)
def test_every_option_survives(
    kind: type[BlockOptions], shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    dtype = torch.int64 if kind is nsn.Embedding else torch.float32
    net = nsn.Network(
        input=shape,
        dtype=dtype,
        blocks={"block": kind(**options)},
        subnetworks={"s": ["block"]},
    ).eval()
    (document,) = json.loads(net.description.to_json())["blocks"]
    for name, value in options.items():
        if name not in ("blocks", "keeps_dropout"):
            assert document[name] == as_json(value), name
    x = torch.zeros(2, *shape, dtype=dtype)
    if dtype.is_floating_point:
        x = torch.randn(2, *shape)
        net.train()(x, nsn.ALL)  # makes statistics
        net.eval()
    expected = net.view("s")(x)
    for way, other in ways(net, tmp_path).items():
        (again,) = json.loads(other.description.to_json())["blocks"]
        assert again == document, way
        if way == "double":
            floating = [each for each in net.state_dict().values() if each.is_floating_point()]
            assert (other.description == net.description) == (not floating)
        else:
            assert other.description == net.description, way
        if way not in ("json", "double"):
            assert torch.equal(other.view("s")(x), expected), way
    # By itself, all is its own.
    (alone,) = json.loads(net.description.alone("s").to_json())["blocks"]
    own = {"per_subnetwork": []} if "per_subnetwork" in document else {}
    if kind in (nsn.Attention, nsn.Transformer):  # which says how large its heads are
        document.setdefault("head_dim", options["features"] // options["heads"])
    assert alone == {**document, **own}


def test_tied_outputs_survive(tmp_path: Path) -> None:
    net = nsn.Network(
        input=(3,),
        dtype=torch.int64,
        blocks={
            "words": nsn.Embedding(5, 4),
            "out": nsn.TiedOutput("words", 5, 4, bias=True, per_subnetwork=["bias"]),
        },
        subnetworks={"s": ["words", "out"]},
    )
    document = json.loads(net.description.to_json())["blocks"][1]
    assert document["bias"] and document["per_subnetwork"] == ["bias"]
    for way, other in ways(net, tmp_path).items():
        assert json.loads(other.description.to_json())["blocks"][1] == document, way
    alone = json.loads(net.description.alone("s").to_json())["blocks"][1]
    assert alone == {**document, "per_subnetwork": []}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", [False, True])
def test_the_parameters_dtype_is_the_descriptions(
    dtype: torch.dtype, text: bool, tmp_path: Path
) -> None:
    first = nsn.Embedding(5, 4) if text else nsn.Dense(4, 4)
    net = nsn.Network(
        input=(3,) if text else (3, 4),
        dtype=torch.int64 if text else torch.float32,
        blocks={"in": first, "norm": nsn.BatchNorm(3), "out": nsn.Dense(4, 2)},
    )
    before = net.describe()[0]["bytes"]
    net.to(dtype)
    assert net.description.parameter_dtype == dtype
    size = torch.empty(0, dtype=dtype).element_size()
    assert net.describe()[0]["bytes"] * 4 == before * size
    assert [key for key, value in net.state_dict().items() if value.dtype == torch.int64] == [
        "norm.num_batches_tracked"
    ]
    nsn.save(net, tmp_path / "net")
    again = nsn.load(tmp_path / "net")
    assert again.description == net.description
    assert again.describe()[0]["bytes"] == net.describe()[0]["bytes"]
    fresh = nsn.Network(again.description)
    assert {each.dtype for each in fresh.parameters()} == {dtype}
    assert net.float().description.parameter_dtype == torch.float32


def test_what_a_subclass_adds_is_not_dropped(tmp_path: Path) -> None:
    class Own(nsn.Network):
        def __init__(self) -> None:
            super().__init__(input=(4,), blocks={"a": nsn.Dense(4, 2)})
            self.head = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="'head' is no block of the network's description"):
        nsn.save(Own(), tmp_path / "net")
    assert not list(tmp_path.iterdir())
    assert "head.weight" in Own().state_dict()
