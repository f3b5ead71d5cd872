"""What the library should compute, from plain torch, one sub-network at a time."""

from collections.abc import Callable, Mapping

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
    if rule == "median":
        return stacked.median(0).values
    if rule == "difference":  # linear, but given as a function
        return stacked[0] - 0.5 * stacked[-1]
    raise AssertionError(rule)
