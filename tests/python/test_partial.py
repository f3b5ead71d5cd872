"""Checkpoints loaded in part."""

import copy
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nsn
from conftest import ROOT, paper_network
from random_networks import KINDS, random_description, random_input


def header_of(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Its length with the announcement, and the tensors."""
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:end])
    del header["__metadata__"]
    return end, header


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_random_networks(tmp_path: Path, kind: str, seed: int) -> None:
    document = random_description(seed, kind)
    whole = nsn.Network(nsn.Description.from_json(json.dumps(document))).eval()
    for buffer in whole.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
        else:
            buffer.fill_(1)  # statistics that were made
    path = tmp_path / "net"
    nsn.save(whole, path)
    end, _ = header_of(path)
    x = random_input(document, 3)
    expected = {name: whole.view(name)(x) for name in whole.subnetworks}
    for name in whole.subnetworks:
        part = nsn.load(path, only=name).eval()
        assert name in part.loaded and end <= part.bytes_read <= path.stat().st_size
        for each in part.loaded:
            assert torch.equal(part.view(each)(x), expected[each])
        with torch.no_grad():
            assert torch.equal(part(x, name), expected[name])
        for more in reversed(whole.subnetworks):
            nsn.load_rest(part, path, only=more)
            assert torch.equal(part.view(more)(x), expected[more])
            assert torch.equal(part.view(name)(x), expected[name])
        nsn.load_rest(part, path)
        assert part.loaded == whole.subnetworks
        nsn.save(part, tmp_path / "again")
        assert nsn.load(tmp_path / "again").loaded == whole.subnetworks


def test_order_in_the_file(net: nsn.Network, path: Path) -> None:
    _, header = header_of(path)
    names = sorted(header, key=lambda name: header[name]["data_offsets"])
    assert [name.split(".")[0] for name in names] == [
        *["output"] * 2,
        *["hidden2"] * 2,
        *["hidden1"] * 2,
    ]


def test_bytes_read(net: nsn.Network, path: Path) -> None:
    end, _ = header_of(path)
    bytes_of = {name: 4 * net.description.parameter_count(name) for name in net.subnetworks}
    for name, own in bytes_of.items():
        assert nsn.load(path, only=name).bytes_read == end + own
    assert nsn.load(path).bytes_read == path.stat().st_size == end + bytes_of["base"]
    assert net.bytes_read == 0
    part = nsn.load(path, only="sub2")
    nsn.load_rest(part, path)
    assert part.bytes_read == 2 * end + bytes_of["base"]


def test_what_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    part = nsn.load(path, only="sub2")
    assert part.loaded == ["sub2"] and part.subnetworks == ["base", "sub1", "sub2"]
    x = torch.rand(3, 12)
    message = r"'base' was not loaded; there are 'sub2'\. Add it with nsn.load_rest"
    for refused in (
        lambda: part(x),
        lambda: part(x, nsn.ALL),
        lambda: part(x, ["sub2", "base"]),
        lambda: part.view("base"),
        lambda: part.recalibrate([x]),
        lambda: part.extract("base"),
        lambda: nsn.save(part, tmp_path / "other"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="no sub-network 'sub3'"):
        nsn.load(path, only="sub3")


def test_the_rest_comes_in_place(net: nsn.Network, path: Path) -> None:
    part = nsn.load(path, only="sub2").eval()
    view = part.view("sub2")
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    x = torch.rand(3, 12)
    part(x, "sub2").sum().backward()
    optimizer.step()
    trained = view(x)
    assert not torch.equal(trained, net(x, "sub2"))
    places = [parameter.data_ptr() for parameter in part.parameters()]
    nsn.load_rest(part, path)
    assert places == [parameter.data_ptr() for parameter in part.parameters()]
    assert torch.equal(view(x), trained) and not view.stale()
    assert torch.equal(part.hidden1.weight, net.hidden1.weight)
    assert all(parameter.requires_grad for parameter in part.parameters())
    part(x, nsn.ALL)["base"].sum().backward()
    assert part.hidden1.weight.grad is not None


def test_copies_lack_the_same(net: nsn.Network, path: Path) -> None:
    part = nsn.load(path, only="sub1").eval()
    x = torch.rand(3, 12)
    for again in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert again.loaded == ["sub1", "sub2"] and again.bytes_read == part.bytes_read
        with pytest.raises(ValueError, match="'base' was not loaded"):
            again(x)
        nsn.load_rest(again, path)
        assert torch.equal(again(x), net(x))
    assert part.loaded == ["sub1", "sub2"]


def test_the_rest_fits_only_its_own_network(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    nsn.save(paper_network(width=14), other)
    part = nsn.load(path, only="sub2")
    with pytest.raises(ValueError, match="has another description than the network"):
        nsn.load_rest(part, other)
    with pytest.raises(FileNotFoundError):
        nsn.load_rest(part, tmp_path / "nothing")
    with pytest.raises(ValueError, match="'hidden1.weight' must lie in memory as in the file"):
        nsn.load_rest(part.double(), path)


def test_function_rules(tmp_path: Path) -> None:
    def first(lanes: list[nsn.merge.LaneGradient]) -> Tensor:
        return lanes[0].gradient

    net = paper_network(width=12, dropout=False, merge=nsn.merge.function(first))
    nsn.save(net, tmp_path / "net")
    part = nsn.load(tmp_path / "net", {"first": first}, only="sub2")
    nsn.load_rest(part, tmp_path / "net")
    x = torch.rand(3, 12)
    for each in (net, part):
        each(x, nsn.ALL)["base"].sum().backward()
    assert torch.equal(part.output.weight.grad, net.output.weight.grad)


def test_cut_files(net: nsn.Network, path: Path) -> None:
    whole, (end, _) = path.read_bytes(), header_of(path)
    x = torch.rand(3, 12)
    for name in ("sub2", "sub1"):
        path.write_bytes(whole[: end + 4 * net.description.parameter_count(name)])
        part = nsn.load(path, only=name)
        assert torch.equal(part.view(name)(x), net.view(name)(x))
    with pytest.raises(ValueError, match=r"truncated\. Whole in it are 'sub1', 'sub2': load one"):
        nsn.load(path)
    with pytest.raises(ValueError, match="sub-network 'base' needs .*: the file is truncated"):
        nsn.load_rest(part, path)


def test_metadata_alone(path: Path) -> None:
    end, _ = header_of(path)
    path.write_bytes(path.read_bytes()[:end])
    assert nsn.load_metadata(path) == {"note": "mine"}


def test_older_versions(tmp_path: Path) -> None:
    path = ROOT / "tests" / "data" / "version1.safetensors"
    metadata = nsn.load_metadata(path)
    numbers = {
        key: torch.tensor([float(each) for each in value.split()])
        for key, value in metadata.items()
    }
    net, x = nsn.load(path).eval(), numbers["x"].view(2, 6)
    for name in net.subnetworks:
        expected = numbers[name].view(2, 3)
        torch.testing.assert_close(net.view(name)(x), expected)
        torch.testing.assert_close(nsn.load(path, only=name).view(name)(x), expected)
    nsn.save(net, tmp_path / "new", metadata)
    again = nsn.load(tmp_path / "new").eval()
    assert all(torch.equal(again.view(name)(x), net.view(name)(x)) for name in net.subnetworks)


HOSTILE = """
import sys, nsn

def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])

nsn.load_metadata(sys.argv[1])  # what is loaded once
for path in sys.argv[2:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = peak()
    try:
        print(nsn.load(path, only="small").loaded, end=" ")
    except ValueError as error:
        print(type(error).__name__, end=" ")
    print(peak() - before)
"""


def test_headers_take_memory_in_proportion(path: Path, tmp_path: Path) -> None:
    def packed(header: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    entries = ",".join(
        f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(60_000)
    )
    blocks = [
        {"name": "a", "type": "Dense", "in_features": 4, "out_features": 2**30, "bias": False},
        {"name": "b", "type": "Dense", "in_features": 4, "out_features": 2, "bias": False},
    ]
    keeps = [{"name": "base", "blocks": ["a"]}, {"name": "small", "blocks": ["b"]}]
    document = {"nsn": 1, "input": {"shape": [4]}, "blocks": blocks, "subnetworks": keeps}
    described = {
        "__metadata__": {"nsn": json.dumps(document)},
        "b.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "a.weight": {"dtype": "F32", "shape": [2**30, 4], "data_offsets": [32, 32 + 2**34]},
    }
    files = {
        "announces": struct.pack("<Q", 90_000_000) + b" " * 1000,
        "arrays": packed(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
        "shape": packed(b'{"a":{"shape":[' + b"1," * 1_000_000 + b"1]}}"),
        "entries": packed(f"{{{entries}}}".encode(), b"x" * 60_000),
        "cut": packed(json.dumps(described).encode(), b"\0" * 32),
    }
    arguments = [sys.executable, "-c", HOSTILE, str(path)]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        arguments.append(str(tmp_path / name))
    run = subprocess.run(arguments, check=True, capture_output=True, text=True)
    for (name, content), line in zip(files.items(), run.stdout.splitlines(), strict=True):
        result, grown = line.rsplit(" ", 1)
        assert result == ("['small']" if name == "cut" else "ValueError"), name
        # The header's text, and what it becomes; for "cut" 2^34 bytes are only reserved.
        assert int(grown) < 4 * len(content) + 4e6, name


RESIDENT = """
import os, sys, torch, nsn

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

path, warm = sys.argv[1:]
x = torch.zeros(1, 7200)
nsn.load(warm, only="small").view("small")(torch.zeros(1, 12))  # what is loaded once
before = resident()
net = nsn.load(path, only="small")
net.view("small")(x)
part = resident() - before
nsn.load_rest(net, path)
print(part, resident() - before)
"""


def test_resident_memory(tmp_path: Path) -> None:
    for name, width in (("big", 7200), ("warm", 12)):
        blocks = {"hidden": nsn.Dense(width, width), "output": nsn.Dense(width, 10)}
        net = nsn.Network(input=(width,), blocks=blocks, subnetworks={"small": ["output"]})
        nsn.save(net, tmp_path / name)
        own = 4 * net.description.parameter_count("small")
        if name == "big":
            big, small = 4 * net.description.parameter_count(), own
    assert big > 200e6
    arguments = [sys.executable, "-c", RESIDENT, str(tmp_path / "big"), str(tmp_path / "warm")]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    part, whole = map(int, printed.split())
    assert part < small + 2e6, "sub-network 'small' alone"
    assert big < whole < big + 4e6
