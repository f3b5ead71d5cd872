"""What the library should compute, from plain torch, one sub-network at a time."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def forward(
    blocks: Mapping[str, str],
    kept: list[str],
    parameters: Mapping[str, Tensor],
    x: Tensor,
    masks: Mapping[str, tuple[Tensor, float]] | None = None,
) -> Tensor:
    """One sub-network: ``blocks`` is name to activation, ``masks`` block to (kept, probability)."""
    for block in kept:
        x = F.linear(x, parameters[f"{block}.weight"], parameters.get(f"{block}.bias"))
        x = ACTIVATIONS[blocks[block]](x)
        if masks and block in masks:
            mask, probability = masks[block]
            x = torch.where(mask, x / (1 - probability) if probability < 1 else x, 0.0)
    return x


def merge(
    rule: str,
    gradients: Mapping[str, Tensor],
    by_size: list[str],
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """The rule, written down once more: name to gradient (zeros included) -> merged."""
    ordered = [gradients[name] for name in by_size if name in gradients]
    stacked = torch.stack(list(gradients.values()))
    if rule == "sum":
        return stacked.sum(0)
    if rule == "mean":
        return stacked.sum(0) / len(gradients)
    if rule == "two_smallest_mean":
        return sum(ordered[:2]) / len(ordered[:2])
    if rule == "owner":
        return ordered[0]
    if rule == "weighted":
        assert weights is not None
        return sum(weights[name] * gradient for name, gradient in gradients.items())
    if rule in ("gradient_surgery", "equal_norms"):
        everywhere = {n: torch.ones_like(g, dtype=torch.bool) for n, g in gradients.items()}
        by = surgery if rule == "gradient_surgery" else equal_norms
        return by(gradients, everywhere)
    if rule == "median":
        return stacked.median(0).values
    if rule == "difference":  # linear, but given as a function
        return stacked[0] - 0.5 * stacked[-1]
    raise AssertionError(rule)


def alive(sizes: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whose gradient is more than rounding beside the largest."""
    least = 1000 * torch.finfo(torch.float64).eps * max(sizes.values())
    return {name: bool(size > least) for name, size in sizes.items()}


def mean_sizes(gradients: Mapping[str, Tensor], covered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Root mean squares over the lanes' slices."""
    return {
        name: (each.square().sum() / covered[name].sum().clamp(min=1)).sqrt()
        for name, each in gradients.items()
    }


def equal_norms(gradients: Mapping[str, Tensor], covered: Mapping[str, Tensor]) -> Tensor:
    """The mean over lanes, each scaled to the mean of the sizes."""
    sizes = mean_sizes(gradients, covered)
    lives = alive(sizes)
    common = sum(sizes[name] for name in sizes if lives[name]) / max(1, sum(lives.values()))
    count = sum(covered[name].to(torch.float64) for name in gradients).clamp(min=1)
    scaled = [g * (common / sizes[n] if lives[n] else 1.0) for n, g in gradients.items()]
    return sum(scaled) / count


def surgery(gradients: Mapping[str, Tensor], covered: Mapping[str, Tensor]) -> Tensor:
    """PCGrad over what two lanes cover both, the most conflicting one first."""
    total = torch.zeros_like(next(iter(gradients.values())))
    lives = alive(mean_sizes(gradients, covered))
    for name, gradient in gradients.items():
        own = gradient.clone()
        others = []
        for other, theirs in gradients.items():
            there = theirs * covered[name] * covered[other]
            if other != name and lives[other] and (own * there).sum() < 0:
                others.append(((own * there).sum() / there.norm(), there))
        for _, there in sorted(others, key=lambda each: float(each[0])):
            dot = (own * there).sum()
            if dot < 0:
                own = own - dot / there.square().sum() * there
        total = total + own
    return total


# ---- networks of all blocks ---------------------------------------------------------------------
# From docs/description.md and docs/blocks.md alone: a second opinion on what the library computes.

Document = dict[str, Any]
Lookup = Callable[[str, tuple[int, ...]], Tensor]  # a tensor's name and full shape -> the tensor
Mask = Callable[[str, float, Sequence[int]], Tensor]  # block's path, probability, shape -> kept

GATES = {"glu": torch.sigmoid, "reglu": torch.relu, "geglu": F.gelu, "swiglu": F.silu}


class RefusedError(Exception):
    """The documents say that there is no such network."""


class SilentError(RefusedError):
    """The documents do not say what such a network would be."""


@dataclass(frozen=True)
class Extent:
    """A dimension: its factors at full width, outermost first, and the leading part kept of each.

    (8,)/(5,) are the first 5 of 8; (3, 4)/(3, 2) the first two of each of three groups of four.
    """

    full: tuple[int, ...]
    kept: tuple[int, ...]

    @staticmethod
    def of(full: int, kept: int | None = None) -> "Extent":
        return Extent((full,), (full if kept is None else kept,))

    @staticmethod
    def product(*parts: "Extent") -> "Extent":
        """One dimension of several; factors are joined where the inner one is whole."""
        full: list[int] = []
        kept: list[int] = []
        for part in parts:
            for n, k in zip(part.full, part.kept, strict=True):
                if full and (n == k or full[-1] == 1):
                    full[-1], kept[-1] = full[-1] * n, kept[-1] * k
                else:
                    full.append(n)
                    kept.append(k)
        return Extent(tuple(full), tuple(kept))

    @property
    def width(self) -> int:
        return math.prod(self.kept)

    @property
    def full_width(self) -> int:
        return math.prod(self.full)

    def declared(self, width: int) -> "Extent":
        """As a block sees it that declares so many inputs."""
        if width == self.full_width:
            return self
        if width == self.width:
            return Extent.of(width)
        raise RefusedError(f"declared {width}, but gets {self.width} of {self.full_width}")

    def in_groups(self, groups: int) -> "Extent":
        """As (groups, a group): groups from the front, whole or the leading part of each."""
        each = self.full_width // groups
        if len(self.full) == 1 and self.width % each == 0:
            return Extent((groups, each), (self.width // each, each))
        if self.full == (groups, each):
            return self
        raise RefusedError(f"{self} has neither whole groups nor the leading part of each")


@dataclass(frozen=True)
class Use:
    """How a sub-network uses a parameter: ``parameter.view(view)[:extents[0], :extents[1], ...]``."""

    view: tuple[int, ...]
    extents: tuple[int, ...]

    def slice(self, tensor: Tensor) -> Tensor:
        return tensor.view(self.view)[tuple(slice(each) for each in self.extents)]


def dimensions(block: Document) -> list[str]:
    """The dimensions that a sub-network may narrow."""
    kind = block["type"]
    if kind in ("Conv1d", "Conv2d"):
        return [] if _is_depthwise(block) else ["out"]
    if kind in ("Dense", "ConvTranspose2d", "Embedding"):
        return ["out"]
    if kind == "Attention":
        return ["heads"]
    if kind == "Transformer":
        return ["heads", "ffn"]
    if kind in ("Sequence", "Residual"):
        last = _follower(block)
        return [
            f"{inner['name']}.{dimension}"
            for inner in block["blocks"]
            for dimension in dimensions(inner)
            if inner is not last
        ]
    return []


def _follower(block: Document) -> Document | None:
    """The block inside a Residual that is as wide as the Residual's input."""
    if block["type"] != "Residual":
        return None
    having = [inner for inner in block["blocks"] if "out" in dimensions(inner)]
    return having[-1] if having else None


def _is_depthwise(block: Document) -> bool:
    groups = block.get("groups", 1)
    return groups > 1 and groups == block["in_channels"] == block["out_channels"]


def kept_width(full: int, kept: float, step: int = 1) -> int:
    """A count as it is, a fraction as the nearest multiple of the step, halves upwards."""
    if isinstance(kept, int):
        if not 1 <= kept <= full or kept % step:
            raise RefusedError(f"keeps {kept} of {full} in steps of {step}")
        return kept
    if not 0 < kept <= 1:
        raise RefusedError(f"keeps {kept}")
    return max(1, math.floor(kept * (full // step) + 0.5)) * step


@dataclass
class Lane:
    """One sub-network over one batch.

    Attributes:
        output: ``(B, *output)``.
        dims: of a sample of it.
        uses: parameter's name to its uses, one behind the other.
        statistics: BatchNorm's path to the mean and variance that it used, in training the unbiased
            variance of its own batch, and to the channels that they stand for.
    """

    output: Tensor
    dims: list[Extent]
    uses: dict[str, list[Use]]
    statistics: dict[str, tuple[Tensor, Tensor, Use]]

    @property
    def parameter_count(self) -> int:
        sizes = {name: (math.prod(uses[0].view),) for name, uses in self.uses.items()}
        return sum(int(coverage(uses, sizes[name]).sum()) for name, uses in self.uses.items())


def run(
    document: Document,
    name: str,
    parameters: Lookup,
    buffers: Lookup,
    x: Tensor,
    mask: Mask | None = None,
    training: bool = False,
) -> Lane:
    """One sub-network by plain operations on plain slices; ``mask`` for its dropout in training."""
    return _Run(document, name, parameters, buffers, mask, training).run(x)


def subnetworks(document: Document) -> dict[str, Document]:
    """Name to document, ``base`` first, which has all blocks unless it is listed."""
    everything = {"name": "base", "blocks": [block["name"] for block in document["blocks"]]}
    return {"base": everything} | {each["name"]: each for each in document.get("subnetworks", [])}


@dataclass(frozen=True)
class Place:
    """A block, its path, and how wide it is kept; ``follow`` is its ``out`` where that is not free."""

    block: Document
    path: str
    width: Document
    follow: Extent | None = None

    def __getitem__(self, field: str) -> Any:
        return self.block[field]

    def get(self, field: str, default: Any) -> Any:
        return self.block.get(field, default)


class _Run:
    def __init__(
        self,
        document: Document,
        name: str,
        parameters: Lookup,
        buffers: Lookup,
        mask: Mask | None,
        training: bool,
    ) -> None:
        self.document = document
        self.name = name
        self.parameters = parameters
        self.buffers = buffers
        self.mask = mask
        self.training = training
        self.uses: dict[str, list[Use]] = {}
        self.statistics: dict[str, tuple[Tensor, Tensor, Use]] = {}
        self.dims: list[Extent] = []  # of the sample that the next block gets
        self.own_dropout: float | None = None

    def run(self, x: Tensor) -> Lane:
        self.dims = [Extent.of(each) for each in x.shape[1:]]
        subnetwork = subnetworks(self.document)[self.name]
        blocks = {block["name"]: block for block in self.document["blocks"]}
        for name in subnetwork["blocks"]:
            block = blocks[name]
            width = subnetwork.get("width", {}).get(name, {})
            if not isinstance(width, dict):
                (only,) = dimensions(block)
                width = {only: width}
            self.own_dropout = subnetwork.get("dropout", {}).get(name)
            x = self.block(Place(block, name, width), x)
        return Lane(x, self.dims, self.uses, self.statistics)

    def block(self, at: Place, x: Tensor) -> Tensor:
        return getattr(self, at["type"])(at, x)

    # ---- parameters, dropout ----

    def slice(
        self, lookup: Lookup, name: str, private: bool, dims: Sequence[Extent]
    ) -> tuple[Tensor, str, Use]:
        """The part of a tensor that belongs to the lane, one axis for each dimension."""
        shape = tuple(each.full_width for each in dims)
        own = tuple(each.width for each in dims)
        if private:
            name, shape = f"{name}_{self.name}", own
            use = Use(own, own)
        else:
            use = Use(
                tuple(n for each in dims for n in each.full),
                tuple(n for each in dims for n in each.kept),
            )
        return use.slice(lookup(name, shape)).reshape(own), name, use

    def used(self, name: str, private: bool, dims: Sequence[Extent]) -> Tensor:
        tensor, name, use = self.slice(self.parameters, name, private, dims)
        self.uses.setdefault(name, []).append(use)
        return tensor

    def parameter(self, at: Place, part: str, *dims: Extent) -> Tensor:
        """A parameter's slice; the last word of its name is what per_subnetwork may name."""
        private = part.split(".")[-1] in at.get("per_subnetwork", [])
        return self.used(f"{at.path}.{part}", private, dims)

    def affine(self, at: Place, dim: Extent, bias: bool) -> list[Tensor | None]:
        if not at.get("affine", True):
            return [None, None]
        private = "affine" in at.get("per_subnetwork", [])
        names = ["weight", "bias"] if bias else ["weight"]
        found: list[Tensor | None] = [
            self.used(f"{at.path}.{each}", private, [dim]) for each in names
        ]
        return found if bias else [*found, None]

    def drop(self, path: str, x: Tensor, probability: float | None) -> Tensor:
        """Dropout; None where there is none for a sub-network's own dropout to replace."""
        if probability is None or not self.training:
            return x
        p = probability if self.own_dropout is None else self.own_dropout
        if p == 0:
            return x
        assert self.mask is not None
        kept = self.mask(path, p, x.shape)
        return torch.where(kept, x / (1 - p) if p < 1 else x, 0.0)

    def activate(self, name: str, x: Tensor, dim: int) -> Tensor:
        if name in GATES:
            value, gate = x.chunk(2, dim)
            return value * GATES[name](gate)
        return ACTIVATIONS[name](x)

    def finish(self, at: Place, y: Tensor, rows: Extent, axis: int) -> Tensor:
        """What follows a product: scale, bias, activation, dropout."""
        shape = [1] * y.dim()
        shape[axis] = -1
        if at.get("scale", False):
            y = y * self.parameter(at, "scale", rows).view(shape)
        if at.get("bias", True):
            y = y + self.parameter(at, "bias", rows).view(shape)
        y = self.activate(at.get("activation", "linear"), y, axis)
        return self.drop(at.path, y, at.get("dropout", 0.0))

    def out(self, full: int, at: Place, step: int = 1, name: str = "out") -> Extent:
        """A named dimension."""
        if at.follow is not None:
            if step == 1 and len(at.follow.full) > 1:
                raise SilentError(f"rows in the order of {at.follow}")
            return at.follow.declared(full)
        return Extent.of(full, kept_width(full, at.width[name], step) if name in at.width else None)

    def rows(self, at: Place, out: Extent) -> Extent:
        gated = at.get("activation", "linear") in GATES
        return Extent.product(Extent.of(2), out) if gated else out

    def check_positions(self) -> None:
        """Positions are not narrowed: a Dense block could, but no document says what that means."""
        if any(each.width != each.full_width for each in self.dims[1:]):
            raise SilentError(f"works over positions, of which not all are there: {self.dims}")

    # ---- the blocks ----

    def Dense(self, at: Place, x: Tensor) -> Tensor:
        read = self.dims[-1].declared(at["in_features"])
        out = self.out(at["out_features"], at)
        rows = self.rows(at, out)
        y = F.linear(x, self.parameter(at, "weight", rows, read))
        self.dims[-1] = out
        return self.finish(at, y, rows, y.dim() - 1)

    def Conv1d(self, at: Place, x: Tensor) -> Tensor:
        if at.get("causal", False):
            reach = (at["kernel_size"] - 1) * at.get("dilation", 1)
            x = F.pad(x, (reach, 0))
        return self.conv(at, x, F.conv1d, 1)

    def Conv2d(self, at: Place, x: Tensor) -> Tensor:
        return self.conv(at, x, F.conv2d, 2)

    def conv(self, at: Place, x: Tensor, function: Any, spatial: int) -> Tensor:
        self.check_positions()
        groups = at.get("groups", 1)
        assert groups == 1 or at.get("activation", "linear") not in GATES
        read = self.dims[0].declared(at["in_channels"])
        if _is_depthwise(at.block):
            out, each, groups = read, Extent.of(1), read.width
        elif groups == 1:
            out, each = self.out(at["out_channels"], at), read
        else:
            read = read.in_groups(groups)
            out = self.out(at["out_channels"], at, step=groups)
            if at.follow is None:  # the leading part of each group, for the groups that it gets
                out = Extent(
                    (groups, out.full_width // groups), (read.kept[0], out.width // groups)
                )
            else:
                out = out.in_groups(groups)
                if out.kept[0] != read.kept[0]:
                    raise SilentError(f"groups {out} of groups {read}")
            each, groups = Extent((read.full[1],), (read.kept[1],)), read.kept[0]
        rows = self.rows(at, out)
        kernel = [Extent.of(n) for n in _several(at["kernel_size"], spatial)]
        y = function(
            x,
            self.parameter(at, "weight", rows, each, *kernel),
            stride=at.get("stride", 1),
            padding=at.get("padding", 0),
            dilation=at.get("dilation", 1),
            groups=groups,
        )
        self.dims = [Extent.product(out), *map(Extent.of, y.shape[2:])]
        return self.finish(at, y, rows, 1)

    def ConvTranspose2d(self, at: Place, x: Tensor) -> Tensor:
        self.check_positions()
        read = self.dims[0].declared(at["in_channels"])
        out = self.out(at["out_channels"], at)
        rows = self.rows(at, out)
        kernel = [Extent.of(n) for n in _several(at["kernel_size"], 2)]
        y = F.conv_transpose2d(
            x,
            self.parameter(at, "weight", read, rows, *kernel),
            stride=at.get("stride", 1),
            padding=at.get("padding", 0),
            output_padding=at.get("output_padding", 0),
            dilation=at.get("dilation", 1),
        )
        self.dims = [out, *map(Extent.of, y.shape[2:])]
        return self.finish(at, y, rows, 1)

    def Upsample(self, at: Place, x: Tensor) -> Tensor:
        self.check_positions()
        mode = at.get("mode", "nearest")
        corners = None if mode == "nearest" else False
        y = F.interpolate(x, scale_factor=at["scale_factor"], mode=mode, align_corners=corners)
        self.dims[1:] = map(Extent.of, y.shape[2:])
        return y

    def pool(self, at: Place, x: Tensor, function: Any) -> Tensor:
        self.check_positions()
        stride = at.get("stride", at["kernel_size"])
        y = function(x, at["kernel_size"], stride, at.get("padding", 0))
        self.dims[1:] = map(Extent.of, y.shape[2:])
        return y

    def MaxPool1d(self, at: Place, x: Tensor) -> Tensor:
        return self.pool(at, x, F.max_pool1d)

    def MaxPool2d(self, at: Place, x: Tensor) -> Tensor:
        return self.pool(at, x, F.max_pool2d)

    def AvgPool1d(self, at: Place, x: Tensor) -> Tensor:
        return self.pool(at, x, F.avg_pool1d)

    def AvgPool2d(self, at: Place, x: Tensor) -> Tensor:
        return self.pool(at, x, F.avg_pool2d)

    def GlobalAvgPool(self, at: Place, x: Tensor) -> Tensor:
        self.check_positions()
        del self.dims[1:]
        return x.flatten(2).mean(2)

    def Flatten(self, at: Place, x: Tensor) -> Tensor:
        self.dims = [Extent.product(*self.dims)]
        return x.flatten(1)

    def Embedding(self, at: Place, x: Tensor) -> Tensor:
        out = self.out(at["embedding_dim"], at)
        weight = self.parameter(at, "weight", Extent.of(at["num_embeddings"]), out)
        self.dims.append(out)
        return self.drop(at.path, F.embedding(x, weight), at.get("dropout", 0.0))

    def PositionEmbedding(self, at: Place, x: Tensor) -> Tensor:
        read = self.dims[-1].declared(at["features"])
        positions = Extent.of(at["length"], x.shape[1])
        y = x + self.parameter(at, "weight", positions, read)
        return self.drop(at.path, y, at.get("dropout", 0.0))

    def TiedOutput(self, at: Place, x: Tensor) -> Tensor:
        read = self.dims[-1].declared(at["embedding_dim"])
        rows = Extent.of(at["num_embeddings"])
        y = F.linear(x, self.used(f"{at['embedding']}.weight", False, [rows, read]))
        if at.get("bias", False):
            y = y + self.parameter(at, "bias", rows)
        self.dims[-1] = rows
        return y

    def LayerNorm(self, at: Place, x: Tensor) -> Tensor:
        features = self.dims[-1].declared(at["features"])
        weight, bias = self.affine(at, features, at.get("bias", True))
        return F.layer_norm(x, x.shape[-1:], weight, bias, at.get("eps", 1e-5))

    def RMSNorm(self, at: Place, x: Tensor) -> Tensor:
        weight, _ = self.affine(at, self.dims[-1].declared(at["features"]), False)
        y = x / (x.pow(2).mean(-1, keepdim=True) + at.get("eps", 1e-5)).sqrt()
        return y if weight is None else y * weight

    def GroupNorm(self, at: Place, x: Tensor) -> Tensor:
        channels, groups = self.dims[0].declared(at["channels"]), at["groups"]
        if groups > 1:  # a single group is normalised as a whole, whatever is there of it
            channels = channels.in_groups(groups)
            groups = channels.kept[0]
        weight, bias = self.affine(at, channels, True)
        # Not torch.nn.functional's, which refuses a batch of one value a group.
        return torch.group_norm(x, groups, weight, bias, at.get("eps", 1e-5))

    def BatchNorm(self, at: Place, x: Tensor) -> Tensor:
        channels = self.dims[0].declared(at["features"])
        private = "statistics" in at.get("per_subnetwork", [])
        weight, bias = self.affine(at, channels, True)
        over = [0, *range(2, x.dim())]
        if self.training:
            mean = x.mean(over)
            var = x.var(over, unbiased=False)
            unbiased = x.var(over, unbiased=True)
        else:
            mean, var = (
                self.slice(self.buffers, f"{at.path}.{part}", private, [channels])[0]
                for part in ("running_mean", "running_var")
            )
            unbiased = var
        use = Use(channels.full, channels.kept)
        self.statistics[at.path] = (mean.detach(), unbiased.detach(), use)
        shape = [-1] + [1] * (x.dim() - 2)
        y = (x - mean.view(shape)) / (var.view(shape) + at.get("eps", 1e-5)).sqrt()
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
        return y

    def Activation(self, at: Place, x: Tensor) -> Tensor:
        return ACTIVATIONS[at["function"]](x)

    def Dropout(self, at: Place, x: Tensor) -> Tensor:
        return self.drop(at.path, x, at["p"])

    def Sequence(self, at: Place, x: Tensor) -> Tensor:
        last = _follower(at.block)
        read = self.dims[0] if last is not None and "Conv" in last["type"] else self.dims[-1]
        for inner in at["blocks"]:
            prefix = f"{inner['name']}."
            width = {
                key.removeprefix(prefix): kept
                for key, kept in at.width.items()
                if key.startswith(prefix)
            }
            follow = read if inner is last else None
            x = self.block(Place(inner, f"{at.path}.{inner['name']}", width, follow), x)
        return x

    def Residual(self, at: Place, x: Tensor) -> Tensor:
        before = list(self.dims)
        y = self.Sequence(at, x)
        if [each.width for each in before] != [each.width for each in self.dims]:
            raise RefusedError(f"a Residual's {before} and {self.dims}")
        if before != self.dims and any(
            each.width != each.full_width for each in [*before, *self.dims]
        ):
            raise SilentError(f"a Residual's {before} and {self.dims}")
        return x + y

    def Attention(self, at: Place, x: Tensor) -> Tensor:
        features, full_heads = at["features"], at["heads"]
        read = self.dims[-1].declared(features)
        head_dim = at.get("head_dim", features // full_heads)
        heads = self.out(full_heads, at, name="heads")
        inner = Extent.product(heads, Extent.of(head_dim))
        rows = Extent.product(Extent.of(3), inner)
        bias = at.get("bias", True)
        qkv = F.linear(
            x,
            self.parameter(at, "qkv.weight", rows, read),
            self.parameter(at, "qkv.bias", rows) if bias else None,
        )
        B, T, _ = x.shape
        q, k, v = qkv.view(B, T, 3, heads.width, head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=at.get("causal", False))
        y = F.linear(
            y.transpose(1, 2).reshape(B, T, inner.width),
            self.parameter(at, "out.weight", read, inner),
            self.parameter(at, "out.bias", read) if bias else None,
        )
        return self.drop(at.path, y, at.get("dropout", 0.0))

    def Transformer(self, at: Place, x: Tensor) -> Tensor:
        inner = {"heads": "attention.self.heads", "ffn": "ffn.up.out"}
        width = {inner[key]: kept for key, kept in at.width.items()}
        return self.Sequence(Place(expanded(at.block), at.path, width), x)


def expanded(block: Document) -> Document:
    """A Transformer as the Sequence of Residuals that it is."""
    features, ffn = block["features"], block["ffn"]
    private = block.get("per_subnetwork", [])
    bias = block.get("bias", True)
    affine = {"per_subnetwork": [each for each in private if each == "affine"]}
    common = {"bias": bias, "per_subnetwork": [each for each in private if each == "bias"]}
    dropout = block.get("dropout", 0.0)
    norm_type = {"layer": "LayerNorm", "rms": "RMSNorm"}[block.get("norm", "layer")]
    norm = {"name": "norm", "type": norm_type, "features": features, **affine}
    if norm_type == "LayerNorm":
        norm["bias"] = bias  # as torch.nn.TransformerEncoderLayer's
    attention = {
        "name": "self",
        "type": "Attention",
        "dropout": dropout,
        **{key: block[key] for key in ("features", "heads", "head_dim", "causal") if key in block},
        **common,
    }
    up = {
        "name": "up",
        "type": "Dense",
        "in_features": features,
        "out_features": ffn,
        "activation": block.get("activation", "gelu"),
        "dropout": None,  # there is none
        **common,
    }
    down = {
        "name": "down",
        "type": "Dense",
        "in_features": ffn,
        "out_features": features,
        "dropout": dropout,
        **common,
    }
    return {
        "type": "Sequence",
        "blocks": [
            {"name": "attention", "type": "Residual", "blocks": [norm, attention]},
            {"name": "ffn", "type": "Residual", "blocks": [norm, up, down]},
        ],
    }


def _several(extent: int | list[int], count: int) -> list[int]:
    return [extent] * count if isinstance(extent, int) else extent


def flattened(document: Document) -> dict[str, Document]:
    """All blocks by path, those inside others too."""

    def visit(block: Document, path: str) -> dict[str, Document]:
        if block["type"] == "Transformer":
            block = expanded(block)
        result = {path: block}
        for inner in block.get("blocks", []):
            result |= visit(inner, f"{path}.{inner['name']}")
        return result

    result: dict[str, Document] = {}
    for block in document["blocks"]:
        result |= visit(block, block["name"])
    return result


def check_together(uses: Sequence[Use]) -> None:
    """Whether all slices of a parameter are leading parts of one view of it.

    Raises:
        SilentError: where they are not, such as 6 of 8 and 3 of each of two groups of 4.
    """
    strides = {math.prod(use.view[i:]) for use in uses for i in range(len(use.view) + 1)}
    inward = sorted(strides, reverse=True)
    if any(outer % inner for outer, inner in itertools.pairwise(inward)):
        raise SilentError(f"no common view of {uses}")
    for use in uses:
        for place, kept in enumerate(use.extents):
            stride = math.prod(use.view[place + 1 :])
            span, left = use.view[place] * stride, kept * stride
            for each in inward:
                if stride < each < span and left < span:
                    if left > each and left % each:
                        raise SilentError(f"no common view of {uses}")
                    span, left = each, min(left, each) if left < each else each


def ranking(counts: Mapping[str, int]) -> list[str]:
    """The smallest first; ``counts`` is in the order of declaration."""
    return sorted(counts, key=lambda name: counts[name])


def rule_of(document: Document, parameter: str) -> Document:
    """The rule in force for a parameter; a private one's gradient is its sub-network's own."""
    if parameter.endswith(tuple(f"_{name}" for name in subnetworks(document))):
        return {"rule": "sum"}
    block = parameter.split(".")[0]
    (found,) = [each for each in document["blocks"] if each["name"] == block]
    return found.get("merge", document.get("merge", {"rule": "sum"}))


def coverage(uses: Sequence[Use], shape: Sequence[int]) -> Tensor:
    """Which elements of a parameter a lane uses, True there."""
    covered = torch.zeros(tuple(shape), dtype=torch.bool)
    for use in uses:
        use.slice(covered).fill_(True)
    return covered


def merge_elements(
    rule: Document,
    gradients: Mapping[str, Tensor | None],
    covered: Mapping[str, Tensor],
    by_size: Sequence[str],
) -> Tensor | None:
    """A rule, element by element, on the lanes that cover the element.

    Args:
        rule: its document.
        gradients: lane to gradient in the parameter's shape, zero outside its slice; None if the
            lane has none.
        covered: lane to the elements that it uses.
        by_size: names, the smallest first.
    """
    if all(each is None for each in gradients.values()):
        return None
    if rule["rule"] in ("gradient_surgery", "equal_norms"):
        zero = torch.zeros_like(next(each for each in gradients.values() if each is not None))
        given = {name: zero if each is None else each for name, each in gradients.items()}
        by = surgery if rule["rule"] == "gradient_surgery" else equal_norms
        return by(given, covered)
    assert rule["rule"] in ("sum", "mean", "two_smallest_mean", "owner", "weighted"), rule
    names = [name for name in by_size if name in gradients]
    some = next(each for each in gradients.values() if each is not None)
    total, seen, taken = (torch.zeros_like(some) for _ in range(3))
    kind = rule["rule"]
    for name in names:
        here = covered[name]
        gradient = gradients[name]
        value = torch.zeros_like(some) if gradient is None else gradient
        factor = here.to(some.dtype)
        if kind in ("two_smallest_mean", "owner"):
            factor = factor * (seen < {"two_smallest_mean": 2, "owner": 1}[kind])
        seen = seen + here
        taken = taken + factor
        if kind == "weighted":
            factor = factor * rule["weights"][name]
        total = total + factor * value
    if kind in ("mean", "two_smallest_mean"):
        return total / taken.clamp(min=1)
    return total


def new_statistics(
    document: Document, buffers: Mapping[str, Tensor], lanes: Mapping[str, Lane]
) -> dict[str, Tensor]:
    """All buffers after a joint pass in training, from those before it."""
    result = {name: tensor.clone() for name, tensor in buffers.items()}
    for path, block in flattened(document).items():
        if block["type"] != "BatchNorm" or not block.get("track", True):
            continue
        momentum = block.get("momentum", 0.1)
        passing = {
            name: lane.statistics[path] for name, lane in lanes.items() if path in lane.statistics
        }
        private = "statistics" in block.get("per_subnetwork", [])
        for group in [[name] for name in passing] if private else [list(passing)]:
            if not group:
                continue
            suffix = f"_{group[0]}" if private else ""
            for place, part in enumerate(("running_mean", "running_var")):
                buffer = result[f"{path}.{part}{suffix}"]
                total, count = torch.zeros_like(buffer), torch.zeros_like(buffer)
                for name in group:
                    use = passing[name][2]
                    if private:
                        use = Use(tuple(buffer.shape), tuple(buffer.shape))
                    here = use.slice(total)
                    here += passing[name][place].view(here.shape)
                    use.slice(count).add_(1)
                mean = total / count.clamp(min=1)
                step = (1 - momentum) * buffer + momentum * mean
                buffer.copy_(torch.where(count > 0, step, buffer))
            result[f"{path}.num_batches_tracked{suffix}"] += 1
    return result
