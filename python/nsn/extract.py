"""A sub-network as a plain ``torch.nn`` module, which knows nothing of nsn.

A sub-network's program, which the C++ library makes, is all that this file knows of it:
:func:`lower` turns its steps into modules, without weights, and says which part of which of the
network's tensors each of their parameters is. :func:`extract` fills them with copies;
:mod:`nsn.exporting` runs them on the network's own tensors.

What ``torch.nn`` has is used as it is. The few formulas that it has not are modules in this file,
which ``torch.fx`` turns into graphs of torch's operations, so that nothing of nsn is left in them.
"""

from __future__ import annotations

import json
import keyword
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nsn.description import Description
from nsn.parameters import ParameterTable

#: A part of a program's JSON.
Document = dict[str, Any]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
#: Name to what is applied to the gate; "glu" itself is a module of torch.
_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}


@dataclass(frozen=True)
class Use:
    """What a parameter or buffer of a lowered module is, in the network's table of tensors.

    Attributes:
        path: its name in the module.
        place: the tensor's place in the table.
        is_buffer: whether it is a buffer.
        view: the shape in which the tensor is seen, in which the part is a leading one.
        kept: the extents of that leading part.
        shape: the shape in which the module has it.
    """

    path: str
    place: int
    is_buffer: bool
    view: tuple[int, ...]
    kept: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def part(self) -> tuple[Any, ...]:
        """Equal for two uses of one part of one tensor."""
        return self.place, self.view, self.kept

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.view == self.kept

    def of(self, tensor: Tensor) -> Tensor:
        """The part of the table's tensor; shares its memory where that can be."""
        if self.is_whole:
            return tensor if tensor.shape == self.shape else tensor.reshape(self.shape)
        part = tensor.view(self.view)
        for dimension, kept in enumerate(self.kept):
            if kept != self.view[dimension]:
                part = part.narrow(dimension, 0, kept)
        return part.reshape(self.shape)


def extract(network: ParameterTable, name: str) -> nn.Sequential:
    """A sub-network as a plain module with weights of its own, contiguous; the same outputs.

    Its children are named as the blocks. It is made of ``torch.nn`` modules and, where torch has
    none, of ``torch.fx.GraphModule``s over torch's operations, so it can be saved with
    ``torch.save`` and loaded (``weights_only=False``) where nsn is not installed. Dropout is in it;
    mode and ``requires_grad`` are the network's. An output tied to an embedding stays tied.

    Args:
        network: what to copy from; is not changed.
        name: the sub-network.

    Raises:
        ValueError: where there is no such sub-network, or it was not loaded.
    """
    module, uses = lower(network.description, name)
    network._check_loaded([name])
    table = network._parameters_now()
    parts: dict[tuple[Any, ...], Tensor] = {}
    for use in uses:
        source = table[use.place]
        if use.part not in parts:
            copy = use.of(source.detach()).clone(memory_format=torch.contiguous_format)
            parts[use.part] = copy if use.is_buffer else nn.Parameter(copy, source.requires_grad)
        owner, _, leaf = use.path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, parts[use.part])
    return module.train(network.training)


def lower(description: Description, name: str) -> tuple[nn.Sequential, list[Use]]:
    """A sub-network as a module on the meta device, and what each of its tensors is.

    Raises:
        ValueError: where there is no such sub-network.
    """
    program = json.loads(description.program(name))
    shapes = [program["input"]["shape"], *(step["shape"] for step in program["steps"])]
    nodes, owners = [], []
    with torch.device("meta"):
        for document in program["steps"]:
            step = _Step(document, shapes, getattr(torch, program["input"]["dtype"]))
            modules = _MODULES[document["primitive"]](step)
            path = (*document["block"].split("."), document["part"])
            nodes.append(_Node(path, modules, tuple(document["inputs"]), document["value"]))
            owners += [(each, modules[document["part"]]) for each in document["operands"]]
        module = _assemble(nodes, (0,), program["output"])
    assert isinstance(module, nn.Sequential)
    names = {id(each): name for name, each in module.named_modules()}
    return module, [_use(operand, names[id(owner)]) for operand, owner in owners]


def _use(operand: Document, owner: str) -> Use:
    leaf = "weight" if operand["role"] == "scale" else operand["role"]
    return Use(
        f"{owner}.{leaf}",
        operand["place"],
        operand["is_buffer"],
        tuple(operand["view"]),
        tuple(operand["kept"]),
        tuple(operand["shape"]),
    )


# ---- from steps to a tree of modules -------------------------------------------------------------

#: What a step is made of: modules in a row, by name, its part's with its tensors; none where it is
#: an operation of the graph that it stands in.
_Modules = OrderedDict[str, nn.Module]


@dataclass(frozen=True)
class _Node:
    """A step, or several that make one child of a module.

    Attributes:
        path: the names of the block, from outside in, and the part.
        modules: in a row.
        inputs: the values that it reads.
        output: the value that it makes.
    """

    path: tuple[str, ...]
    modules: _Modules
    inputs: tuple[int, ...]
    output: int


def _assemble(
    nodes: list[_Node], inputs: tuple[int, ...], output: int, depth: int = 0
) -> nn.Module:
    """A module of the nodes, whose children are called what their paths have at ``depth``."""
    children = [
        _child(name, list(group), nodes, output, depth)
        for name, group in groupby(nodes, key=lambda node: node.path[depth])
    ]
    row: _Modules = OrderedDict()
    for child in children:
        row.update(child.modules)
    reads = [inputs, *((child.output,) for child in children)]
    if reads[-1] == (output,) and all(
        child.modules and child.inputs == before
        for child, before in zip(children, reads, strict=False)
    ):
        return nn.Sequential(row)
    graph = fx.Graph()
    values = {
        value: graph.placeholder("x" if value == inputs[0] else f"x{value}") for value in inputs
    }
    for child in children:
        given = tuple(values[value] for value in child.inputs)
        if not child.modules:
            values[child.output] = graph.call_function(operator.add, given)
            continue
        for name in child.modules:
            given = (graph.call_module(name, given),)
        values[child.output] = given[0]
    graph.output(values[output])
    return fx.GraphModule(nn.ModuleDict(row), graph, "Graph")


def _child(name: str, group: list[_Node], among: list[_Node], output: int, depth: int) -> _Node:
    """Those nodes whose paths have ``name`` at ``depth``, as one child of their module."""
    if len(group) == 1 and len(group[0].path) == depth + 1:
        return group[0]
    made = {node.output for node in group}
    inputs = tuple(dict.fromkeys(v for node in group for v in node.inputs if v not in made))
    read = {v for node in among if node not in group for v in node.inputs} | {output}
    last = next(node.output for node in reversed(group) if node.output in read)
    is_block = len(group) == 1 and len(group[0].path) == depth + 2  # one step is all of it
    if is_block and len(group[0].modules) == 1:
        (module,) = group[0].modules.values()
    else:
        module = _assemble(group, inputs, last, depth + 1)
    return _Node((name,), OrderedDict({_free_name(name): module}), inputs, last)


def _free_name(name: str) -> str:
    """A block's name as that of a module: some are Python's words, or attributes of a container."""
    containers = (fx.GraphModule, nn.Sequential, nn.ModuleDict)
    taken = keyword.iskeyword(name) or any(hasattr(each, name) for each in containers)
    return f"{name}_" if taken else name


# ---- from a step to its module -------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A step of a program as its JSON has it; its attributes are attributes.

    Attributes:
        document: the step.
        shapes: of all values, of one sample.
        dtype: of the program's input.
    """

    document: Document
    shapes: list[list[int]]
    dtype: torch.dtype

    def __getattr__(self, attribute: str) -> Any:
        value = self.document["attributes"][attribute]
        if isinstance(value, list):  # one number, or one for each dimension
            return value[0] if len(value) == 1 else tuple(value)
        return value

    @property
    def input(self) -> list[int]:
        """The shape of one sample of the first input."""
        return self.shapes[self.document["inputs"][0]]

    @property
    def output(self) -> list[int]:
        """The shape of one sample of the output."""
        return self.shapes[self.document["value"]]

    def tensor(self, role: str) -> list[int]:
        """The shape of a tensor that it reads; empty where it reads none of that role."""
        shapes = {each["role"]: each["shape"] for each in self.document["operands"]}
        return list(shapes.get(role, []))

    def modules(self, module: nn.Module) -> _Modules:
        """One module, as the step's part."""
        return OrderedDict({self.document["part"]: module})


def _product(step: _Step) -> _Modules:
    outputs, inputs = step.tensor("weight")
    return step.modules(nn.Linear(inputs, outputs, bool(step.tensor("bias"))))


def _convolution(step: _Step) -> _Modules:
    outputs, per_group, *extents = step.tensor("weight")
    kernel: Any = extents[0] if len(extents) == 1 else tuple(extents)
    module = {1: nn.Conv1d, 2: nn.Conv2d}[len(extents)](
        per_group * step.groups,
        outputs,
        kernel,
        step.stride,
        step.padding,
        step.dilation,
        step.groups,
        bool(step.tensor("bias")),
    )
    return step.modules(module)


def _transposed_convolution(step: _Step) -> _Modules:
    inputs, outputs, *kernel = step.tensor("weight")
    module = nn.ConvTranspose2d(
        inputs,
        outputs,
        (kernel[0], kernel[1]),
        step.stride,
        step.padding,
        step.output_padding,
        bias=bool(step.tensor("bias")),
        dilation=step.dilation,
    )
    return step.modules(module)


def _pool(step: _Step, line: type[nn.Module], plane: type[nn.Module]) -> _Modules:
    module = line if len(step.input) == 2 else plane
    return step.modules(module(step.kernel, step.stride, step.padding))


def _global_average(step: _Step) -> _Modules:
    parts: _Modules = OrderedDict()
    if len(step.input) > 3:
        parts["positions"] = nn.Flatten(2)
    is_plane = len(step.input) == 3
    parts["pool"] = nn.AdaptiveAvgPool2d(1) if is_plane else nn.AdaptiveAvgPool1d(1)
    parts["flatten"] = nn.Flatten(1)
    return parts


def _upsample(step: _Step) -> _Modules:
    align = False if step.mode == "bilinear" else None
    return step.modules(nn.Upsample(scale_factor=step.factor, mode=step.mode, align_corners=align))


def _layer_norm(step: _Step) -> _Modules:
    affine, bias = bool(step.tensor("weight")), bool(step.tensor("bias"))
    return step.modules(nn.LayerNorm(step.input[-1], step.eps, affine, bias))


def _rms_norm(step: _Step) -> _Modules:
    return step.modules(nn.RMSNorm(step.input[-1], step.eps, bool(step.tensor("weight"))))


def _group_norm(step: _Step) -> _Modules:
    affine = bool(step.tensor("weight"))
    return step.modules(nn.GroupNorm(step.groups, step.input[0], step.eps, affine))


def _batch_norm(step: _Step) -> _Modules:
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    rank = len(step.input)
    if rank not in kinds:
        raise ValueError(
            f"nsn: torch.nn has a batch norm for samples of 1 to 4 dimensions, but one here has "
            f"{rank}. Flatten some of them."
        )
    affine = bool(step.tensor("weight"))
    return step.modules(kinds[rank](step.input[0], step.eps, step.momentum, affine))


def _scale_and_shift(step: _Step) -> _Modules:
    trailing = len(step.input) - step.dimension if step.dimension > 0 else -1 - step.dimension
    scale, shift = step.tensor("scale"), step.tensor("bias")
    return step.modules(_traced(_Scale((scale or shift)[0], trailing, bool(scale), bool(shift))))


def _activation(step: _Step) -> _Modules:
    return step.modules(_ACTIVATIONS[step.function]())


def _gate(step: _Step) -> _Modules:
    if step.function == "glu":
        return step.modules(nn.GLU(step.dimension))
    axis = step.dimension - 1 if step.dimension > 0 else step.dimension
    width = step.output[axis]
    return step.modules(_traced(_Gated(_GATES[step.function], step.dimension, width)))


def _add(step: _Step) -> _Modules:
    shape = step.tensor("weight")
    return step.modules(_traced(_Offset(shape))) if shape else OrderedDict()


def _reshape(step: _Step) -> _Modules:
    parts: _Modules = step.modules(nn.Flatten(1))
    if len(step.output) > 1:
        parts["unflatten"] = nn.Unflatten(1, tuple(step.output))
    return parts


def _embedding(step: _Step) -> _Modules:
    parts: _Modules = OrderedDict()
    if step.dtype not in (torch.int64, torch.int32):  # what torch.nn.Embedding takes
        parts["integers"] = _traced(_Long())
    count, features = step.tensor("weight")
    return OrderedDict(parts, **step.modules(nn.Embedding(count, features)))


def _attention(step: _Step) -> _Modules:
    head_dim = step.output[-1] // step.heads
    return step.modules(_traced(_Attention(step.heads, head_dim, step.causal)))


def _refuse(step: _Step) -> _Modules:
    raise ValueError(
        f"nsn: block '{step.document['block']}' ({step.type}) is not one of nsn's own, so it is "
        f"unknown what it is in torch.nn. Use a view, or replace the block."
    )


#: Each primitive; ``tests/python/test_program.py`` compares with the library's list.
_MODULES: dict[str, Callable[[_Step], _Modules]] = {
    "product": _product,
    "convolution": _convolution,
    "transposed_convolution": _transposed_convolution,
    "pad": lambda step: step.modules(nn.ConstantPad1d((step.before, 0), 0.0)),
    "max_pool": lambda step: _pool(step, nn.MaxPool1d, nn.MaxPool2d),
    "average_pool": lambda step: _pool(step, nn.AvgPool1d, nn.AvgPool2d),
    "global_average": _global_average,
    "upsample": _upsample,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "scale_and_shift": _scale_and_shift,
    "activation": _activation,
    "gate": _gate,
    "dropout": lambda step: step.modules(nn.Dropout(step.probability)),
    "add": _add,
    "reshape": _reshape,
    "embedding": _embedding,
    "attention": _attention,
    "block": _refuse,
}


# ---- what torch.nn has not -----------------------------------------------------------------------


def _traced(module: nn.Module) -> fx.GraphModule:
    """A module of this file as a graph of torch's operations on its children and parameters."""

    # A class of this function, since a graph keeps another tracer's and would then need nsn.
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    graph = Tracer().trace(module)
    for node in graph.nodes:
        node.type = None  # annotations, here texts, which cannot be pickled
    return fx.GraphModule(module, graph, type(module).__name__.lstrip("_"))


class _Scale(nn.Module):
    """x * weight + bias, over the last dimension or over one with ``trailing`` behind it."""

    def __init__(self, features: int, trailing: int, has_scale: bool, has_shift: bool) -> None:
        super().__init__()
        self._trailing = trailing
        self.weight = nn.Parameter(torch.empty(features)) if has_scale else None
        self.bias = nn.Parameter(torch.empty(features)) if has_shift else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * self._trailing
        if self.weight is not None:
            x = x * self.weight.reshape(shape)
        return x if self.bias is None else x + self.bias.reshape(shape)


class _Gated(nn.Module):
    """value * activation(gate), which lie one behind the other in a dimension."""

    def __init__(self, activation: Callable[[Tensor], Tensor], dimension: int, width: int) -> None:
        super().__init__()
        self._activation = activation
        self._dimension = dimension
        self._width = width

    def forward(self, x: Tensor) -> Tensor:
        # Not `chunk`, at which ExecuTorch fixes the batch's size.
        value = x.narrow(self._dimension, 0, self._width)
        gate = x.narrow(self._dimension, self._width, self._width)
        return value * self._activation(gate)


class _Long(nn.Module):
    """x as int64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.long()


class _Offset(nn.Module):
    """x + weight, of a sample's shape."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class _Attention(nn.Module):
    """Attention over Q, K and V in one tensor, ``(B, T, 3 * heads * head_dim)``."""

    def __init__(self, heads: int, head_dim: int, causal: bool) -> None:
        super().__init__()
        self._heads, self._head_dim, self._causal = heads, head_dim, causal

    def forward(self, x: Tensor) -> Tensor:
        # To three of (B, heads, T, head_dim).
        parts = x.unflatten(-1, (3, self._heads, self._head_dim)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self._causal)
        return y.transpose(1, 2).flatten(2)
