"""A program's meaning, written down with torch's plain operations: what all that runs one must equal."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = Mapping[str, Any]
Operands = Mapping[str, Tensor]


def along(vector: Tensor, dimension: int, x: Tensor) -> Tensor:
    shape = [1] * x.dim()
    shape[dimension] = -1
    return vector.reshape(shape)


def convolution(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    function = {1: F.conv1d, 2: F.conv2d}[len(a["stride"])]
    geometry = (a["stride"], a["padding"], a["dilation"], a["groups"])
    return function(x, o["weight"], o.get("bias"), *geometry)


def transposed(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    return F.conv_transpose2d(
        x,
        o["weight"],
        o.get("bias"),
        a["stride"],
        a["padding"],
        a["output_padding"],
        dilation=a["dilation"],
    )


def max_pool(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    function = {1: F.max_pool1d, 2: F.max_pool2d}[len(a["kernel"])]
    return function(x, a["kernel"], a["stride"], a["padding"])


def average_pool(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    function = {1: F.avg_pool1d, 2: F.avg_pool2d}[len(a["kernel"])]
    return function(x, a["kernel"], a["stride"], a["padding"])


def upsample(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    align = False if a["mode"] == "bilinear" else None
    return F.interpolate(x, scale_factor=a["factor"], mode=a["mode"], align_corners=align)


def layer_norm(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + a["eps"]).sqrt()
    return y * o.get("weight", 1.0) + o.get("bias", 0.0)


def rms_norm(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps if a["eps"] is None else a["eps"]
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * o.get("weight", 1.0)


def group_norm(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    groups = x.unflatten(1, (a["groups"], -1)).flatten(2)
    centred = groups - groups.mean(2, keepdim=True)
    y = (centred / (centred.square().mean(2, keepdim=True) + a["eps"]).sqrt()).view(x.shape)
    return affine(o, y)


def affine(o: Operands, y: Tensor) -> Tensor:
    if "weight" in o:
        y = y * along(o["weight"], 1, y)
    return y + along(o["bias"], 1, y) if "bias" in o else y


def batch_norm(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    deviation = (o["running_var"] + a["eps"]).sqrt()
    return affine(o, (x - along(o["running_mean"], 1, x)) / along(deviation, 1, x))


def scale_and_shift(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    if "scale" in o:
        x = x * along(o["scale"], a["dimension"], x)
    return x + along(o["bias"], a["dimension"], x) if "bias" in o else x


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": lambda x: x.clamp_min(0),
    "gelu": F.gelu,
    "silu": lambda x: x * x.sigmoid(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
GATES = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}


def gate(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    value, own = x.chunk(2, a["dimension"])
    return value * FUNCTIONS[GATES[a["function"]]](own)


def attention(a: Attributes, o: Operands, x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, a["heads"], -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
    if a["causal"]:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(after, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


#: Each primitive but "block", of one input; "add" has two where it reads no tensor.
PRIMITIVES: dict[str, Callable[..., Tensor]] = {
    "product": lambda a, o, x: x @ o["weight"].T + o.get("bias", 0.0),
    "convolution": convolution,
    "transposed_convolution": transposed,
    "pad": lambda a, o, x: F.pad(x, (a["before"], 0)),
    "max_pool": max_pool,
    "average_pool": average_pool,
    "global_average": lambda a, o, x: x.flatten(2).mean(2),
    "upsample": upsample,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
    "scale_and_shift": scale_and_shift,
    "activation": lambda a, o, x: FUNCTIONS[a["function"]](x),
    "gate": gate,
    "dropout": lambda a, o, x: x,
    "add": lambda a, o, x, y=None: x + (o["weight"] if y is None else y),
    "reshape": lambda a, o, x: x.reshape(-1, *a["shape"]),
    "embedding": lambda a, o, x: o["weight"][x.long()],
    "attention": attention,
}


def part(operand: Mapping[str, Any], table: list[Tensor]) -> Tensor:
    """What a step reads of a table's tensor."""
    tensor = table[operand["place"]].detach().view(operand["view"])
    return tensor[tuple(slice(kept) for kept in operand["kept"])].reshape(operand["shape"])


def run(program: Mapping[str, Any], table: list[Tensor], x: Tensor) -> Tensor:
    """The output for a batch; ``program`` is what ``Description.lower`` gives, read as JSON."""
    values = [x]
    for step in program["steps"]:
        assert step["value"] == len(values)
        operands = {operand["role"]: part(operand, table) for operand in step["operands"]}
        inputs = [values[value] for value in step["inputs"]]
        y = PRIMITIVES[step["primitive"]](step["attributes"], operands, *inputs)
        assert list(y.shape[1:]) == step["shape"], step
        values.append(y)
    return values[program["output"]]
