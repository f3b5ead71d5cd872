"""``nsn.verifying``: agreement of all ways, and that damage is found."""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

import nsn
from nsn.exporting import FORMATS
from nsn.verifying import (
    TOLERANCES,
    WEIGHT_TOLERANCES,
    Row,
    compare,
    random_inputs,
    table,
    verify,
)
from shipping import KINDS, inputs, max_batch_of, network

WAYS = ["joint pass", "packed view", "extracted copy", "saved and reloaded", "loaded in part"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with cnn.safetensors, and its exports; not to be changed."""
    folder = tmp_path_factory.mktemp("shipped")
    nsn.save(network("cnn"), folder / "cnn.safetensors")
    for format in FORMATS:
        nsn.export(
            network("cnn"), folder / format, format, ["half"], max_batch=max_batch_of(format)
        )
    yield folder
    shutil.rmtree(folder)


def rows_of(checkpoint: Path, *exports: Path) -> list[Row]:
    return list(verify(checkpoint, exports, inputs("cnn", 40)))


def test_all_ways_agree(shipped: Path) -> None:
    rows = rows_of(shipped / "cnn.safetensors", *(shipped / format for format in FORMATS))
    found = [(row.way, row.subnetwork) for row in rows]
    assert found[:15] == [(way, name) for way in WAYS for name in ("base", "half", "shallow")]
    programs = [
        *("executorch: portable", "executorch: xnnpack", "onnx: half.onnx", "pt2: half.pt2"),
        "runtime: network.nsnrt",
    ]
    assert found[15:] == [(program, "half") for program in programs]
    for row in rows:
        assert row.ok and row.argmax == 1.0 and row.tolerance == TOLERANCES[torch.float32], row
        assert row.relative is not None and row.relative < 2e-6


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_other_kinds_agree(kind: str, tmp_path: Path) -> None:
    nsn.save(network(kind), tmp_path / "net.safetensors")
    rows = list(verify(tmp_path / "net.safetensors", [], inputs(kind, 9)))
    assert len(rows) == len(WAYS) * len(network(kind).subnetworks)
    assert all(row.ok for row in rows), rows


def test_numbers_of_any_size_are_int64_in_the_runtime(tmp_path: Path) -> None:
    net = nsn.Network(
        input=(2, 3),
        dtype=torch.int32,
        blocks={"e": nsn.Embedding(5, 4), "f": nsn.Flatten(), "o": nsn.Dense(24, 3)},
        subnetworks={},
    )
    nsn.save(net, tmp_path / "net.safetensors")
    export = nsn.export(net.eval(), tmp_path / "runtime", "runtime")
    assert [program.input["dtype"] for program in export.programs] == ["int64"]
    x = torch.randint(5, (9, 2, 3), dtype=torch.int32)
    rows = list(verify(tmp_path / "net.safetensors", [tmp_path / "runtime"], x))
    assert all(row.ok for row in rows), rows


def test_narrow_weights_have_an_accuracy(shipped: Path, tmp_path: Path) -> None:
    """They agree to their own tolerance, and what they reach stands beside the view."""
    nsn.export(network("cnn"), tmp_path / "int8", "runtime", ["half"], weights=torch.int8)
    x = inputs("cnn", 40)
    expected = network("cnn").view("half")(x)
    asked = []

    def accuracy(way: Callable[[torch.Tensor], torch.Tensor]) -> float:
        asked.append((way(x) - expected).abs().max().item())
        return 1 - len(asked) / 4

    checkpoint = shipped / "cnn.safetensors"
    *_, row = verify(checkpoint, [shipped / "runtime", tmp_path / "int8"], x, accuracy=accuracy)
    assert row.ok and row.tolerance == WEIGHT_TOLERANCES["int8"]
    assert row.relative is not None and row.relative > 1e-4
    assert (row.accuracy, row.view_accuracy) == (0.75, 0.5)
    narrow, view = asked  # float32 is not asked
    assert narrow > 1e-3 and view == 0
    assert "0.7500 (0.5000)" in shown(table([row]))
    assert "accuracy" not in shown(table([replace(row, accuracy=None)]))


def shown(what: Table) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(what)
    return console.export_text()


#: Where a weight stands in each export, as the export has it.
HOLDERS = {
    "executorch": ["portable.pte", "xnnpack.pte"],
    "onnx": ["weights.bin"],
    "pt2": ["half.pt2"],
    "runtime": ["network.nsnrt"],
}


def damaged(shipped: Path, tmp_path: Path, format: str, file: str) -> Path:
    """A copy of an export in which the largest weights have other signs."""
    copy = tmp_path / format
    shutil.copytree(shipped / format, copy)
    content = (copy / file).read_bytes()
    weight = network("cnn").extract("half").get_parameter("output.linear.weight").detach()
    whole = network("cnn").state_dict()["output.weight"]
    changed = content
    if format == "runtime":  # whose rows lie in panels: all numbers behind the header
        header = int.from_bytes(content[16:24], "little")
        numbers = torch.frombuffer(bytearray(content[header:]), dtype=torch.float32)
        changed = content[:header] + (-numbers).numpy().tobytes()
    for row in (*whole, *weight):
        old = row.numpy().tobytes()
        changed = changed.replace(old, (-row).numpy().tobytes())
    assert changed != content and len(changed) == len(content)
    (copy / file).write_bytes(changed)
    return copy


def rewrite_manifest(folder: Path) -> None:
    """Gives a manifest the sizes and checksums that the files have now."""
    from nsn.exporting.folder import _facts

    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"] = {name: _facts(folder / name) for name in document["files"]}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(("format", "file"), [(f, each) for f in HOLDERS for each in HOLDERS[f]])
def test_changed_weights_fail(shipped: Path, tmp_path: Path, format: str, file: str) -> None:
    folder = damaged(shipped, tmp_path, format, file)
    failed = [row for row in rows_of(shipped / "cnn.safetensors", folder) if not row.ok]
    assert [row.way for row in failed] == [str(folder)] and "SHA-256" in failed[0].problem
    assert failed[0].problem.startswith(f"{file}: ")
    # Also where the checksum was made to fit: then by what comes out.
    rewrite_manifest(folder)
    (row,) = [row for row in rows_of(shipped / "cnn.safetensors", folder) if not row.ok]
    assert row.subnetwork == "half" and row.way.startswith(format)
    assert row.relative is not None and row.relative > 0.1, row
    assert row.argmax is not None and row.argmax < 1.0


@pytest.mark.parametrize(("format", "file"), [(f, each) for f in HOLDERS for each in HOLDERS[f]])
def test_truncated_files_fail(shipped: Path, tmp_path: Path, format: str, file: str) -> None:
    copy = tmp_path / format
    shutil.copytree(shipped / format, copy)
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    failed = [row for row in rows_of(shipped / "cnn.safetensors", copy) if not row.ok]
    assert [row.way for row in failed] == [str(copy)] and "has bytes" in failed[0].problem
    rewrite_manifest(copy)
    (row,) = [row for row in rows_of(shipped / "cnn.safetensors", copy) if not row.ok]
    assert "does not run" in row.problem
    (copy / file).unlink()
    failed = [row for row in rows_of(shipped / "cnn.safetensors", copy) if not row.ok]
    assert f"{file}: cannot read it" in failed[0].problem


def test_an_export_of_another_network_fails(shipped: Path, tmp_path: Path) -> None:
    other = nsn.Network(
        input=(1, 12, 12),
        blocks={"flat": nsn.Flatten(), "output": nsn.Dense(144, 4)},
        subnetworks={"half": ["flat", "output"], "stranger": ["flat", "output"]},
    )
    nsn.export(other, tmp_path / "other", "pt2")
    rows = [row for row in rows_of(shipped / "cnn.safetensors", tmp_path / "other") if not row.ok]
    problems = {row.subnetwork: row.problem for row in rows}
    assert "gives torch.float32 of shape (40, 4), but the view" in problems["half"]
    assert problems["stranger"] == "the checkpoint has no such sub-network"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no manifest of an export"),
        ('{"schema": 1, "format": "onnx"}', "is no manifest of an export"),
        (
            '{"schema": 9, "format": "onnx", "programs": [], "files": {}, "made_with": {}}',
            "has schema 9, but this nsn reads 1",
        ),
    ],
)
def test_a_wrong_manifest(shipped: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        rows_of(shipped / "cnn.safetensors", tmp_path)


def test_compare() -> None:
    expected = torch.tensor([[1.0, 3.0], [4.0, 2.0]])
    row = compare("way", "sub", expected, expected + torch.tensor([[0.0, 0.0], [0.0, 2.5]]))
    assert (row.difference, row.relative, row.argmax) == (2.5, 2.5 / 4, 0.5) and not row.ok
    row = compare("way", "sub", expected, expected * (1 + 5e-6))
    assert row.ok and row.tolerance == 1e-5
    assert not compare("way", "sub", expected, expected * (1 + 3e-5)).ok
    assert compare("way", "sub", torch.zeros(2, 3), torch.zeros(2, 3)).ok
    for bad in (math.nan, math.inf):
        row = compare("way", "sub", expected, torch.full((2, 2), bad))
        assert not row.ok and row.document()["relative"] is None and not row.document()["ok"]
    assert "shape (2,)" in compare("way", "sub", expected, expected[0]).problem


def test_random_inputs_fit_and_repeat() -> None:
    for kind in KINDS:
        net = network(kind)
        x = random_inputs(net, 50)
        assert torch.equal(x, random_inputs(net, 50)) and x.shape == inputs(kind, 50).shape
        assert x.dtype == inputs(kind, 1).dtype
        assert net.view("base")(x).isfinite().all()
    words = random_inputs(network("transformer"), 50)
    assert words.min() == 0 and words.max() == 10
