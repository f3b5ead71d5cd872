"""Functions on tensors: sharing a parameter among lanes, and the joint loss."""

import numbers
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from nsn import _C
from nsn._C.merge import Rule
from nsn.checks import expect, expect_callable, expect_name, names_of, numbers_of
from nsn.teach import Teacher

#: Of one output and its targets, a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]


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
    targets: Tensor | Mapping[str, Tensor],
    loss: Loss | Mapping[str, Loss] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    teach: Teacher | None = None,
    label_smoothing: float | Mapping[str, float] = 0.0,
) -> Tensor:
    """sum_l w_l * loss(output_l, targets_l) over the outputs of a joint pass.

    Args:
        outputs: what ``net(x, nsn.ALL)`` returned: name to ``(B, *output)``.
        targets: for the default loss class indices ``(B, *)``, -100 being left out (by teachers
            too), or probabilities ``(B, C, *)``. A dict by name where sub-networks have targets of
            their own.
        loss: takes one output and its targets, returns a scalar. Default: cross entropy, mean over
            the batch; all outputs of one shape go through it in one pass, with what they learn from
            each other. A dict by name where some have a loss of their own.
        weights: name to w_l; 1 for those not named. A weight scales the lane's gradients of
            parameters and input.
        teach: whose outputs they learn from beside the targets, from :mod:`nsn.teach`.
        label_smoothing: the share of each target that all classes have alike, from 0 to 1, as in
            ``torch.nn.functional.cross_entropy`` (Szegedy et al., "Rethinking the Inception
            Architecture for Computer Vision", 2015). A dict by name where some have one of their
            own; 0 for those not named.

    Returns:
        A scalar.

    Raises:
        ValueError: where there is no output, an argument names none of them, a loss returns no
            scalar, a teacher is missing or of another shape, or an option has no use: label
            smoothing, or a teacher whose ``by`` was not said, beside a loss of one's own.
    """
    where = "nsn.joint_loss"
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"{where}: expected a dict of outputs, but got a {type(outputs).__name__}. Pass "
            f"what net(x, nsn.ALL) returned."
        )
    for name, output in outputs.items():
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{where}: output '{name}' must be a torch.Tensor, but is a "
                f"{type(output).__name__}. Pass what net(x, nsn.ALL) returned."
            )
    each: dict[str, Tensor] = {}
    if isinstance(targets, Mapping):
        for name, target in targets.items():
            expect_name(f"{where}: each name of targets", name)
            expect(f"{where}: the targets of '{name}'", target, Tensor, "a torch.Tensor")
        each = dict(targets)
        if not each:
            raise ValueError(f"{where}: targets is an empty dict. Name each output's targets.")
    elif not isinstance(targets, Tensor):
        raise TypeError(
            f"{where}: expected targets as a torch.Tensor, but got a "
            f"{type(targets).__name__}. Convert them with torch.as_tensor, or pass the one that is "
            f"meant."
        )
    losses: dict[str, Loss] = {}
    if isinstance(loss, Mapping):
        for name, own in loss.items():
            expect_name(f"{where}: each name of loss", name)
            expect_callable(f"{where}: the loss of '{name}'", own, "a function")
        losses, loss = dict(loss), None
    elif loss is not None:
        expect_callable(f"{where}: loss", loss, "a function of an output and the targets")
    if teach is not None:
        expect(f"{where}: teach", teach, Teacher, "a teacher, such as nsn.teach.base(net)")
    smoothings: dict[str, float] = {}
    if isinstance(label_smoothing, Mapping):
        smoothings = numbers_of(f"{where}: label_smoothing", "the share", label_smoothing)
        label_smoothing = 0.0
    else:
        kind = "a number or a dict of numbers by name"
        expect(f"{where}: label_smoothing", label_smoothing, numbers.Real, kind)
    return _C.joint_loss(
        list(outputs.items()),
        each,
        None if isinstance(targets, Mapping) else targets,
        {name: _scalar(own) for name, own in losses.items()},
        None if loss is None else _scalar(loss),
        numbers_of(f"{where}: weights", "the weight", {} if weights is None else weights),
        float(label_smoothing),
        smoothings,
        None if teach is None else teach._teacher,
    )


def _scalar(loss: Loss) -> Loss:
    """A loss that is refused where it returns no tensor."""

    def checked(output: Tensor, target: Tensor) -> Tensor:
        value = loss(output, target)
        expect("nsn.joint_loss: what a loss returns", value, Tensor, "a torch.Tensor of one number")
        return value

    return checked
