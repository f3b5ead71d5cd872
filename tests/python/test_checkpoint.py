import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nsn
from conftest import paper_network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path: Path, net: nsn.Network, dtype: torch.dtype) -> None:
    net.to(dtype)
    file = tmp_path / "net.safetensors"
    nsn.save(net, file, {"note": "grün"})
    again = nsn.load(file)
    assert again.description == net.description and nsn.load_metadata(file) == {"note": "grün"}
    for (name, a), (other, b) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype and b.requires_grad
    x = torch.rand(3, 12, dtype=dtype)
    assert torch.equal(net.view("sub1")(x), again.view("sub1")(x))


def test_safetensors_reads_ours(net: nsn.Network, path: Path) -> None:
    tensors = load_file(path)
    assert sorted(net.state_dict()) == sorted(tensors)
    assert all(torch.equal(tensors[key], value) for key, value in net.state_dict().items())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["note"] == "mine" and metadata["format"] == "pt"
    assert json.loads(metadata["nsn"])["merge"] == {"rule": "two_smallest_mean"}


def test_ours_reads_safetensors(net: nsn.Network, tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    save_file(state, file, {"nsn": net.description.to_json()})
    x = torch.rand(3, 12)
    assert torch.equal(nsn.load(file).eval()(x), net(x))


def test_function_rules_are_supplied_again(tmp_path: Path) -> None:
    def first(lanes: list[nsn.merge.LaneGradient]) -> torch.Tensor:
        return lanes[0].gradient

    net = paper_network(width=12, dropout=False, merge=nsn.merge.function(first))
    file = tmp_path / "net.safetensors"
    nsn.save(net, file)
    x = torch.rand(3, 12)
    bare = nsn.load(file)
    assert torch.equal(bare(x), net(x)) and torch.equal(bare.view("sub2")(x), net(x, "sub2"))
    with pytest.raises(ValueError, match="rule 'first' is a function that the file .* cannot hold"):
        bare(x, nsn.ALL)["base"].sum().backward()
    full = nsn.load(file, rules={"first": first})
    full(x, nsn.ALL)["base"].sum().backward()
    net(x, nsn.ALL)["base"].sum().backward()
    assert torch.equal(full.output.weight.grad, net.output.weight.grad)


def test_missing_and_unwritable(net: nsn.Network, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot open .*nothing.* No such file"):
        nsn.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="cannot read"):
        nsn.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="cannot write"):
        nsn.save(net, tmp_path / "no" / "folder")
    with pytest.raises(ValueError, match="the metadata key 'nsn' is the library's own"):
        nsn.save(net, tmp_path / "a", {"nsn": "x"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        nsn.save(net, tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]  # nothing half-written stays


def test_a_failed_save_leaves_the_old_file(net: nsn.Network, path: Path) -> None:
    before = path.read_bytes()
    net.output.weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(
        ValueError, match=r"'output.weight' must have shape \(10, 12\), but has \(1\)"
    ):
        nsn.save(net, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_truncated_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1}
    for length in sorted(lengths | set(range(0, len(whole), 97))):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated"):
            nsn.load(path)


def change(path: Path, edit: Callable[[dict[str, Any]], None], data: bytes = b"") -> None:
    """Rewrites the header, and appends bytes."""
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:end])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[end:] + data)


W = "output.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "foreign": (lambda h: h.pop("__metadata__"), "is a safetensors file, but not one of nsn"),
    "no description": (lambda h: h["__metadata__"].pop("nsn"), "not one of nsn"),
    "bad description": (lambda h: h["__metadata__"].update(nsn="{"), "is no JSON"),
    "metadata": (lambda h: h["__metadata__"].update(n=3), "the metadata 'n' must be a string"),
    "metadata kind": (lambda h: h.update(__metadata__=[]), "__metadata__ must be an object"),
    "dtype": (lambda h: h[W].update(dtype="F8"), 'has the unknown dtype "F8"'),
    "integers": (
        lambda h: h[W].update(dtype="I32"),
        "has the dtype int32, but parameters are floating",
    ),
    "shape": (
        lambda h: h[W].update(shape=[12, 10]),
        r"has shape \(12, 10\), but the description says",
    ),
    "shape kind": (
        lambda h: h[W].update(shape=[-1, 10]),
        "has a shape that is no array of naturals",
    ),
    "huge shape": (lambda h: h[W].update(shape=[2**40, 2**40]), "which no memory holds"),
    "bytes": (lambda h: h[W].update(shape=[10, 11]), "takes 440 bytes, but its data_offsets are"),
    "offsets kind": (lambda h: h[W].update(data_offsets=[1]), "no pair of naturals"),
    "fields": (
        lambda h: h[W].update(extra=1),
        "must have the fields dtype, shape and data_offsets",
    ),
    "overlap": (
        lambda h: h[W].update(data_offsets=[8, 488]),
        "starts at byte .* before it ends at",
    ),
    "missing": (lambda h: h.update(other=h.pop(W)), f"lacks the tensor '{W}'"),
    "empty extra": (
        lambda h: h.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        "has the tensor 'extra', which its description does not know",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_headers(path: Path, kind: str) -> None:
    edit, message = DAMAGES[kind]
    change(path, edit)
    with pytest.raises(ValueError, match=message):
        nsn.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 64, "announces a header of 18446744073709551615 bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is no JSON object"),
        (struct.pack("<Q", 4) + b'{"\xff"', "its header is no JSON: "),
        (struct.pack("<Q", 50_000) + b"[" * 50_000, "its header is no JSON object"),
        (
            struct.pack("<Q", 37) + b'{"__metadata__":{},"__metadata__":{}}',
            "its header has the field '__metadata__' twice in one object",
        ),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        nsn.load(tmp_path / "x")


def test_bytes_after_the_last_tensor(path: Path) -> None:
    change(path, lambda header: None, b"rest")
    with pytest.raises(
        ValueError, match="the header describes .* bytes of tensors, but the file has"
    ):
        nsn.load(path)
