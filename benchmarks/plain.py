"""An MLP, a CNN and a character transformer with narrower sub-networks, in plain PyTorch.

Of each there is the network by itself, as narrow as asked for, and a slicing one, which holds the
full weights and runs the width at a place in ``widths`` with their leading parts, as slimmable
networks are usually written; norms are each width's own. CNN and transformer are the widest
sub-networks of the recipes of these names.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, LAYERS, CLASSES = 1024, 8, 10
CHANNELS, STRIDES = (16, 32, 64, 64), (2, 1, 1, 1)
FEATURES, HEADS, HEAD_DIM, FFN, BLOCKS, CONTEXT, VOCABULARY = 128, 4, 32, 512, 4, 64, 65


def part(width: float, *full: int) -> list[int]:
    """The extents that a sub-network of this width keeps."""
    return [round(width * each) for each in full]


class Mlp(nn.Module):
    """LAYERS hidden layers and an output."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        (units,) = part(width, HIDDEN)
        inputs = [HIDDEN] + [units] * (LAYERS - 1)
        self.hidden = nn.ModuleList(nn.Linear(each, units) for each in inputs)
        self.output = nn.Linear(units, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.output(x)


class SlicedMlp(Mlp):
    """The same at several widths."""

    def __init__(self, widths: Sequence[float]) -> None:
        super().__init__()
        self.units = [part(width, HIDDEN)[0] for width in widths]

    def forward(self, x: Tensor, place: int) -> Tensor:
        units = self.units[place]
        for layer in self.hidden:
            x = F.relu(F.linear(x, layer.weight[:units, : x.size(1)], layer.bias[:units]))
        return F.linear(x, self.output.weight[:, :units], self.output.bias)


class NestedLinear(torch.autograd.Function):
    """relu(x W^T + b) of several widths at once, the widest first, their inputs stacked.

    Lane i keeps ``outs[i]`` x ``ins[i]`` of W. Those rectangles lie in each other, so W falls into
    regions, in the r-th of which lanes 0 to r lie: it is read once and multiplied with those lanes'
    rows, which are the leading ones, and its gradient is written once.
    """

    @staticmethod
    def regions(outs: list[int], ins: list[int], batch: int) -> list[tuple[slice, slice, slice]]:
        """Rows of x and y, rows of W, columns of W; each region has two rectangles."""
        result = []
        for r, (out, given) in enumerate(zip(outs, ins, strict=True)):
            below, left = ([*outs, 0][r + 1], [*ins, 0][r + 1])
            rows = slice(0, (r + 1) * batch)
            result.append((rows, slice(below, out), slice(0, given)))
            result.append((rows, slice(0, below), slice(left, given)))
        return [each for each in result if all(s.start < s.stop for s in each)]

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        outs: list[int],
        ins: list[int],
        relu: bool,
    ) -> Tensor:
        batch = len(x) // len(outs)
        y = x.new_zeros(len(x), outs[0])
        for rows, out, given in reversed(NestedLinear.regions(outs, ins, batch)):
            y[rows, out].addmm_(x[rows, given], weight[out, given].t())
        for lane, out in enumerate(outs):
            own = y[lane * batch : (lane + 1) * batch, :out].add_(bias[:out])
            if relu:
                own.clamp_min_(0)
        ctx.save_for_backward(x, weight, y)
        ctx.kept = outs, ins, relu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        outs, ins, relu = ctx.kept
        batch = len(x) // len(outs)
        if relu:
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        dx, dw = torch.zeros_like(x), torch.empty_like(weight)
        db = dy.new_zeros(outs[0])
        for rows, out, given in NestedLinear.regions(outs, ins, batch):
            torch.mm(dy[rows, out].t(), x[rows, given], out=dw[out, given])
            dx[rows, given].addmm_(dy[rows, out], weight[out, given])
        for lane, out in enumerate(outs):
            db[:out] += dy[lane * batch : (lane + 1) * batch, :out].sum(0)
        return dx, dw, db, None, None, None


class NestedMlp(SlicedMlp):
    """The same with all widths in one pass of NestedLinear; x is every width's input."""

    def all_widths(self, x: Tensor) -> Tensor:
        """All widths' outputs on top of each other, the widest first."""
        lanes, ins = len(self.units), [x.size(1)] * len(self.units)
        x = x.repeat(lanes, 1)
        for layer in self.hidden:
            x = NestedLinear.apply(x, layer.weight, layer.bias, self.units, ins, True)
            ins = self.units
        outs = [CLASSES] * lanes
        return NestedLinear.apply(x, self.output.weight, self.output.bias, outs, ins, False)


class Cnn(nn.Module):
    """Four convolutions with batch norm, the last one residual, and an output."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = part(width, *CHANNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(given, made, 3, stride, padding=1, bias=False)
            for given, made, stride in zip([1, *channels[:-1]], channels, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, channels))
        self.output = nn.Linear(channels[-1], CLASSES)

    def stage(self, layer: int, x: Tensor) -> Tensor:
        return F.relu(self.norms[layer](self.convs[layer](x)))

    def features(self, x: Tensor, *place: int) -> Tensor:
        x = self.stage(0, x, *place)
        x = F.max_pool2d(self.stage(1, x, *place), 2)
        x = self.stage(2, x, *place)
        return (x + self.stage(3, x, *place)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x))


class SlicedCnn(Cnn):
    """The same at several widths, with switchable batch norm."""

    def __init__(self, widths: Sequence[float]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(*part(width, full)) for width in widths)
            for full in CHANNELS
        )

    def stage(self, layer: int, x: Tensor, place: int) -> Tensor:
        conv, norm = self.convs[layer], self.norms[layer][place]
        weight = conv.weight[: norm.num_features, : x.size(1)]
        return F.relu(norm(F.conv2d(x, weight, stride=conv.stride, padding=1)))

    def forward(self, x: Tensor, place: int) -> Tensor:
        x = self.features(x, place)
        return F.linear(x, self.output.weight[:, : x.size(1)], self.output.bias)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Causal attention: (B, T, 3 heads HEAD_DIM) to (B, T, heads HEAD_DIM)."""
    q, k, v = qkv.unflatten(-1, (3, heads, HEAD_DIM)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.heads, ffn = part(width, HEADS, FFN)
        self.norm1: nn.Module = nn.LayerNorm(FEATURES)
        self.qkv = nn.Linear(FEATURES, 3 * self.heads * HEAD_DIM)
        self.out = nn.Linear(self.heads * HEAD_DIM, FEATURES)
        self.norm2: nn.Module = nn.LayerNorm(FEATURES)
        self.up = nn.Linear(FEATURES, ffn)
        self.down = nn.Linear(ffn, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend(self.qkv(self.norm1(x)), self.heads))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SlicedBlock(Block):
    """The same at several widths of heads and ffn."""

    def __init__(self, widths: Sequence[float]) -> None:
        super().__init__()
        self.kept = [part(width, HEADS, FFN) for width in widths]
        self.norm1 = nn.ModuleList(nn.LayerNorm(FEATURES) for _ in widths)
        self.norm2 = nn.ModuleList(nn.LayerNorm(FEATURES) for _ in widths)

    def forward(self, x: Tensor, place: int) -> Tensor:
        heads, ffn = self.kept[place]
        rows = heads * HEAD_DIM
        weight = self.qkv.weight.unflatten(0, (3, -1))[:, :rows].flatten(0, 1)
        bias = self.qkv.bias.unflatten(0, (3, -1))[:, :rows].flatten()
        attended = attend(F.linear(self.norm1[place](x), weight, bias), heads)
        x = x + F.linear(attended, self.out.weight[:, :rows], self.out.bias)
        up = F.gelu(F.linear(self.norm2[place](x), self.up.weight[:ffn], self.up.bias[:ffn]))
        return x + F.linear(up, self.down.weight[:, :ffn], self.down.bias)


class Transformer(nn.Module):
    """Next characters: (B, CONTEXT) to (B, CONTEXT, VOCABULARY)."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, FEATURES)
        self.positions = nn.Embedding(CONTEXT, FEATURES)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm: nn.Module = nn.LayerNorm(FEATURES)
        self.output = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


class SlicedTransformer(Transformer):
    """The same at several widths."""

    def __init__(self, widths: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SlicedBlock(widths) for _ in range(BLOCKS))
        self.norm = nn.ModuleList(nn.LayerNorm(FEATURES) for _ in widths)

    def forward(self, x: Tensor, place: int) -> Tensor:
        x = self.tokens(x) + self.positions.weight
        for block in self.blocks:
            x = block(x, place)
        return self.output(self.norm[place](x))


def weights(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters in order, but for those of norms, which all start alike."""
    return [(name, each) for name, each in network.named_parameters() if "norm" not in name]


def copy_weights(full: nn.Module, narrow: nn.Module) -> None:
    """Sets a network's weights to the leading parts of another's."""
    for (_, source), (name, target) in zip(weights(full), weights(narrow), strict=True):
        values, place = source.detach(), target.detach()
        if "qkv" in name:
            values, place = values.unflatten(0, (3, -1)), place.unflatten(0, (3, -1))
        place.copy_(values[tuple(map(slice, place.shape))])


def inputs(network: type[nn.Module]) -> tuple[Tensor, Tensor]:
    """A batch of 64 (MLP), 128 (CNN) or 16 windows (transformer), and its targets."""
    if network is Mlp:
        return torch.rand(64, HIDDEN), torch.randint(CLASSES, (64,))
    if network is Cnn:
        return torch.rand(128, 1, 28, 28), torch.randint(CLASSES, (128,))
    return torch.randint(VOCABULARY, (16, CONTEXT)), torch.randint(VOCABULARY, (16, CONTEXT))
