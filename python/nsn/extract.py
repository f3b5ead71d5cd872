"""A sub-network as a plain ``torch.nn`` module, which knows nothing of nsn.

There is one way down from a description to torch: :func:`lower` makes the modules, without
weights, and says which part of which of the network's tensors each of their parameters is.
:func:`extract` fills them with copies; :mod:`nsn.exporting` runs them on the network's own tensors.

What ``torch.nn`` has is used as it is. The few formulas that it has not are modules in this file,
which ``torch.fx`` turns into graphs of torch's operations, so that nothing of nsn is left in them.
"""

from __future__ import annotations

import json
import keyword
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nsn.description import Description

if TYPE_CHECKING:
    from nsn.network import Network

#: A block's JSON, with all fields.
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


def extract(network: Network, name: str) -> nn.Sequential:
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
    document = json.loads(description.to_json())["input"]
    signal = _Signal(len(document["shape"]), getattr(torch, document["dtype"]))
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    uses = []
    for block in description.extract(name):
        with torch.device("meta"):
            lowered = _lower(json.loads(block["document"]), signal)
        signal = lowered.output
        child = _free_name(block["name"])
        blocks[child] = lowered.module
        for parameter in block["parameters"]:
            uses.append(
                Use(
                    f"{child}.{lowered.paths[parameter['name']]}",
                    parameter["place"],
                    parameter["is_buffer"],
                    tuple(parameter["view"]),
                    tuple(parameter["kept"]),
                    tuple(parameter["shape"]),
                )
            )
    return nn.Sequential(blocks), uses


# ---- one block -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signal:
    """What a block reads: the number of one sample's dimensions, and the network's input dtype."""

    rank: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Lowered:
    """A block as a module.

    Attributes:
        module: on the meta device.
        paths: the block's name for each of its tensors to its name in ``module``.
        output: what the next block reads.
    """

    module: nn.Module
    paths: Mapping[str, str]
    output: _Signal


def _lower(block: Document, signal: _Signal) -> _Lowered:
    return _LOWER[block["type"]](block, signal)


def _plain(module: nn.Module, signal: _Signal) -> _Lowered:
    """A module whose tensors are called as the block calls them."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    return _Lowered(module, {name: name for name in names}, signal)


def _product(kind: str, product: nn.Module, block: Document, signal: _Signal) -> _Lowered:
    """A product with what stands behind it: scale and bias, activation, dropout."""
    dimension = -1 if kind == "linear" else 1
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    paths = {"weight": f"{kind}.weight", "bias": f"{kind}.bias"}
    if block.get("causal"):
        parts["pad"] = nn.ConstantPad1d(((block["kernel_size"] - 1) * block["dilation"], 0), 0.0)
    parts[kind] = product
    if block.get("scale"):
        trailing = 0 if kind == "linear" else signal.rank - 1
        parts["scale"] = _traced(_Scale(_outputs(block), trailing, block["bias"]))
        paths |= {"scale": "scale.weight", "bias": "scale.bias"}
    if block["activation"] != "linear":
        parts["activation"] = _activation(block["activation"], dimension, _outputs(block) // 2)
    if block["dropout"] > 0:
        parts["dropout"] = nn.Dropout(block["dropout"])
    if len(parts) == 1:
        return _plain(product, signal)
    return _Lowered(nn.Sequential(parts), paths, signal)


def _is_gated(activation: str) -> bool:
    return activation == "glu" or activation in _GATES


def _activation(name: str, dimension: int = -1, width: int = 0) -> nn.Module:
    """An activation; a gated one acts on a dimension, and leaves it ``width`` wide."""
    if name == "glu":
        return nn.GLU(dimension)
    if name in _GATES:
        return _traced(_Gated(_GATES[name], dimension, width))
    return _ACTIVATIONS[name]()


def _outputs(block: Document) -> int:
    """The outputs of a block's product: twice as many where value and gate come from it."""
    outputs: int = block["out_features" if block["type"] == "Dense" else "out_channels"]
    return outputs * (2 if _is_gated(block["activation"]) else 1)


def _dense(block: Document, signal: _Signal) -> _Lowered:
    has_bias = block["bias"] and not block["scale"]
    product = nn.Linear(block["in_features"], _outputs(block), has_bias)
    return _product("linear", product, block, signal)


def _convolution(block: Document, signal: _Signal) -> _Lowered:
    product = getattr(nn, block["type"])(
        block["in_channels"],
        _outputs(block),
        _extents(block["kernel_size"]),
        stride=_extents(block["stride"]),
        padding=_extents(block["padding"]),
        dilation=_extents(block["dilation"]),
        groups=block["groups"],
        bias=block["bias"] and not block["scale"],
    )
    return _product("conv", product, block, signal)


def _transposed_convolution(block: Document, signal: _Signal) -> _Lowered:
    product = nn.ConvTranspose2d(
        block["in_channels"],
        block["out_channels"],
        _extents(block["kernel_size"]),
        stride=_extents(block["stride"]),
        padding=_extents(block["padding"]),
        output_padding=_extents(block["output_padding"]),
        dilation=_extents(block["dilation"]),
        bias=block["bias"],
    )
    return _product("conv", product, block, signal)


def _upsample(block: Document, signal: _Signal) -> _Lowered:
    align = False if block["mode"] == "bilinear" else None
    module = nn.Upsample(
        scale_factor=block["scale_factor"], mode=block["mode"], align_corners=align
    )
    return _Lowered(module, {}, signal)


def _pool(block: Document, signal: _Signal) -> _Lowered:
    kernel, stride = _extents(block["kernel_size"]), _extents(block["stride"])
    module = getattr(nn, block["type"])(kernel, stride=stride, padding=_extents(block["padding"]))
    return _Lowered(module, {}, signal)


def _global_average_pool(block: Document, signal: _Signal) -> _Lowered:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if signal.rank == 3:
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
    else:
        if signal.rank > 3:
            parts["positions"] = nn.Flatten(2)
        parts["pool"] = nn.AdaptiveAvgPool1d(1)
    parts["flatten"] = nn.Flatten(1)
    return _Lowered(nn.Sequential(parts), {}, _Signal(1, signal.dtype))


def _flatten(block: Document, signal: _Signal) -> _Lowered:
    return _Lowered(nn.Flatten(1), {}, _Signal(1, signal.dtype))


def _embedding(block: Document, signal: _Signal) -> _Lowered:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    output = _Signal(signal.rank + 1, signal.dtype)
    if signal.dtype not in (torch.int64, torch.int32):  # what torch.nn.Embedding takes
        parts["integers"] = _traced(_Long())
    parts["embedding"] = nn.Embedding(block["num_embeddings"], block["embedding_dim"])
    if block["dropout"] > 0:
        parts["dropout"] = nn.Dropout(block["dropout"])
    if len(parts) == 1:
        return _plain(parts["embedding"], output)
    return _Lowered(nn.Sequential(parts), {"weight": "embedding.weight"}, output)


def _position_embedding(block: Document, signal: _Signal) -> _Lowered:
    position = _traced(_Position(block["length"], block["features"]))
    if block["dropout"] == 0:
        return _plain(position, signal)
    parts = OrderedDict(position=position, dropout=nn.Dropout(block["dropout"]))
    return _Lowered(nn.Sequential(parts), {"weight": "position.weight"}, signal)


def _tied_output(block: Document, signal: _Signal) -> _Lowered:
    return _plain(nn.Linear(block["embedding_dim"], block["num_embeddings"], block["bias"]), signal)


def _layer_norm(block: Document, signal: _Signal) -> _Lowered:
    affine, bias = block["affine"], block["bias"]
    return _plain(nn.LayerNorm(block["features"], block["eps"], affine, bias), signal)


def _rms_norm(block: Document, signal: _Signal) -> _Lowered:
    return _plain(nn.RMSNorm(block["features"], block["eps"], block["affine"]), signal)


def _group_norm(block: Document, signal: _Signal) -> _Lowered:
    module = nn.GroupNorm(block["groups"], block["channels"], block["eps"], block["affine"])
    return _plain(module, signal)


def _batch_norm(block: Document, signal: _Signal) -> _Lowered:
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    if signal.rank not in kinds:
        raise ValueError(
            f"nsn: torch.nn has a batch norm for samples of 1 to 4 dimensions, but one here has "
            f"{signal.rank}. Flatten some of them."
        )
    # Where they are not tracked, training leaves the statistics as they are.
    momentum = block["momentum"] if block["track"] else 0.0
    module = kinds[signal.rank](block["features"], block["eps"], momentum, block["affine"])
    return _plain(module, signal)


def _activation_block(block: Document, signal: _Signal) -> _Lowered:
    return _Lowered(_activation(block["function"]), {}, signal)


def _dropout(block: Document, signal: _Signal) -> _Lowered:
    return _Lowered(nn.Dropout(block["p"]), {}, signal)


def _attention(block: Document, signal: _Signal) -> _Lowered:
    return _plain(_traced(_Attention(block)), signal)


def _sequence(block: Document, signal: _Signal) -> _Lowered:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    paths = {}
    for inner in block["blocks"]:
        lowered = _lower(inner, signal)
        signal = lowered.output
        child = _free_name(inner["name"])
        parts[child] = lowered.module
        for name, path in lowered.paths.items():
            paths[f"{inner['name']}.{name}"] = f"{child}.{path}"
    return _Lowered(nn.Sequential(parts), paths, signal)


def _residual(block: Document, signal: _Signal) -> _Lowered:
    inner = _sequence(block, signal)
    return _Lowered(_traced(_Residual(inner.module.named_children())), inner.paths, signal)


def _transformer(block: Document, signal: _Signal) -> _Lowered:
    """As docs/blocks.md says what it is made of."""
    features, bias, dropout = block["features"], block["bias"], block["dropout"]
    norm = {
        "name": "norm",
        "type": "LayerNorm" if block["norm"] == "layer" else "RMSNorm",
        "features": features,
        "eps": 1e-5,
        "affine": True,
        "bias": bias,
    }
    attention = {**block, "name": "self", "type": "Attention"}
    dense = {"type": "Dense", "bias": bias, "scale": False}
    up = {
        **dense,
        "name": "up",
        "in_features": features,
        "out_features": block["ffn"],
        "activation": block["activation"],
        "dropout": 0.0,
    }
    down = {
        **dense,
        "name": "down",
        "in_features": block["ffn"],
        "out_features": features,
        "activation": "linear",
        "dropout": dropout,
    }
    parts = [
        {"name": "attention", "type": "Residual", "blocks": [norm, attention]},
        {"name": "ffn", "type": "Residual", "blocks": [norm, up, down]},
    ]
    return _sequence({"type": "Sequence", "blocks": parts}, signal)


_LOWER: dict[str, Callable[[Document, _Signal], _Lowered]] = {
    "Activation": _activation_block,
    "Attention": _attention,
    "AvgPool1d": _pool,
    "AvgPool2d": _pool,
    "BatchNorm": _batch_norm,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "ConvTranspose2d": _transposed_convolution,
    "Dense": _dense,
    "Dropout": _dropout,
    "Embedding": _embedding,
    "Flatten": _flatten,
    "GlobalAvgPool": _global_average_pool,
    "GroupNorm": _group_norm,
    "LayerNorm": _layer_norm,
    "MaxPool1d": _pool,
    "MaxPool2d": _pool,
    "PositionEmbedding": _position_embedding,
    "RMSNorm": _rms_norm,
    "Residual": _residual,
    "Sequence": _sequence,
    "TiedOutput": _tied_output,
    "Transformer": _transformer,
    "Upsample": _upsample,
}


def _extents(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _free_name(name: str) -> str:
    """A block's name as that of a module: some are Python's words, or attributes of a container."""
    taken = keyword.iskeyword(name) or hasattr(fx.GraphModule, name) or hasattr(nn.Sequential, name)
    return f"{name}_" if taken else name


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

    def __init__(self, features: int, trailing: int, bias: bool) -> None:
        super().__init__()
        self._trailing = trailing
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * self._trailing
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


class _Position(nn.Module):
    """x + weight[:T]."""

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.size(1)]


class _Residual(nn.Module):
    """x + the last of the children, each applied to the one before."""

    def __init__(self, children: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, child in children:
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for child in self.children():
            y = child(y)
        return x + y


class _Attention(nn.Module):
    """Self-attention, x ``(B, T, features)``."""

    def __init__(self, block: Document) -> None:
        super().__init__()
        self._heads, self._causal = block["heads"], block["causal"]
        self._head_dim = block.get("head_dim") or block["features"] // block["heads"]
        inside = self._heads * self._head_dim
        self.qkv = nn.Linear(block["features"], 3 * inside, block["bias"])
        self.out = nn.Linear(inside, block["features"], block["bias"])
        self.dropout = nn.Dropout(block["dropout"]) if block["dropout"] > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, 3 * heads * head_dim) to three of (B, heads, T, head_dim).
        parts = self.qkv(x).unflatten(-1, (3, self._heads, self._head_dim)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self._causal)
        y = self.out(y.transpose(1, 2).flatten(2))
        result: Tensor = y if self.dropout is None else self.dropout(y)
        return result
