"""Every option of every block, away from its default, survives whatever a network goes through."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import nsn
from cases import SMALL, table
from nsn.blocks import BlockOptions

CASES = table()


def options_of(block: BlockOptions) -> dict[str, Any]:
    """Its fields, of a block of blocks those of what is inside too."""
    return {each.name: getattr(block, each.name) for each in dataclasses.fields(block)}  # type: ignore[arg-type]


def all_blocks(blocks: Mapping[str, BlockOptions]) -> Iterator[BlockOptions]:
    for block in blocks.values():
        yield block
        yield from all_blocks(getattr(block, "blocks", {}))


def test_the_cases_have_every_option_of_every_block() -> None:
    """Somewhere away from its default."""
    found = [block for case in CASES.values() for block in all_blocks(case.blocks)]
    missing = []
    for kind in BlockOptions.__subclasses__():
        given = [options_of(block) for block in found if type(block) is kind]
        assert given, kind
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if all(options[field.name] == field.default for options in given):
                missing.append(f"{kind.__name__}.{field.name}")
    assert not missing


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def check_written(blocks: Mapping[str, BlockOptions], documents: list[dict[str, Any]]) -> None:
    """Whether a document says all that the blocks do."""
    assert [each["name"] for each in documents] == list(blocks)
    for block, document in zip(blocks.values(), documents, strict=True):
        options = options_of(block)
        inner = options.pop("blocks", {})
        check_written(inner, document.get("blocks", []))
        kept = options.pop("keeps_dropout", [])
        inside = document.get("blocks", [])
        assert [each["name"] for each in inside if not each.get("takes_dropout", True)] == list(
            kept
        )
        for name, value in options.items():
            if value is not None and value != ():
                assert document[name] == as_json(value), name


def ways(net: nsn.Network, folder: Path) -> dict[str, nsn.Network]:
    """The network after all that it may go through."""
    nsn.save(net, folder / "net")
    return {
        "json": nsn.Network(nsn.Description.from_json(net.description.to_json())),
        "file": nsn.load(folder / "net"),
        "part": nsn.load(folder / "net", only="base"),
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "double": copy.deepcopy(net).double(),
    }


@pytest.mark.parametrize("name", CASES)
def test_every_option_survives(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = nsn.Network(case.description())
    x = case.batch_of_inputs()
    net(x, nsn.ALL)  # makes statistics
    net.eval()
    documents = json.loads(net.description.to_json())["blocks"]
    check_written(case.blocks, documents)
    expected = net.view("base")(x)
    for way, other in ways(net, tmp_path).items():
        assert json.loads(other.description.to_json())["blocks"] == documents, way
        if way == "double":
            floating = [each for each in net.state_dict().values() if each.is_floating_point()]
            assert (other.description == net.description) == (not floating)
        else:
            assert other.description == net.description, way
        if way not in ("json", "double"):
            assert torch.equal(other.view("base")(x), expected), way


def without_private_parts(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By itself, all that a network has is its own, and no longer than its input."""
    result = []
    for document in documents:
        own: dict[str, Any] = {"per_subnetwork": []} if "per_subnetwork" in document else {}
        if "blocks" in document:
            own["blocks"] = without_private_parts(document["blocks"])
        if document["type"] == "PositionEmbedding":
            own["length"] = min(document["length"], SMALL.length)
        if "heads" in document:  # which says how large its heads are
            own["head_dim"] = document.get("head_dim", document["features"] // document["heads"])
        result.append({**document, **own})
    return result


@pytest.mark.parametrize("name", CASES)
def test_every_option_survives_alone(name: str) -> None:
    description = CASES[name].description()
    documents = json.loads(description.to_json())["blocks"]
    (base,) = [
        each for each in json.loads(description.to_json())["subnetworks"] if each["name"] == "base"
    ]
    kept = [each for each in documents if each["name"] in base["blocks"]]
    alone = json.loads(description.alone("base").to_json())["blocks"]
    assert alone == without_private_parts(kept)


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
