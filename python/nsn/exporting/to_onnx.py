"""ONNX: a graph for each sub-network, all of which point into one file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsn.exporting.folder import Program
from nsn.exporting.job import BATCH, Job, Shared, tracing, versions

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

WEIGHTS = "weights.bin"
#: Where a tensor may start in the file.
_ALIGNMENT = 64
#: What a graph may hold by itself: shapes, bounds of slices, numbers of formulas.
_OWN_BYTES = 256
_OPSET = 20


def steps(job_size: int) -> int:
    """How many steps ``write`` takes for a number of sub-networks."""
    return job_size + 1


def write(job: Job, folder: Path) -> tuple[list[Program], dict[str, str]]:
    """Writes ``weights.bin`` and ``<sub-network>.onnx`` for each; what runs, and what made it."""
    import onnx

    modules = {name: Shared(job.network, name) for name in job.subnetworks}
    job.step(WEIGHTS)
    places = _write_weights(job, modules, folder / WEIGHTS)
    programs = []
    for name, module in modules.items():
        job.step(f"{name}: ONNX")
        _write_graph(job, module, places, folder / f"{name}.onnx")
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)
        programs.append(Program(name, "", f"{name}.onnx", "", *job.signature(name)))
    return programs, versions(*PACKAGES)


def _write_weights(job: Job, modules: Mapping[str, Shared], path: Path) -> dict[str, Any]:
    """Writes the tensors that are used, each once; by key its name and place in the file."""
    used = {key: tensor for module in modules.values() for key, tensor in module.named_buffers()}
    names = [name for name, _ in job.network.description.parameters]
    places: dict[str, Any] = {}
    with path.open("wb") as file:
        for key in sorted(used, key=lambda key: int(key[1:])):
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            content = used[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            places[key] = (names[int(key[1:])], file.tell(), len(content))
            file.write(content)
    return places


def _write_graph(job: Job, module: Shared, places: Mapping[str, Any], path: Path) -> None:
    import onnx_ir
    from onnxscript import optimizer

    with tracing():
        exported = torch.onnx.export(
            module,
            (job.example(2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
            input_names=["input"],
            output_names=["output"],
            opset_version=_OPSET,
            optimize=False,
            verbose=False,
        )
        assert exported is not None
        model: Any = exported.model
        # Constants are folded, but not what is made of weights, which would be stored once more.
        optimizer.inline(model)
        optimizer.fold_constants(model, should_fold=lambda node: _folds(node, places))
        optimizer.remove_unused_nodes(model)
    initializers = model.graph.initializers
    for key, value in list(initializers.items()):
        tensor = value.const_value
        if key not in places:
            if tensor.nbytes > _OWN_BYTES:
                raise RuntimeError(
                    f"nsn.export: the ONNX graph of '{path.stem}' has a tensor '{key}' of "
                    f"{tensor.nbytes} bytes of its own, beside the shared ones. Report this."
                )
            continue
        name, offset, length = places[key]
        value.name = name
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS, offset, length, tensor.dtype, shape=tensor.shape, name=name
        )
    _strip(model)
    model.producer_name = "nsn"
    onnx_ir.save(model, path)


def _strip(model: Any) -> None:
    """Removes what the exporter notes about where each node came from, with paths of its code."""
    for part in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):
        part.metadata_props.clear()
        part.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def _folds(node: Any, places: Mapping[str, Any]) -> bool | None:
    return False if any(each is not None and each.name in places for each in node.inputs) else None


class Runner:
    """Runs one program of an export, with ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, program: Program) -> None:
        import onnxruntime

        self._program = program
        self._session = onnxruntime.InferenceSession(
            folder / program.file, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: Tensor) -> Tensor:
        result = self._session.run(None, {self._program.input["name"]: x.numpy()})
        return torch.from_numpy(result[0])
