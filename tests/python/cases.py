"""One table of cases: each block with its options, shapes and widths, for tests and benchmarks.

A case is a small network around one kind of block, at the size that is asked for. ``base`` reads
the block's input from ``entry``, ``narrow`` from half of ``entry``'s features and with what the
block may narrow narrowed, and ``side`` from a block of its own in ``entry``'s place. Entries read
two numbers, so that they cost next to nothing. ``test_cases.py`` holds all that runs a case against
each other, ``test_options.py`` takes options through files and copies, and ``benchmarks/ops.py``
measures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import nsn
from nsn import blocks as B
from nsn.blocks import BlockOptions

#: A width of each dimension that a sub-network narrows, by block.
Widths = Mapping[str, Mapping[str, int | float]]


@dataclass(frozen=True)
class Size:
    """How large the table's networks are.

    Attributes:
        features, channels: what the widths of rows, and of lines and planes, are multiplied with.
        length: of lines and texts.
        side: height and width of planes.
        batch: of lines, planes and texts.
        vectors: the batch of inputs that have one dimension.
    """

    features: int = 1
    channels: int = 1
    length: int = 6
    side: int = 6
    batch: int = 3
    vectors: int = 3


SMALL = Size()
#: What benchmarks measure.
LARGE = Size(features=32, channels=8, length=64, side=14, batch=16, vectors=128)


@dataclass(frozen=True)
class Case:
    """A network and a batch for it.

    Attributes:
        name: of its own.
        input: the shape of one sample.
        blocks: name to block.
        subnetworks: name to sub-network, ``base`` among them.
        batch: how many samples.
        vocabulary: the input is integers below it; 0: it is real numbers.
        is_corner: whether it is there for its widths, at one size, and there is nothing to measure.
    """

    name: str
    input: tuple[int, ...]
    blocks: Mapping[str, BlockOptions]
    subnetworks: Mapping[str, nsn.Subnetwork]
    batch: int
    vocabulary: int = field(default=0, kw_only=True)
    is_corner: bool = field(default=False, kw_only=True)

    def description(
        self, dtype: torch.dtype = torch.float32, merge: nsn.merge.Rule | None = None
    ) -> nsn.Description:
        """The network; ``dtype`` is that of real inputs."""
        return nsn.Description(
            input=self.input,
            blocks=self.blocks,
            subnetworks=self.subnetworks,
            merge=merge,
            dtype=torch.int64 if self.vocabulary else dtype,
        )

    def batch_of_inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(batch, *input)``, by torch's generator."""
        shape = (self.batch, *self.input)
        if self.vocabulary:
            return torch.randint(self.vocabulary, shape)
        return torch.randn(shape, dtype=dtype)


@dataclass(frozen=True)
class _Shape:
    """What the block under test reads: an input, and a block that makes features of it."""

    input: tuple[int, ...]
    entry: BlockOptions
    batch: int

    def case(
        self,
        name: str,
        *row: BlockOptions,
        width: Mapping[str, int | float] | None = None,
        entry: float = 0.5,
        drops: bool = False,
    ) -> Case:
        """Blocks behind an entry.

        Args:
            name: of the case.
            row: the block under test, ``it``, and one that reads what it makes, ``head``.
            width: what ``narrow`` keeps of the dimensions of ``it``.
            entry: what it keeps of the entry.
            drops: whether a sub-network leaves ``it`` out.
        """
        rest = dict(zip(("it", "head"), row, strict=False))
        kept: dict[str, dict[str, int | float]] = {"entry": {"out": entry}}
        if width:
            kept["it"] = dict(width)
        subnetworks = {
            "base": nsn.Subnetwork(["entry", *rest]),
            "narrow": nsn.Subnetwork(["entry", *rest], width=kept),
            "side": nsn.Subnetwork(["side", *rest]),
        }
        if drops:
            without = [each for each in rest if each != "it"]
            subnetworks["without"] = nsn.Subnetwork(["entry", *without])
        entries = {"entry": self.entry, "side": self.entry}
        return Case(name, self.input, {**entries, **rest}, subnetworks, self.batch)


def table(size: Size = SMALL) -> dict[str, Case]:
    """All cases, by name."""
    found: dict[str, Case] = {}
    for part in (_vectors, _rows, _lines, _planes, _texts, _corners):
        for case in part(size):
            assert case.name not in found, case.name
            found[case.name] = case
    return found


PLAIN = ("linear", "relu", "gelu", "silu", "sigmoid", "tanh")
GATED = ("glu", "reglu", "geglu", "swiglu")
HALF = {"out": 0.5}


def _vectors(size: Size) -> Iterator[Case]:
    n, m = 8 * size.features, 6 * size.features
    shape = _Shape((2,), B.Dense(2, n), size.vectors)
    for name in PLAIN:
        dense = B.Dense(n, m, activation=name, scale=True)
        yield shape.case(f"dense {name}", dense, width=HALF)
        yield shape.case(f"activation {name}", B.Activation(name))
    plain = B.Dense(n, m, weight_init="xavier_uniform", bias_init=0.5)
    yield shape.case("dense", plain, B.Dense(m, n), width=HALF)
    yield shape.case("dense without bias", B.Dense(n, m, bias=False, scale=True), width=HALF)
    private = B.Dense(n, m, activation="geglu", scale=True, per_subnetwork=["bias", "scale"])
    yield shape.case("dense private", private, width=HALF)
    yield shape.case("dropout", B.Dropout(0.25))
    yield shape.case("layer norm of vectors", B.LayerNorm(n, affine=False))
    yield shape.case("rms norm of vectors", B.RMSNorm(n, affine=False))
    yield shape.case("batch norm of vectors", B.BatchNorm(n, 0.1, momentum=0.5))
    relu: dict[str, Any] = {"activation": "relu", "dropout": 0.25}
    yield shape.case("dense relu dropout", B.Dense(n, m, **relu), width=HALF)
    drops = {"in": B.Dropout(0.25)}
    inner = {  # names that lists and Python have
        "append": B.Dense(n, m, **relu),
        "class": B.Sequence({**drops, "graph": B.Dense(m, n)}, keeps_dropout=["in"]),
    }
    sequence = B.Sequence(inner, keeps_dropout=["class"])
    yield shape.case("sequence", sequence, width={"append.out": 0.5}, drops=True)
    inner = {
        "code": B.Sequence({**drops, "graph": B.Dense(n, m)}, keeps_dropout=["in"]),
        "lambda": B.Dense(m, n, **relu),
    }
    residual = B.Residual(inner, keeps_dropout=["code"])
    widths = {"code.graph.out": 0.5}
    yield shape.case("residual", residual, B.Dense(n, m), width=widths, drops=True)


def _rows(size: Size) -> Iterator[Case]:
    f = size.features
    n, m = 8 * f, 6 * f
    shape = _Shape((size.length, 2), B.Dense(2, n), size.batch)
    for name in GATED:
        dense = B.Dense(n, m, activation=name, scale=True)
        yield shape.case(f"dense {name}", dense, width=HALF)
    gated = B.Dense(n, m, bias=False, activation="swiglu", dropout=0.25)
    yield shape.case("dense swiglu dropout", gated, width=HALF)
    yield shape.case("layer norm", B.LayerNorm(n, 0.1))
    yield shape.case("layer norm without bias", B.LayerNorm(n, bias=False))
    yield shape.case("layer norm private", B.LayerNorm(n, per_subnetwork=["affine"]))
    yield shape.case("rms norm", B.RMSNorm(n, 0.1))
    yield shape.case("rms norm private", B.RMSNorm(n, per_subnetwork=["affine"]))
    positions = B.PositionEmbedding(size.length + 3, n, std=0.5)
    yield shape.case("position embedding", positions)
    dropped = B.PositionEmbedding(size.length, n, dropout=0.25)
    yield shape.case("position embedding dropout", dropped)
    yield shape.case("flatten rows", B.Flatten(), B.Dense(size.length * n, m))
    yield shape.case("attention", B.Attention(n, 4), width={"heads": 2})
    yield shape.case(
        "attention causal",
        B.Attention(n, 2, head_dim=3 * f, causal=True, dropout=0.25, per_subnetwork=["bias"]),
        width={"heads": 1},
    )
    without = B.Attention(n, 4, bias=False)
    yield shape.case("attention without bias", without, width={"heads": 3}, entry=0.75)
    both = {"heads": 2, "ffn": 0.5}
    transformer = B.Transformer(n, 4, 4 * n, causal=True)
    yield shape.case("transformer", transformer, width=both, drops=True)
    yield shape.case(
        "transformer rms swiglu",
        B.Transformer(n, 4, 2 * n, head_dim=f, causal=True, activation="swiglu", norm="rms"),
        width=both,
    )
    yield shape.case(
        "transformer private",
        B.Transformer(n, 4, 2 * n, dropout=0.25, per_subnetwork=["affine", "bias"]),
        width=both,
    )
    yield shape.case("transformer without bias", B.Transformer(n, 4, 2 * n, bias=False))


def _lines(size: Size) -> Iterator[Case]:
    n, m = 8 * size.channels, 4 * size.channels
    shape = _Shape((2, size.length), B.Conv1d(2, n, 1), size.batch)
    convolutions: dict[str, dict[str, Any]] = {
        "conv1d": {"padding": 1},
        "conv1d grouped": {"stride": 2, "padding": 1, "groups": 2, "activation": "silu"},
        "conv1d causal": {"dilation": 2, "causal": True, "scale": True, "activation": "swiglu"},
        "conv1d private": {
            "scale": True,
            "dropout": 0.25,
            "weight_init": "xavier_uniform",
            "bias_init": 0.5,
            "per_subnetwork": ["bias", "scale"],
        },
        "conv1d without bias": {"bias": False, "activation": "gelu"},
    }
    for name, options in convolutions.items():
        yield shape.case(name, B.Conv1d(n, m, 3, **options), width=HALF)
    yield shape.case("conv1d depthwise", B.Conv1d(n, n, 3, padding=1, groups=n))
    yield shape.case("max pool 1d", B.MaxPool1d(3, 2, 1))
    yield shape.case("average pool 1d", B.AvgPool1d(3, 1, 1))
    yield shape.case("global average of lines", B.GlobalAvgPool(), B.Dense(n, m))
    yield shape.case("group norm without affine", B.GroupNorm(4, n, affine=False))
    yield shape.case("batch norm of lines", B.BatchNorm(n, 0.1))


def _planes(size: Size) -> Iterator[Case]:
    n, m, side = 8 * size.channels, 4 * size.channels, size.side
    shape = _Shape((2, side, side), B.Conv2d(2, n, 1), size.batch)
    uneven: dict[str, Any] = {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)}
    convolutions: dict[str, dict[str, Any]] = {
        "conv2d": {"kernel_size": 3, "padding": 1},
        "conv2d relu": {"kernel_size": 3, "padding": 1, "activation": "relu"},
        "conv2d strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
        "conv2d of one": {"kernel_size": 1, "activation": "geglu", "scale": True},
        "conv2d grouped": {"kernel_size": 3, "groups": 2, "scale": True, "activation": "gelu"},
        "conv2d uneven": {**uneven, "dilation": (1, 2), "activation": "sigmoid", "dropout": 0.25},
        "conv2d private": {
            "kernel_size": 2,
            "scale": True,
            "weight_init": "xavier_uniform",
            "bias_init": 0.5,
            "per_subnetwork": ["bias", "scale"],
        },
    }
    for name, options in convolutions.items():
        yield shape.case(name, B.Conv2d(n, m, **options), width=HALF)
    depthwise = B.Conv2d(n, n, 3, padding=1, groups=n, scale=True, bias=False, activation="tanh")
    yield shape.case("conv2d depthwise", depthwise)
    transposed: dict[str, dict[str, Any]] = {
        "transposed": {"kernel_size": 2, "stride": 2, "per_subnetwork": ["bias"]},
        "transposed overlapping": {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "output_padding": 1,
            "activation": "relu",
            "dropout": 0.25,
        },
        "transposed uneven": {"kernel_size": (1, 2), "bias": False, "dilation": (1, 2)},
    }
    for name, options in transposed.items():
        yield shape.case(name, B.ConvTranspose2d(n, m, **options), width=HALF)
    yield shape.case("upsample nearest", B.Upsample(2))
    yield shape.case("upsample bilinear", B.Upsample(2, "bilinear"))
    yield shape.case("max pool 2d", B.MaxPool2d((2, 3)))
    yield shape.case("max pool 2d overlapping", B.MaxPool2d(3, 2, 1))
    yield shape.case("average pool 2d", B.AvgPool2d(2, (1, 2)))
    yield shape.case("average pool 2d padded", B.AvgPool2d(2, padding=1))
    yield shape.case("global average of planes", B.GlobalAvgPool(), B.Dense(n, m))
    yield shape.case("flatten planes", B.Flatten(), B.Dense(n * side * side, m))
    yield shape.case("group norm", B.GroupNorm(2, n, 0.1))
    yield shape.case("group norm private", B.GroupNorm(1, n, per_subnetwork=["affine"]))
    yield shape.case("batch norm", B.BatchNorm(n))
    private = B.BatchNorm(n, 0.1, per_subnetwork=["affine", "statistics"])
    yield shape.case("batch norm private", private)
    yield shape.case("batch norm fixed", B.BatchNorm(n, affine=False, track=False))
    inner = {
        "conv": B.Conv2d(n, m, 3, padding=1, bias=False),
        "norm": B.BatchNorm(m, 0.1),
        "relu": B.Activation("relu"),
        "last": B.Conv2d(m, n, 3, padding=1),
    }
    yield shape.case("residual of planes", B.Residual(inner), width={"conv.out": 0.5}, drops=True)


def _texts(size: Size) -> Iterator[Case]:
    n, words = 8 * size.features, 8 * size.features
    dense = B.Dense(n, n, activation="tanh")
    table: dict[str, tuple[BlockOptions, BlockOptions]] = {
        "embedding": (B.Embedding(words, n, std=0.5), B.Dense(n, words)),
        "embedding dropout": (B.Embedding(words, n, dropout=0.25), B.Dense(n, words)),
        "tied output": (B.Embedding(words, n), B.TiedOutput("words", words, n)),
        "tied output private": (
            B.Embedding(words, n),
            B.TiedOutput("words", words, n, bias=True, per_subnetwork=["bias"]),
        ),
    }
    for name, (embedding, output) in table.items():
        everything = ["words", "hidden", "output"]
        narrow = nsn.Subnetwork(everything, width={"words": HALF, "hidden": {"out": 0.75}})
        yield Case(
            name,
            (size.length,),
            {"words": embedding, "hidden": dense, "output": output},
            {"base": everything, "narrow": narrow, "without": ["words", "output"]},
            size.batch,
            vocabulary=6,
        )


def _corners(_: Size) -> Iterator[Case]:
    """Widths that meet in ways of their own; ``narrow`` has them all, ``last`` that of the end."""
    grouped = B.Conv1d(4, 4, 1, groups=2)
    wide = B.Conv1d(4, 4, 1)
    words = {"words": B.Embedding(6, 4), "dense": B.Dense(4, 4)}
    rows: dict[str, tuple[tuple[int, ...], dict[str, BlockOptions], Widths]] = {
        "batch norm behind groups": (
            (4, 1),
            {"conv": grouped, "norm": B.BatchNorm(4), "flat": B.Flatten(), "out": B.Dense(4, 2)},
            {"conv": {"out": 2}},
        ),
        "batch norm behind positions": (
            (3,),
            {"words": words["words"], "flat": B.Flatten(), "norm": B.BatchNorm(12)},
            {"words": {"out": 1}},
        ),
        "group norm of one group": (
            (4, 3),
            {"conv": wide, "norm": B.GroupNorm(1, 4)},
            {"conv": {"out": 3}},
        ),
        "whole groups from the front": (
            (4, 3),
            {"conv": wide, "grouped": grouped, "norm": B.GroupNorm(2, 4)},
            {"conv": {"out": 2}, "grouped": {"out": 2}},
        ),
        "grouped residual behind groups": (
            (4, 3),
            {"grouped": grouped, "residual": B.Residual({"one": grouped, "two": grouped})},
            {"grouped": {"out": 2}, "residual": {"one.out": 2}},
        ),
        "tied in two widths": (
            (3,),
            {**words, "out": B.TiedOutput("words", 6, 4)},
            {"words": {"out": 2}, "dense": {"out": 3}},
        ),
        "tied in widths that shrink": (
            (3,),
            {**words, "out": B.TiedOutput("words", 6, 4, bias=True)},
            {"words": {"out": 3}, "dense": {"out": 1}},
        ),
        "widths that cross": (
            (4,),
            {"a": B.Dense(4, 4), "b": B.Dense(4, 4, activation="geglu"), "c": B.Dense(4, 2)},
            {"a": {"out": 1}, "b": {"out": 3}},
        ),
        "a row of positions": (
            (2, 4),
            {"dense": B.Dense(4, 4), "flat": B.Flatten(), "out": B.Dense(8, 4, activation="glu")},
            {"dense": {"out": 2}, "out": {"out": 3}},
        ),
    }
    for name, (input, blocks, width) in rows.items():
        last = dict(list(width.items())[-1:])
        subnetworks = {
            "base": nsn.Subnetwork(list(blocks)),
            "narrow": nsn.Subnetwork(list(blocks), width=width),
            "last": nsn.Subnetwork(list(blocks), width=last),
        }
        vocabulary = 6 if "words" in blocks else 0
        yield Case(name, input, blocks, subnetworks, 3, vocabulary=vocabulary, is_corner=True)
