"""Merge rules: how the lanes' gradients of a shared parameter become one gradient.

A rule acts per element, on the lanes of the pass whose slice covers that element, whether or not
their output entered the loss: a lane without a gradient counts as zero, and where no lane has one
there is none.

A narrow sub-network covers the leading part of a parameter alone. With ``mean``, of a full one and
one that keeps 1 x 2 of a 2 x 2 weight, the gradients ``[[2, 4], [6, 8]]`` and ``[[6, 8]]`` become
``[[(2 + 6) / 2, (4 + 8) / 2], [6, 8]]``: the full one alone has the second row. Slices may cross.

Worked example for all rules below: a weight that ``base``, ``sub1`` and ``sub2`` share, with the
gradients 6, 3 and 1 at an element that all three cover; ``sub2`` is the smallest, ``base`` the
largest. *Smaller* means fewer parameters, then the order of declaration.
"""

from collections.abc import Callable, Mapping

import torch

from nsn._C import merge as _merge
from nsn._C.merge import LaneGradient, Rule
from nsn.checks import expect, expect_callable, numbers_of

__all__ = [
    "LaneGradient",
    "Rule",
    "equal_norms",
    "function",
    "gradient_surgery",
    "mean",
    "owner",
    "sum",
    "two_smallest_mean",
    "weighted",
]


def sum() -> Rule:
    """The plain derivative of the summed loss: 6 + 3 + 1 = 10. What autograd would do."""
    return _merge.sum()


def mean() -> Rule:
    """The mean over the lanes that cover the element: (6 + 3 + 1) / 3."""
    return _merge.mean()


def two_smallest_mean() -> Rule:
    """The mean of the two smallest lanes, larger ones dropped: (3 + 1) / 2 = 2.

    Where base alone covers the element: 6. Source: "Networks with Sub-Networks" (Fuengfusin &
    Tamukoh, ICAROB 2020).
    """
    return _merge.two_smallest_mean()


def owner() -> Rule:
    """The gradient of the smallest lane alone: 1."""
    return _merge.owner()


def gradient_surgery() -> Rule:
    """The sum of the gradients without what conflicts with another one.

    Where ``g_i . g_j < 0``, over what both slices cover, ``g_i`` loses its part along ``g_j``; the
    most conflicting one is taken first, and what is no more than rounding beside the largest
    conflicts with nobody. Not linear, and of a whole parameter at a time, not of the
    whole network. Of ``(1, 1)`` and ``(-1, 0)`` the former becomes ``(0, 1)``, the latter
    ``(-0.5, 0.5)``, their sum ``(-0.5, 1.5)``. Source: PCGrad, Yu et al., "Gradient Surgery for
    Multi-Task Learning", 2020, which takes them in random order.
    """
    return _merge.gradient_surgery()


def equal_norms() -> Rule:
    """The mean of the gradients, each scaled to the same size: (6 + 3 + 1) / 3 here.

    The size is the root mean square over the lane's slice, and the common one is the mean of all
    that are more than rounding beside the largest. Not linear, and of a whole parameter at a time.
    Source: the aim of GradNorm (Chen et al., 2018), reached at once instead of by learned weights.
    """
    return _merge.equal_norms()


def weighted(coefficients: Mapping[str, float]) -> Rule:
    """A coefficient for each sub-network, not divided by their sum.

    With ``{"base": 0.5, "sub1": 1, "sub2": 2}``: 0.5 * 6 + 1 * 3 + 2 * 1 = 8.

    Args:
        coefficients: sub-network's name to coefficient; each that uses the parameter is named.

    Raises:
        ValueError: where there is no coefficient, or, when the network is built, where a name is
            unknown or missing.
    """
    where = "nsn.merge.weighted: coefficients"
    return _merge.weighted(numbers_of(where, "the coefficient", coefficients))


def function(
    function: Callable[[list[LaneGradient]], torch.Tensor], name: str | None = None
) -> Rule:
    """Any function of the lanes' gradients, linear or not, for example their median: 3.

    Args:
        function: gets one :class:`LaneGradient` (``name``, ``slice``, ``gradient`` of the slice's
            shape, ``parameter_shape``; ``padded()`` is the gradient in that shape, with zeros where
            the lane does not reach) for each lane that used the parameter, in the order in which
            the pass named them; returns the merged gradient in the parameter's full shape. It runs
            inside backward, once for each parameter.
        name: what stands for the rule in a checkpoint, which cannot hold the function; ``load``
            takes it again by this name. Default: the function's own name.
    """
    takes = "a function of a list of LaneGradient that returns a tensor"
    expect_callable("nsn.merge.function: function", function, takes)
    if name is not None:
        expect("nsn.merge.function: name", name, str, "a str")
    own: str = getattr(function, "__name__", "function")
    return _merge.function(name or own, function)
