"""Functions on tensors: sharing a parameter among lanes, and the joint loss."""

import numbers
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from nsn import _C
from nsn._C.merge import Rule
from nsn.checks import expect, expect_callable, expect_name, names_of


def share(
    parameter: Tensor,
    slices: Sequence[Sequence[int]],
    rule: Rule,
    names: Sequence[str] | None = None,
) -> list[Tensor]:
    """One tensor for each lane, whose backward merges into one gradient of the parameter.

    The primitive below all merging; the results may be used with any torch operation. They are
    views of the parameter's storage; do not modify them in place.

    Args:
        parameter: the shared tensor.
        slices: for each lane its slice, one extent a dimension: ``(s0, s1)`` means
            ``parameter[:s0, :s1]``. Slices may be of different sizes and may cross.
        rule: from :mod:`nsn.merge`. The smaller lane is the one with the smaller slice, then the
            one given first.
        names: the lanes' names, for ``weighted`` and functions; default "0", "1", ...

    Returns:
        One tensor for each slice, of the slice's shape.

    Raises:
        ValueError: where a slice does not fit the parameter.
    """
    expect("nsn.share: parameter", parameter, Tensor, "a torch.Tensor")
    expect("nsn.share: rule", rule, Rule, "a merge rule, such as nsn.merge.mean()")
    shapes = []
    for each in slices:
        expect("nsn.share: each slice", each, Sequence, "a shape, a tuple of ints")
        for extent in each:
            expect("nsn.share: each extent of a slice", extent, numbers.Integral, "an int")
        shapes.append([int(extent) for extent in each])
    return _C.share(parameter, shapes, rule, names_of("nsn.share: names", names or []))


def joint_loss(
    outputs: Mapping[str, Tensor],
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """sum_l w_l * loss(output_l, targets) over the outputs of a joint pass.

    Args:
        outputs: what ``net(x, nsn.ALL)`` returned: name to ``(B, *output)``.
        targets: for the default loss class indices ``(B, *)``, -100 being left out, or
            probabilities ``(B, C, *)``.
        loss: takes one output and the targets, returns a scalar. Default: cross entropy, mean over
            the batch; all outputs of one shape go through it in one pass.
        weights: name to w_l; 1 for those not named. A weight scales the lane's gradients of
            parameters and input.

    Returns:
        A scalar.

    Raises:
        ValueError: where there is no output, a weight names none of them, or ``loss`` returns no
            scalar.
    """
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"nsn.joint_loss: expected a dict of outputs, but got a {type(outputs).__name__}. Pass "
            f"what net(x, nsn.ALL) returned."
        )
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"nsn.joint_loss: expected targets as a torch.Tensor, but got a "
            f"{type(targets).__name__}. Convert them with torch.as_tensor, or pass the one that is "
            f"meant."
        )
    for name, output in outputs.items():
        if not isinstance(output, Tensor):
            raise TypeError(
                f"nsn.joint_loss: output '{name}' must be a torch.Tensor, but is a "
                f"{type(output).__name__}. Pass what net(x, nsn.ALL) returned."
            )
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(
            f"nsn.joint_loss: weights must be a dict of names, but is a {type(weights).__name__}. "
            f'Write {{"base": 1.0, ...}}.'
        )
    for name, weight in (weights or {}).items():
        expect_name("nsn.joint_loss: each name of weights", name)
        expect(f"nsn.joint_loss: the weight of '{name}'", weight, numbers.Real, "a number")
    if loss is not None:
        expect_callable("nsn.joint_loss: loss", loss, "a function of an output and the targets")
    weights = {name: float(weight) for name, weight in (weights or {}).items()}
    return _C.joint_loss(list(outputs.items()), targets, loss, weights)
