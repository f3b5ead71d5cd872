"""The blocks of a network as values, without tensors; docs/blocks.md has them as JSON.

In all of them B is the batch and ``*`` any further dimensions, and shapes are those at full width.
``per_subnetwork`` names the parts that each sub-network owns by itself. Activations are "linear"
(none), "relu", "gelu", "silu", "sigmoid" and "tanh"; gated ones are "glu", "reglu", "geglu" and
"swiglu", which multiply one half of the outputs, the value, with sigmoid, relu, gelu or silu of the
other, the gate (Shazeer, "GLU Variants Improve Transformer", 2020).
"""

from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NoReturn

from nsn.checks import kind_of, shown

#: One number for all dimensions, or one for each.
Extents = int | abc.Sequence[int]


_EXTENTS = ("kernel_size", "stride", "padding", "dilation", "output_padding", "scale_factor")


class BlockOptions:
    """What all blocks have in common."""

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: it describes a block, and computes nothing."""
        raise TypeError(
            f"nsn.{type(self).__name__} describes a block, and computes nothing. Put it into "
            f"nsn.Network(blocks={{...}}), and call that."
        )

    def _document(self) -> dict[str, Any]:
        """The block as docs/blocks.md has it, without its name; what is None is left out."""
        document: dict[str, Any] = {"type": type(self).__name__}
        for field in fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            value = getattr(self, field.name)
            if field.name == "blocks":
                value = _documents(value, f"nsn.{type(self).__name__}")
            elif field.name == "keeps_dropout":
                _mark(document["blocks"], value, f"nsn.{type(self).__name__}")
                continue
            elif field.name == "per_subnetwork":
                value = _names(value, type(self).__name__)
            elif isinstance(value, tuple):
                value = list(value)
            elif field.name in ("activation", "function") and not isinstance(value, str):
                raise TypeError(
                    f"nsn.{type(self).__name__}: {field.name} must be a name, but is a "
                    f'{getattr(value, "__name__", type(value).__name__)}. Write "relu", "gelu", ...'
                )
            elif field.name in _EXTENTS and isinstance(value, str):
                raise TypeError(
                    f"nsn.{type(self).__name__}: {field.name} must be a number, or one for each "
                    f"dimension, but is '{value}'. Write it as a number."
                )
            if value is not None:
                document[field.name] = value
        return document


def _documents(blocks: Mapping[str, BlockOptions], owner: str) -> list[dict[str, Any]]:
    """Named blocks as a list of documents, each with its name."""
    if not isinstance(blocks, Mapping):
        raise TypeError(
            f"{owner}: blocks must be a dict of names, but is a {type(blocks).__name__}. Write "
            f'{{"name": nsn.Dense(...), ...}}.'
        )
    for name, block in blocks.items():
        if not isinstance(block, BlockOptions):
            raise TypeError(
                f"{owner}: block '{name}' must be a block such as nsn.Dense, but is a "
                f"{type(block).__name__}."
            )
    return [{"name": name, **block._document()} for name, block in blocks.items()]


def _mark(blocks: list[dict[str, Any]], keeps_dropout: Iterable[str], owner: str) -> None:
    """Writes down which inner blocks a sub-network's own dropout does not hold for."""
    names = [keeps_dropout] if isinstance(keeps_dropout, str) else list(keeps_dropout)
    known = {block["name"]: block for block in blocks}
    for name in names:
        if name not in known:
            raise ValueError(
                f"{owner}: keeps_dropout names {shown(name)}, which is no block inside. They are "
                f"{', '.join(map(repr, known))}."
            )
        known[name]["takes_dropout"] = False


def _names(parts: Iterable[str], owner: str) -> list[str]:
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise TypeError(
            f"nsn.{owner}: per_subnetwork must be a list of parts, but is {kind_of(parts)}. Write "
            f'["{parts if isinstance(parts, str) else "bias"}"].'
        )
    # A set has another order in each process, but one network is to have one document.
    return sorted(parts) if isinstance(parts, abc.Set) else list(parts)


@dataclass(frozen=True)
class Dense(BlockOptions):
    """y = dropout(activation(scale * (x W^T) + bias)), as ``torch.nn.Linear`` with what follows it.

    Shapes: x ``(B, *, in_features)``, y ``(B, *, out_features)``; parameters ``weight``
    ``(out_features, in_features)``, ``scale`` and ``bias`` ``(out_features)``; a gated activation
    has ``2 * out_features`` there, the value's rows before the gate's. Width: ``out``.

    Attributes:
        in_features: the last extent of the input, at least 1.
        out_features: the last extent of the output, at least 1.
        bias: whether to add a bias.
        activation: the activation; may be gated.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
        weight_init: how the weight starts: "kaiming_uniform", as ``torch.nn.Linear``'s, or
            "xavier_uniform".
        bias_init: the value that all biases start with, finite; None is as ``torch.nn.Linear``'s.
        scale: whether to multiply each output feature with a parameter, which starts at 1.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias", "scale".
    """

    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "linear"
    dropout: float = 0.0
    weight_init: str = "kaiming_uniform"
    bias_init: float | None = None
    _: KW_ONLY
    scale: bool = False
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class Conv1d(BlockOptions):
    """y = dropout(activation(scale * (W * x) + bias)), ``*`` as in ``torch.nn.Conv1d``.

    Shapes: x ``(B, in_channels, L)``, y ``(B, out_channels, L')``; parameters ``weight``
    ``(out_channels, in_channels / groups, kernel_size)``, ``scale`` and ``bias``
    ``(out_channels)``; gated: ``2 * out_channels``. Width: ``out``, a multiple of ``groups``;
    depthwise (``groups`` = ``in_channels`` = ``out_channels``) none, being as wide as the input.

    Attributes:
        in_channels: the number of channels of the input, at least 1.
        out_channels: the number of channels of the output, at least 1.
        kernel_size: the extent of the kernel, at least 1.
        stride: the step from one position of the kernel to the next, at least 1.
        padding: the number of positions to add at each end, at least 0.
        dilation: the step from one element of the kernel to the next, at least 1.
        groups: the number of groups of channels, which do not see one another, at least 1.
        bias: whether to add a bias.
        causal: whether to pad (``kernel_size`` - 1) * ``dilation`` zeros in front and none behind,
            so that a position sees none after it; ``padding`` must be 0.
        scale: whether to multiply each output feature with a parameter, which starts at 1.
        activation: the activation; may be gated.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
        weight_init: how the weight starts: "kaiming_uniform", as ``torch.nn.Linear``'s, or
            "xavier_uniform".
        bias_init: the value that all biases start with, finite; None is as ``torch.nn.Linear``'s.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias", "scale".
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    _: KW_ONLY
    causal: bool = False
    scale: bool = False
    activation: str = "linear"
    dropout: float = 0.0
    weight_init: str = "kaiming_uniform"
    bias_init: float | None = None
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class Conv2d(BlockOptions):
    """y = dropout(activation(scale * (W * x) + bias)), ``*`` as in ``torch.nn.Conv2d``.

    Shapes: x ``(B, in_channels, H, W)``, y ``(B, out_channels, H', W')``; parameters ``weight``
    ``(out_channels, in_channels / groups, *kernel_size)``, ``scale`` and ``bias``
    ``(out_channels)``; gated: ``2 * out_channels``. Width: as of :class:`Conv1d`.

    Attributes:
        in_channels: the number of channels of the input, at least 1.
        out_channels: the number of channels of the output, at least 1.
        kernel_size: the extent of the kernel, at least 1; a number, or ``(height, width)``.
        stride: the step from one position of the kernel to the next, at least 1; a number, or
            ``(height, width)``.
        padding: the number of positions to add at each end, at least 0; a number, or
            ``(height, width)``.
        dilation: the step from one element of the kernel to the next, at least 1; a number, or
            ``(height, width)``.
        groups: the number of groups of channels, which do not see one another, at least 1.
        bias: whether to add a bias.
        scale: whether to multiply each output feature with a parameter, which starts at 1.
        activation: the activation; may be gated.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
        weight_init: how the weight starts: "kaiming_uniform", as ``torch.nn.Linear``'s, or
            "xavier_uniform".
        bias_init: the value that all biases start with, finite; None is as ``torch.nn.Linear``'s.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias", "scale".
    """

    in_channels: int
    out_channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    dilation: Extents = 1
    groups: int = 1
    bias: bool = True
    _: KW_ONLY
    scale: bool = False
    activation: str = "linear"
    dropout: float = 0.0
    weight_init: str = "kaiming_uniform"
    bias_init: float | None = None
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class ConvTranspose2d(BlockOptions):
    """y = dropout(activation(W^T * x + bias)), as ``torch.nn.ConvTranspose2d`` without groups.

    Shapes: x ``(B, in_channels, H, W)``, y ``(B, out_channels, H', W')``; parameters ``weight``
    ``(in_channels, out_channels, *kernel_size)`` and ``bias`` ``(out_channels)``. Width: ``out``.

    Attributes:
        in_channels: the number of channels of the input, at least 1.
        out_channels: the number of channels of the output, at least 1.
        kernel_size: the extent of the kernel, at least 1; a number, or ``(height, width)``.
        stride: the step from one position of the kernel to the next, at least 1; a number, or
            ``(height, width)``.
        padding: the number of positions to take off the output at each end, as torch counts them,
            at least 0; a number, or ``(height, width)``.
        output_padding: the number of positions to add to the output at the far end, at least 0; a
            number, or ``(height, width)``.
        bias: whether to add a bias.
        dilation: the step from one element of the kernel to the next, at least 1; a number, or
            ``(height, width)``.
        activation: the activation, not gated.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias".
    """

    in_channels: int
    out_channels: int
    kernel_size: Extents
    stride: Extents = 1
    padding: Extents = 0
    output_padding: Extents = 0
    _: KW_ONLY
    bias: bool = True
    dilation: Extents = 1
    activation: str = "linear"
    dropout: float = 0.0
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class Upsample(BlockOptions):
    """As ``torch.nn.Upsample`` (align_corners = False): ``(B, C, H, W)`` to ``(B, C, s H, s W)``.

    Attributes:
        scale_factor: the number of positions that each becomes, in height and in width, at least 1.
        mode: the interpolation, "nearest" or "bilinear".
    """

    scale_factor: int
    mode: str = "nearest"


@dataclass(frozen=True)
class MaxPool1d(BlockOptions):
    """As ``torch.nn.MaxPool1d``: ``(B, C, L)`` to ``(B, C, L')``.

    Attributes:
        kernel_size: the extent of the kernel, at least 1.
        stride: the step from one position of the kernel to the next, at least 1; None is
            ``kernel_size``.
        padding: the number of positions to add at each end, at least 0.
    """

    kernel_size: int
    stride: int | None = None
    padding: int = 0


@dataclass(frozen=True)
class MaxPool2d(BlockOptions):
    """As ``torch.nn.MaxPool2d``: ``(B, C, H, W)`` to ``(B, C, H', W')``.

    Attributes:
        kernel_size: the extent of the kernel, at least 1; a number, or ``(height, width)``.
        stride: the step from one position of the kernel to the next, at least 1; a number, or
            ``(height, width)``; None is ``kernel_size``.
        padding: the number of positions to add at each end, at least 0; a number, or
            ``(height, width)``.
    """

    kernel_size: Extents
    stride: Extents | None = None
    padding: Extents = 0


@dataclass(frozen=True)
class AvgPool1d(BlockOptions):
    """As ``torch.nn.AvgPool1d``, counting its padding: ``(B, C, L)`` to ``(B, C, L')``.

    Attributes:
        kernel_size: the extent of the kernel, at least 1.
        stride: the step from one position of the kernel to the next, at least 1; None is
            ``kernel_size``.
        padding: the number of positions to add at each end, at least 0.
    """

    kernel_size: int
    stride: int | None = None
    padding: int = 0


@dataclass(frozen=True)
class AvgPool2d(BlockOptions):
    """As ``torch.nn.AvgPool2d``, counting its padding: ``(B, C, H, W)`` to ``(B, C, H', W')``.

    Attributes:
        kernel_size: the extent of the kernel, at least 1; a number, or ``(height, width)``.
        stride: the step from one position of the kernel to the next, at least 1; a number, or
            ``(height, width)``; None is ``kernel_size``.
        padding: the number of positions to add at each end, at least 0; a number, or
            ``(height, width)``.
    """

    kernel_size: Extents
    stride: Extents | None = None
    padding: Extents = 0


@dataclass(frozen=True)
class GlobalAvgPool(BlockOptions):
    """The mean over all positions: ``(B, C, *)`` to ``(B, C)``."""


@dataclass(frozen=True)
class Flatten(BlockOptions):
    """``(B, *)`` to ``(B, N)``, N being the product of ``*``.

    The block behind it reads the right features of a narrower sub-network: the leading channels,
    or the leading part of each position.
    """


@dataclass(frozen=True)
class Embedding(BlockOptions):
    """y = dropout(E[x]), as ``torch.nn.Embedding``.

    Shapes: x ``(B, *)``, integral, y ``(B, *, embedding_dim)``; parameter ``weight``
    ``(num_embeddings, embedding_dim)``. Width: ``out``.

    Attributes:
        num_embeddings: the number of rows of E, at least 1; x is from 0 to ``num_embeddings`` - 1.
        embedding_dim: the last extent of the output, at least 1.
        std: the standard deviation of the normal distribution that the weight starts with, from 0
            to 1e+06.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
    """

    num_embeddings: int
    embedding_dim: int
    std: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True)
class PositionEmbedding(BlockOptions):
    """y = dropout(x + P[:T]).

    Shapes: x and y ``(B, T, features)``; parameter ``weight`` ``(length, features)``.

    Attributes:
        length: the largest T, at least 1.
        features: the last extent of the input, at least 1.
        std: the standard deviation of the normal distribution that the weight starts with, from 0
            to 1e+06.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
    """

    length: int
    features: int
    std: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True)
class TiedOutput(BlockOptions):
    """y = x E^T + bias with an embedding's E (Press & Wolf, "Using the Output Embedding", 2017).

    A sub-network's gradient of E is the sum over its two uses. Shapes: x ``(B, *, embedding_dim)``,
    y ``(B, *, num_embeddings)``; parameter ``bias`` ``(num_embeddings)``.

    Attributes:
        embedding: the name of the Embedding block.
        num_embeddings: the ``num_embeddings`` of that block, at least 1.
        embedding_dim: the ``embedding_dim`` of that block, at least 1.
        bias: whether to add a bias.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias".
    """

    embedding: str
    num_embeddings: int
    embedding_dim: int
    bias: bool = False
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class LayerNorm(BlockOptions):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    As ``torch.nn.LayerNorm``, at the width that the sub-network has. Shapes: x and y
    ``(B, *, features)``; parameters ``weight`` and ``bias`` ``(features)``.

    Attributes:
        features: the last extent of the input, at least 1.
        eps: the addend to the variance.
        affine: whether to multiply with a weight and add a bias.
        bias: whether ``affine`` adds a bias.
        per_subnetwork: the parts that each sub-network owns by itself, of "affine".
    """

    features: int
    eps: float = 1e-5
    affine: bool = True
    bias: bool = True
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class RMSNorm(BlockOptions):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    As ``torch.nn.RMSNorm``, at the width that the sub-network has (Zhang & Sennrich, "Root Mean
    Square Layer Normalization", 2019). Shapes: x and y ``(B, *, features)``; parameter ``weight``
    ``(features)``.

    Attributes:
        features: the last extent of the input, at least 1.
        eps: the addend to the mean square.
        affine: whether to multiply with a weight.
        per_subnetwork: the parts that each sub-network owns by itself, of "affine".
    """

    features: int
    eps: float = 1e-5
    affine: bool = True
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class GroupNorm(BlockOptions):
    """As ``torch.nn.GroupNorm``; a narrower input is whole groups or the leading part of each.

    Shapes: x and y ``(B, channels, *)``; parameters ``weight`` and ``bias`` ``(channels)``.

    Attributes:
        groups: the number of groups of channels, at least 1.
        channels: the number of channels of the input, at least 1.
        eps: the addend to the variance.
        affine: whether to multiply with a weight and add a bias.
        per_subnetwork: the parts that each sub-network owns by itself, of "affine".
    """

    groups: int
    channels: int
    eps: float = 1e-5
    affine: bool = True
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class BatchNorm(BlockOptions):
    """As ``torch.nn.BatchNorm1d`` and ``2d``; each sub-network by the statistics of its own batch.

    Shapes: x and y ``(B, features)`` or ``(B, features, *)``; parameters ``weight`` and ``bias``,
    buffers ``running_mean`` and ``running_var`` ``(features)``, ``num_batches_tracked`` ``()``.

    ``per_subnetwork=["affine", "statistics"]`` is switchable batch norm (Yu et al., "Slimmable
    Neural Networks", 2019); ``per_subnetwork=["statistics"], track=False``, with statistics made
    afterwards, is that of "Universally Slimmable Networks" (Yu & Huang, 2019).

    Attributes:
        features: the number of channels, or features, of the input, at least 1.
        eps: the addend to the variance.
        momentum: the step of the running statistics towards the batch's, from 0 to 1.
        affine: whether to multiply with a weight and add a bias.
        track: whether a training pass updates the running statistics.
        per_subnetwork: the parts that each sub-network owns by itself, of "affine", "statistics".
    """

    features: int
    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    track: bool = True
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class Activation(BlockOptions):
    """y = function(x).

    Attributes:
        function: the activation, not gated.
    """

    function: str


@dataclass(frozen=True)
class Dropout(BlockOptions):
    """As ``torch.nn.Dropout``.

    Attributes:
        p: the probability that an element is dropped in training, from 0 to 1.
    """

    p: float


@dataclass(frozen=True)
class Sequence(BlockOptions):
    """Blocks in order, kept or dropped as a whole.

    Dimensions and parameters have the inner block's name in front: ``stage.conv1.weight``,
    ``width={"stage": {"conv1.out": 16}}``. A sub-network's own dropout holds for all inside.

    Attributes:
        blocks: the blocks inside, from input to output.
        keeps_dropout: those whose dropout stays their own where a sub-network sets one.
    """

    blocks: Mapping[str, BlockOptions]
    keeps_dropout: Iterable[str] = ()


@dataclass(frozen=True)
class Residual(BlockOptions):
    """y = x + f(x), f being blocks in order; x and f(x) have one shape.

    Otherwise as :class:`Sequence`. The last block inside that has the dimension ``out`` is as wide
    as the input.

    Attributes:
        blocks: the blocks inside, from input to output.
        keeps_dropout: those whose dropout stays their own where a sub-network sets one.
    """

    blocks: Mapping[str, BlockOptions]
    keeps_dropout: Iterable[str] = ()


@dataclass(frozen=True)
class Attention(BlockOptions):
    """y = dropout(concat_h(softmax(Q_h K_h^T / sqrt(head_dim) + mask) V_h) W_out^T + b_out).

    Q, K and V are x's products with ``qkv.weight``. Shapes: x and y ``(B, T, features)``;
    parameters ``qkv.weight`` ``(3 * heads * head_dim, features)``, ``qkv.bias``, ``out.weight``
    ``(features, heads * head_dim)``, ``out.bias``. Width: ``heads``. Source: Vaswani et al.,
    "Attention Is All You Need", 2017.

    Attributes:
        features: the last extent of the input, at least 1.
        heads: the number of heads, at least 1.
        head_dim: the width of a head, at least 1; None is ``features`` / ``heads``.
        causal: whether a position sees only itself and those before.
        bias: whether to add biases.
        dropout: the probability that an element of the output is dropped in training, from 0 to 1.
        per_subnetwork: the parts that each sub-network owns by itself, of "bias".
    """

    features: int
    heads: int
    head_dim: int | None = None
    causal: bool = False
    bias: bool = True
    dropout: float = 0.0
    per_subnetwork: Iterable[str] = ()


@dataclass(frozen=True)
class Transformer(BlockOptions):
    """The pre-norm block: h = x + attention(norm(x)), y = h + ffn(norm(h)).

    A :class:`Sequence` of the :class:`Residual` blocks ``attention`` (``norm``, ``self``) and
    ``ffn`` (``norm``, ``up``, ``down``), whose parameters are called so:
    ``block1.attention.self.qkv.weight``, ``block1.ffn.up.weight``. Shapes: x and y
    ``(B, T, features)``. Widths: ``heads``, ``ffn``. Source: Xiong et al., "On Layer Normalization
    in the Transformer Architecture", 2020.

    Attributes:
        features: the last extent of the input, at least 1.
        heads: the number of heads, at least 1.
        ffn: the width of the hidden layer, at least 1.
        head_dim: the width of a head, at least 1; None is ``features`` / ``heads``.
        causal: whether a position sees only itself and those before.
        bias: whether to add biases.
        activation: the activation of the hidden layer; may be gated.
        dropout: the probability that an element is dropped in training, behind attention and behind
            ffn, from 0 to 1.
        norm: the kind of norm, "layer" or "rms".
        per_subnetwork: the parts that each sub-network owns by itself, of "affine", "bias".
    """

    features: int
    heads: int
    ffn: int
    _: KW_ONLY
    head_dim: int | None = None
    causal: bool = False
    bias: bool = True
    activation: str = "gelu"
    dropout: float = 0.0
    norm: str = "layer"
    per_subnetwork: Iterable[str] = ()
