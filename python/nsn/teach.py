"""Teachers: whose outputs sub-networks learn from, beside the targets.

With ``joint_loss(outputs, targets, teach=...)`` the loss of a learner becomes::

    (1 - weight) * loss(output, target) + weight * distance(output, what the teacher says)

No gradient goes through it to the teacher. For classes the distance is the cross entropy of
``softmax(output / T)`` from ``softmax(teacher / T)``, times ``T ** 2`` so that gradients stay as
large, with ``T`` the temperature (Hinton et al., "Distilling the Knowledge in a Neural Network",
2015); for numbers it is the mean squared error.

Worked example: two classes, ``base`` gives the probabilities 0.8 and 0.2, ``sub`` 0.5 and 0.5, and
class 0 is right. With ``teach=nsn.teach.base(net, weight=0.25)`` the loss of ``sub`` is
``0.75 * -log(0.5) + 0.25 * (-0.8 * log(0.5) - 0.2 * log(0.5)) = 0.693``, and its gradient with
respect to its logits ``0.5 - (0.75 * 1 + 0.25 * 0.8) = -0.45`` and ``0.5 - 0.25 * 0.2 = 0.45``.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nsn._C import Teacher as _Teacher
from nsn.checks import expect, expect_batch, expect_callable, numbers_of, shown
from nsn.description import Description
from nsn.parameters import ParameterTable, description_in

__all__ = ["Teacher", "base", "mutual", "next_larger", "outside"]


class Teacher:
    """Made by the functions of this module; copies and pickles teach as it does."""

    def __init__(self, teacher: _Teacher, made: tuple[Any, ...]) -> None:
        self._teacher = teacher
        self._made = made  # of what

    def __reduce__(self) -> tuple[Any, ...]:
        return _teacher, self._made

    def __repr__(self) -> str:
        return repr(self._teacher)


#: The share of the loss that is a teacher's: of all learners, or of each by name (those that are
#: not named: 0.5).
Weight = float | Mapping[str, float]


def base(
    network: ParameterTable | Description,
    weight: Weight = 0.5,
    temperature: float = 1.0,
    by: str | None = None,
) -> Teacher:
    """All others learn from ``base``; a pass without it is refused.

    Source: in-place distillation, Yu & Huang, "Universally Slimmable Networks and Improved Training
    Techniques", 2019, which is ``weight=1``.

    Args:
        network: whose sub-networks learn, or its description.
        weight: how much of a learner's loss is its teacher's, from 0 to 1; a dict by name, in which
            those that are not named have 0.5.
        temperature: what logits are divided by; for classes alone.
        by: "cross_entropy" or "squared_error". Default: the former, where the loss is cross
            entropy; beside a loss of one's own it has to be said.

    Raises:
        ValueError: for a name that the network does not have or that never learns here, a weight
            outside of 0 to 1, or a temperature that is not positive.
    """
    return _teacher("base", network, weight, temperature, by)


def next_larger(
    network: ParameterTable | Description,
    weight: Weight = 0.5,
    temperature: float = 1.0,
    by: str | None = None,
) -> Teacher:
    """Each learns from the next larger one of the pass; the largest has the targets alone.

    Larger means more parameters, then the order of declaration. Arguments and errors are those of
    :func:`base`.
    """
    return _teacher("next_larger", network, weight, temperature, by)


def mutual(
    network: ParameterTable | Description,
    weight: Weight = 0.5,
    temperature: float = 1.0,
    by: str | None = None,
) -> Teacher:
    """Each learns from the mean of all others of the pass, of their probabilities or numbers.

    One that runs by itself has the targets alone. Arguments and errors are those of :func:`base`.
    Source: Zhang et al., "Deep Mutual Learning", 2018, which adds the distances where this takes
    their mean.
    """
    return _teacher("mutual", network, weight, temperature, by)


def outside(
    network: ParameterTable | Description,
    teacher: Tensor | Callable[[Tensor], Tensor],
    x: Tensor | None = None,
    weight: Weight = 0.5,
    temperature: float = 1.0,
    by: str | None = None,
) -> Teacher:
    """All learn from another network's output for the same batch.

    Args:
        network: whose sub-networks learn, or its description.
        teacher: its output, of the shape of theirs; or a module, a view or a function that gives it
            for ``x``, which is not recorded. A module has to be in ``eval()``.
        x: the batch, where ``teacher`` is to be called.
        weight: as in :func:`base`.
        temperature: as in :func:`base`.
        by: as in :func:`base`.

    Raises:
        ValueError: as in :func:`base`, and for a module that is in ``train()`` or has no ``x``.
    """
    if not isinstance(teacher, Tensor):
        expect_callable("nsn.teach.outside: teacher", teacher, "a tensor, or what gives one")
        if x is None:
            raise ValueError(
                "nsn.teach.outside: the teacher is to be called, but there is no batch to call it "
                "with. Pass x, or the teacher's output."
            )
        expect_batch("nsn.teach.outside: x", x)
        if isinstance(teacher, nn.Module) and any(each.training for each in teacher.modules()):
            raise ValueError(
                "nsn.teach.outside: the teacher, or a part of it, is in train() mode, in which "
                "dropout and batch norm would disturb what it says. Call its eval() first."
            )
        with torch.no_grad():
            said = teacher(x)
        expect("nsn.teach.outside: what the teacher returned", said, Tensor, "a torch.Tensor")
        teacher = said
    elif x is not None:
        raise ValueError(
            "nsn.teach.outside: x is for a teacher that is to be called, but this one is a tensor. "
            "Leave x out."
        )
    return _teacher("outside", network, weight, temperature, by, teacher)


def _teacher(
    kind: str,
    network: ParameterTable | Description,
    weight: Weight,
    temperature: float,
    by: str | None,
    output: Tensor | None = None,
) -> Teacher:
    where = f"nsn.teach.{kind}"
    description = description_in(f"{where}: network", network)
    teacher = _Teacher(kind, description, output)
    kept: float | dict[str, float]
    if isinstance(weight, Mapping):
        kept = numbers_of(f"{where}: weight", "the weight", weight)
        for name, each in kept.items():
            teacher.weigh_one(name, each)
    else:
        expect(f"{where}: weight", weight, numbers.Real, "a number or a dict of numbers by name")
        kept = float(weight)
        teacher.weigh(kept)
    expect(f"{where}: temperature", temperature, numbers.Real, "a number")
    temperature = float(temperature)
    teacher.set_temperature(temperature)
    if by is not None:
        if by not in ("cross_entropy", "squared_error"):
            raise ValueError(
                f"{where}: by must be 'cross_entropy' or 'squared_error', but is {shown(by)}."
            )
        teacher.set_distance(by == "squared_error")
    said = None if output is None else output.detach()
    return Teacher(teacher, (kind, description, kept, temperature, by, said))
