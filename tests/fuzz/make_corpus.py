"""Writes tests/fuzz/corpus: small checkpoints of several kinds, good ones and bad ones.

Run it after a change of the format: ``python tests/fuzz/make_corpus.py``.
"""

import json
import struct
from pathlib import Path
from typing import Any

import torch

import nsn

CORPUS = Path(__file__).parent / "corpus"


def networks() -> dict[str, nsn.Network]:
    """By name; their sub-networks are called base, small and half."""
    relu = {"activation": "relu"}
    return {
        "chain": nsn.Network(
            input=(4,),
            blocks={
                "a": nsn.Dense(4, 4, **relu),
                "b": nsn.Dense(4, 4, **relu),
                "output": nsn.Dense(4, 2),
            },
            subnetworks={"half": ["b", "output"], "small": ["output"]},
            merge=nsn.merge.two_smallest_mean(),
        ),
        "width": nsn.Network(
            input=(4,),
            blocks={
                "a": nsn.Dense(4, 6, activation="geglu", dropout=0.5),
                "norm": nsn.LayerNorm(6),
                "output": nsn.Dense(6, 2),
            },
            subnetworks={
                "half": nsn.Subnetwork(["a", "norm", "output"], width={"a": 0.5}),
                "small": nsn.Subnetwork(["a", "output"], width={"a": 1}, dropout={"a": 0.1}),
            },
            merge=nsn.merge.mean(),
            dtype=torch.float64,
        ),
        "private": nsn.Network(
            input=(3,),
            blocks={
                "a": nsn.Dense(3, 4, per_subnetwork=["bias"]),
                "norm": nsn.BatchNorm(4, per_subnetwork=["affine", "statistics"]),
                "exit": nsn.Dense(4, 2),
                "output": nsn.Dense(4, 2, scale=True),
            },
            subnetworks={
                "base": ["a", "norm", "output"],
                "half": nsn.Subnetwork(["a", "norm", "output"], width={"a": 2}),
                "small": ["a", "exit"],
            },
            merge=nsn.merge.weighted({"base": 1.0, "half": 0.5, "small": 2.0}),
            dtype=torch.bfloat16,
        ),
        "conv": nsn.Network(
            input=(2, 6, 6),
            blocks={
                "conv": nsn.Conv2d(2, 4, 3, padding=1, **relu),
                "norm": nsn.BatchNorm(4),
                "deep": nsn.Residual({"conv": nsn.Conv2d(4, 4, 1)}),
                "pool": nsn.MaxPool2d(2),
                "flat": nsn.Flatten(),
                "output": nsn.Dense(36, 2),
            },
            subnetworks={
                "half": nsn.Subnetwork(
                    ["conv", "norm", "deep", "pool", "flat", "output"], width={"conv": 0.5}
                ),
                "small": ["conv", "pool", "flat", "output"],
            },
            merge=nsn.merge.sum(),
        ),
        "upsample": nsn.Network(
            input=(2, 2, 2),
            blocks={
                "up": nsn.ConvTranspose2d(2, 4, 2, stride=2),
                "group": nsn.GroupNorm(2, 4),
                "grouped": nsn.Conv2d(4, 4, 1, groups=2),
                "more": nsn.Upsample(2),
                "mean": nsn.GlobalAvgPool(),
                "output": nsn.Dense(4, 2),
            },
            subnetworks={"small": ["up", "mean", "output"]},
        ),
        "tied": nsn.Network(
            input=(3,),
            blocks={
                "tokens": nsn.Embedding(5, 4),
                "positions": nsn.PositionEmbedding(3, 4),
                "inner": nsn.Transformer(4, 2, 6),
                "output": nsn.TiedOutput("tokens", 5, 4),
            },
            subnetworks={
                "half": nsn.Subnetwork(
                    ["tokens", "positions", "inner", "output"],
                    width={"inner": {"heads": 1, "ffn": 3}},
                ),
                "small": nsn.Subnetwork(["tokens", "positions", "output"], width={"tokens": 2}),
            },
            merge=nsn.merge.owner(),
            dtype=torch.int64,
        ),
        "grid": nsn.Network(
            input=(4,),
            blocks={
                "a": nsn.Dense(4, 4, **relu),
                "b": nsn.Residual({"c": nsn.Dense(4, 4)}),
                "output": nsn.Dense(4, 2),
            },
            subnetworks={"half": nsn.Subnetwork(width=0.5), "small": ["output"]},
            grid={"w": nsn.Widths([1, 0.5, 1.0], of=["a.out"]), "d": nsn.Depths(["b"])},
        ),
    }


def pack(header: str, data: bytes) -> bytes:
    """A file of that header."""
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


def main() -> None:
    """Writes all files."""
    for old in CORPUS.iterdir():
        old.unlink()
    torch.manual_seed(1)
    for name, net in networks().items():
        nsn.save(net, CORPUS / name, {"note": name})
    whole = (CORPUS / "chain").read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header: dict[str, Any] = json.loads(whole[8:end])
    data = whole[end:]

    def spoiled(**changes: Any) -> bytes:
        return pack(json.dumps({**header, **changes}), data)

    weight = header["output.weight"]
    older = {**header, "__metadata__": dict(header["__metadata__"])}
    del older["__metadata__"]["nsn_format"]
    description = json.loads(header["__metadata__"]["nsn"])
    more = description["subnetworks"] + [{"name": "none", "blocks": ["c"]}]
    bad = {
        "version_1": pack(json.dumps(older), data),
        "version_3": spoiled(__metadata__={**header["__metadata__"], "nsn_format": "3"}),
        "cut": whole[:-7],
        "cut_to_small": whole[: end + 40],
        "longer": whole + b"rest",
        "only_a_length": struct.pack("<Q", 2**63),
        "huge_length": struct.pack("<Q", 2**40) + whole[8:],
        "overlap": spoiled(**{"output.weight": {**weight, "data_offsets": [8, 40]}}),
        "unknown_dtype": spoiled(**{"output.weight": {**weight, "dtype": "F8"}}),
        "huge_shape": spoiled(**{"output.weight": {**weight, "shape": [2**62, 8]}}),
        "twice": pack(json.dumps(header)[:-1] + ', "output.weight": {}}', data),
        "nested": pack("[" * 2000, b""),
        "not_utf8": struct.pack("<Q", 4) + b'{"\xff"',
        "other_description": spoiled(
            __metadata__={"nsn": json.dumps({**description, "subnetworks": more})}
        ),
    }
    for name, content in bad.items():
        (CORPUS / f"bad_{name}").write_bytes(content)


if __name__ == "__main__":
    main()
