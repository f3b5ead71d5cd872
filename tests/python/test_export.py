"""Exports: complete folders, one copy of the weights, and the view's numbers."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import nsn
from nsn.exporting import FORMATS, runner, to_onnx
from shipping import KINDS, MAX_BATCH, exported, inputs, network, one_copy, remove_exports


@pytest.fixture(scope="module", autouse=True)
def _removes_its_exports() -> Any:
    yield
    remove_exports()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_program_gives_the_views_numbers_for_any_batch(kind: str, format: str) -> None:
    net, export = network(kind), exported(kind, format)
    variants = {"executorch": {"portable", "xnnpack"}}.get(format, {""})
    ran = {(each.subnetwork, each.variant) for each in export.programs}
    assert ran == {(name, variant) for name in net.subnetworks for variant in variants}
    assert export.check() == []
    for program in export.programs:
        run = runner(export, program)
        for batch in (1, 2, 5, MAX_BATCH, *([] if program.max_batch else [40])):
            x = inputs(kind, batch)
            expected, found = net.view(program.subnetwork)(x), run(x)
            assert found.shape == expected.shape and found.dtype == expected.dtype
            scale = expected.abs().max()
            assert (found - expected).abs().max() < 3e-6 * scale, (program, batch)


def sizes(export: nsn.Export) -> dict[str, int]:
    return {name: facts["bytes"] for name, facts in export.files.items()}


def test_one_copy_of_the_weights() -> None:
    net = network("mlp")
    copy = one_copy(net)
    assert copy == 4 * 1_238_730
    apart = 4 * sum(net.description.parameter_count(name) for name in net.subnetworks)
    assert apart > 1.8 * copy
    onnx_files = sizes(exported("mlp", "onnx"))
    assert onnx_files.pop("weights.bin") < copy + 64 * 6
    assert sum(onnx_files.values()) < 20_000
    programs = sizes(exported("mlp", "executorch"))
    assert copy < programs["portable.pte"] < copy + 20_000
    # XNNPACK wants weights as they are: what a narrow sub-network cuts off is stored beside.
    narrow = 4 * net.description.parameter_count("half")
    assert copy < programs["xnnpack.pte"] < copy + narrow + 20_000
    # Panels are filled up to 16 or 32 features, where a slice ends too.
    runtime = sizes(exported("mlp", "runtime"))["network.nsnrt"]
    assert copy < runtime < 1.03 * copy + 20_000
    for name, size in sizes(exported("mlp", "pt2")).items():
        own = 4 * net.description.parameter_count(name.removesuffix(".pt2"))
        assert own < size < own + 60_000, name


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_graphs_hold_no_weights(kind: str) -> None:
    net, export = network(kind), exported(kind, "onnx")
    weights = (export.folder / "weights.bin").read_bytes()
    assert len(weights) < one_copy(net) + 64 * len(net.state_dict())
    tensors = dict(net.state_dict())
    for name in net.subnetworks:
        model = onnx.load(export.folder / f"{name}.onnx", load_external_data=False)
        shared = {}
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.SerializeToString()) < 400, tensor.name
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == "weights.bin"
            start = int(place["offset"])
            content = weights[start : start + int(place["length"])]
            assert content == tensors[tensor.name].numpy().tobytes()
            shared[tensor.name] = tuple(tensor.dims)
        assert shared and all(tensors[key].shape == shape for key, shape in shared.items())
        cut = {node.input[0] for node in model.graph.node if node.op_type == "Slice"}
        own = {"mlp": "hidden2.weight", "cnn": "stage.conv.weight"}
        assert kind not in own or (own[kind] in cut) == (name == "half")
        shape = model.graph.input[0].type.tensor_type.shape.dim
        assert shape[0].dim_param == "batch" and [each.dim_value for each in shape][1:] == list(
            net.description.input_shape
        )


def test_xnnpack_shares_what_stands_before_a_private_batch_norm() -> None:
    content = (exported("cnn", "executorch").folder / "xnnpack.pte").read_bytes()
    weight = network("cnn").state_dict()["stage.conv.weight"]  # of base and shallow, with own norms
    rows = weight.permute(0, 2, 3, 1).contiguous()  # as XNNPACK has it
    assert content.count(rows[0].numpy().tobytes()) == 1


def test_executorch_with_a_fixed_shape(tmp_path: Path) -> None:
    net = nsn.Network(input=(4,), blocks={"output": nsn.Dense(4, 3)})
    export = nsn.export(net, tmp_path / "out", "executorch", max_batch=1)
    x = torch.randn(1, 4)
    for program in export.programs:
        assert program.max_batch == 1
        assert torch.allclose(runner(export, program)(x), net.view("base")(x), atol=1e-6)
        with pytest.raises(RuntimeError):
            runner(export, program)(torch.randn(2, 4))


def test_the_manifest(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    net = network("cnn")
    state = {name: each.clone() for name, each in net.state_dict().items()}
    export = nsn.export(
        net,
        tmp_path / "new" / "out",
        "pt2",
        ["half"],
        progress=lambda message, done, steps: seen.append((message, done, steps)),
    )
    assert seen == [("half: torch.export", 0, 1)]
    assert {path.name for path in export.folder.iterdir()} == {"half.pt2", "manifest.json"}
    document = json.loads((export.folder / "manifest.json").read_text())
    content = (export.folder / "half.pt2").read_bytes()
    assert document["files"] == {
        "half.pt2": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }
    assert document["format"] == "pt2" and document["made_with"] == {
        "nsn": nsn.__version__,
        "torch": torch.__version__,
    }
    (program,) = document["programs"]
    assert program["input"] == {"name": "input", "shape": ["batch", 1, 12, 12], "dtype": "float32"}
    assert program["output"] == {"name": "output", "shape": ["batch", 10], "dtype": "float32"}
    assert nsn.Export.open(export.folder) == export
    assert all(torch.equal(each, net.state_dict()[name]) for name, each in state.items())
    assert (export.folder.stat().st_mode & 0o777) == 0o755
    for format, file in (("onnx", "base.onnx"), ("executorch", "portable.pte")):
        made = exported("transformer", format)
        first = next(each for each in made.programs if each.file == file)
        assert first.input["dtype"] == "int64" and first.input["shape"] == ["batch", 12]
        assert first.output["shape"] == ["batch", 12, 11] and first.output["dtype"] == "float32"
        assert first.max_batch == (MAX_BATCH if format == "executorch" else None)
        assert {"torch", "nsn", format} <= set(made.made_with)


def test_a_folder_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("cnn")
    before = tmp_path / "before"
    before.mkdir()
    with pytest.raises(FileExistsError, match="before' exists already. Remove it"):
        nsn.export(net, before, "pt2")
    assert list(before.iterdir()) == []

    def broken(*arguments: Any) -> None:
        raise RuntimeError("in the midst")

    monkeypatch.setattr(to_onnx, "_write_graph", broken)
    with pytest.raises(RuntimeError, match="in the midst"):
        nsn.export(net, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == [before]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "tflite"}, ValueError, "pt2, runtime, but is 'tflite'"),
        ({"subnetworks": ["sub9"]}, ValueError, "no sub-network 'sub9'"),
        ({"subnetworks": "half"}, TypeError, r"Write \['half'\]"),
        ({"subnetworks": []}, ValueError, "at least one, but is \\[\\]"),
        ({"subnetworks": ["half", "half"]}, ValueError, "name each one once"),
        (
            {"format": "executorch", "max_batch": 0},
            ValueError,
            "max_batch must be at least 1, but is 0",
        ),
        (
            {"max_batch": 4},
            ValueError,
            "max_batch is of the format executorch, .* but the format is pt2, .* Leave it out",
        ),
        (
            {"weights": torch.int8},
            ValueError,
            "format is pt2, which keeps the network's, and weights is torch.int8. Leave it",
        ),
        (
            {"format": "runtime", "weights": torch.float64},
            ValueError,
            "torch.float32, which keeps them as they are.*but is torch.float64",
        ),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nsn.export(network("cnn"), tmp_path / "out", **{"format": "pt2", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"huge": nsn.Conv1d(1, 1, 1, stride=2**21)},
            r"'huge' of sub-network 'base': step 0 \(convolve\): its window has .*stride.* 2\^20",
        ),
        ({"huge": nsn.MaxPool1d(1, stride=2**21)}, r"'huge' .*\(pool\): its window has .* 2\^20"),
        ({"huge": nsn.Upsample(2**29)}, r"'huge' .*\(upsample\): .*more than 2\^31 elements"),
        (
            {f"a{i}": nsn.Activation("gelu") for i in range(4097)},
            "sub-network 'base': it has more than 4096 steps",
        ),
    ],
)
def test_what_a_runtime_file_cannot_hold_is_named(
    tmp_path: Path, blocks: dict[str, Any], message: str
) -> None:
    shape = (1, 2, 2) if isinstance(blocks.get("huge"), nsn.Upsample) else (1, 5)
    net = nsn.Network(input=shape, blocks=blocks, subnetworks={}).eval()
    with pytest.raises(ValueError, match=f"a runtime file cannot hold .*{message}"):
        nsn.export(net, tmp_path / "out", "runtime")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxscript"), ("executorch", "executorch.exir")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    with pytest.raises(
        ImportError, match=rf"needs the package {name}.*pip install 'nsn\[{format}\]'"
    ):
        nsn.export(network("cnn"), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_pt2_runs_where_there_is_no_nsn(tmp_path: Path) -> None:
    x = inputs("transformer", 3)
    torch.save((x, network("transformer").view("half")(x)), tmp_path / "io")
    program = """
import sys
sys.modules["nsn"] = None
import torch
x, expected = torch.load(sys.argv[2])
print((torch.export.load(sys.argv[1]).module()(x) - expected).abs().max().item())
"""
    file = exported("transformer", "pt2").folder / "half.pt2"
    arguments = [sys.executable, "-c", program, str(file), str(tmp_path / "io")]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-5
