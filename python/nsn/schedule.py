"""Schedules: which sub-networks run in which step, and with which weight.

A schedule is asked in each step::

    schedule = nsn.schedule.sandwich(net, others=2)
    for step, (x, y) in enumerate(batches):
        turn = schedule(step, epoch)
        outputs = net(x, turn.names)
        nsn.joint_loss(outputs, y, weights=turn.weights).backward()

Random choices are a function of a seed and the step: a run that goes on needs these two and nothing
else, and the ranks of a process group run the same. The seed is drawn from torch's generator, and
where a process group is there, taken from its first rank.
"""

import builtins
import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from nsn import _C
from nsn._C import Schedule as _Schedule
from nsn.checks import expect, expect_callable, expect_name, kind_of, names_of, numbers_of
from nsn.description import Description
from nsn.parameters import ParameterTable, description_in

__all__ = ["Schedule", "Turn", "all", "from_epoch", "function", "random", "sandwich"]

Weights = Mapping[str, float]


class Turn(NamedTuple):
    """Who trains in a step.

    Attributes:
        names: of the sub-networks that run.
        weights: of their losses, those that have another than 1.
    """

    names: Sequence[str]
    weights: Weights = MappingProxyType({})


class Schedule:
    """Made by the functions of this module; called with a step and an epoch, gives a :class:`Turn`.

    Copies and pickles, as in a checkpoint of a run, choose as it does.

    Attributes:
        seed: of the random choices; None where there are none.
    """

    def __init__(
        self,
        schedule: _Schedule,
        weights: Weights | None,
        made: tuple[Callable[..., "Schedule"], dict[str, Any]],
    ) -> None:
        self._schedule = schedule
        given = {} if weights is None else weights
        kept = numbers_of("nsn.schedule: weights", "the weight", given)
        for name, weight in kept.items():
            schedule.weigh(name, weight)
        maker, arguments = made
        # By whom and from what: how copies and pickles make it again.
        self._made = (maker, {**arguments, "weights": kept} if kept else arguments)

    @property
    def seed(self) -> int | None:
        return self._schedule.seed

    def __reduce__(self) -> tuple[Any, ...]:
        maker, arguments = self._made
        seed = {} if self.seed is None else {"seed": self.seed}
        return partial(maker, **{**arguments, **seed}), ()

    def __repr__(self) -> str:
        maker, arguments = self._made
        shown = {
            key: each
            for key, each in arguments.items()
            if key != "network" and each not in (None, {})
        }
        if self.seed is not None:
            shown["seed"] = self.seed
        return f"nsn.schedule.{maker.__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def __call__(self, step: int, epoch: int = 0) -> Turn:
        """Who trains.

        Args:
            step: counted from 0 over the whole run.
            epoch: counted from 0.

        Raises:
            ValueError: where nobody would run, or a function of one's own names somebody twice or
                whom the network does not have.
        """
        for what, value in (("step", step), ("epoch", epoch)):
            expect(f"nsn.schedule: {what}", value, numbers.Integral, "an int")
            if int(value) >= 2**63:
                raise ValueError(f"nsn.schedule: the {what} must be below 2 ** 63, but is {value}.")
        return Turn(*self._schedule.at(int(step), int(epoch)))


def all(network: ParameterTable | Description, weights: Weights | None = None) -> Schedule:
    """All that are listed, in every step.

    Args:
        network: whose sub-networks, or its description.
        weights: of losses, by name; 1 for those not named.

    Raises:
        ValueError: where a weight names no sub-network.
    """
    description = description_in("nsn.schedule.all: network", network)
    made = (all, {"network": description})
    return Schedule(_C.schedule_all(description), weights, made)


def sandwich(
    network: ParameterTable | Description,
    others: int,
    weights: Weights | None = None,
    seed: int | None = None,
) -> Schedule:
    """The largest, the smallest, and some of the rest at random.

    Of a grid the smallest is the narrowest and shallowest one, and any of the others may be drawn,
    but for those that are the same as a listed one.

    Source: the sandwich rule, Yu & Huang, "Universally Slimmable Networks and Improved Training
    Techniques", 2019.

    Args:
        network: whose sub-networks, or its description.
        others: how many of the rest.
        weights: of losses, by name; 1 for those not named.
        seed: of the random choices. Default: of torch's generator, on the first rank.

    Raises:
        ValueError: where there are not so many others, or a weight names no sub-network, or one
            that never runs.
    """
    description = description_in("nsn.schedule.sandwich: network", network)
    expect("nsn.schedule.sandwich: others", others, numbers.Integral, "an int")
    made = (
        sandwich,
        {"network": description, "others": int(others)},
    )
    return Schedule(_C.schedule_sandwich(description, int(others), _seed(seed)), weights, made)


def random(
    network: ParameterTable | Description,
    count: int,
    weights: Weights | None = None,
    seed: int | None = None,
) -> Schedule:
    """Some of all at random, each set as likely as any other.

    Those of a grid are among them, but for those that are the same as a listed one.

    Args:
        network: whose sub-networks, or its description.
        count: how many.
        weights: of losses, by name; 1 for those not named.
        seed: of the random choices. Default: of torch's generator, on the first rank.

    Raises:
        ValueError: where there are not so many, or a weight names no sub-network, or one
            that never runs.
    """
    description = description_in("nsn.schedule.random: network", network)
    expect("nsn.schedule.random: count", count, numbers.Integral, "an int")
    made = (random, {"network": description, "count": int(count)})
    return Schedule(_C.schedule_random(description, int(count), _seed(seed)), weights, made)


def from_epoch(
    network: ParameterTable | Description,
    first: Mapping[str, int],
    weights: Weights | None = None,
) -> Schedule:
    """Each that is listed from an epoch of its own on: the backbone first, or the small ones first.

    Args:
        network: whose sub-networks, or its description.
        first: name to the epoch, counted from 0, from which on it runs; those that are not named
            run from the first.
        weights: of losses, by name; 1 for those not named.

    Raises:
        ValueError: where nobody would run in the first epoch, or a name is no sub-network's.
    """
    where = "nsn.schedule.from_epoch: first"
    description = description_in("nsn.schedule.from_epoch: network", network)
    expect(where, first, Mapping, "a dict of names and epochs")
    for name, epoch in first.items():
        expect_name(f"{where}: each name", name)
        expect(f"{where}: the epoch of '{name}'", epoch, numbers.Integral, "an int")
    epochs = {name: int(epoch) for name, epoch in first.items()}
    made = (from_epoch, {"network": description, "first": epochs})
    return Schedule(_C.schedule_from_epoch(description, epochs), weights, made)


def function(
    network: ParameterTable | Description, choose: Callable[[int, int], Turn | Sequence[str]]
) -> Schedule:
    """By a function of the step and the epoch.

    Args:
        network: whose sub-networks, or its description.
        choose: gets step and epoch, returns a :class:`Turn` or a list of names.
    """
    description = description_in("nsn.schedule.function: network", network)
    where = "nsn.schedule.function: choose"
    expect_callable(where, choose, "a function of a step and an epoch")

    def turn(step: int, epoch: int) -> tuple[list[str], dict[str, float]]:
        chosen = choose(step, epoch)
        holds_others = isinstance(chosen, tuple) and not builtins.all(
            isinstance(each, str) for each in chosen
        )
        if not isinstance(chosen, Turn) and (isinstance(chosen, Mapping) or holds_others):
            raise TypeError(
                f"{where} must return names, or nsn.schedule.Turn(names, weights), but returned "
                f"{kind_of(chosen)}."
            )
        names, weights = chosen if isinstance(chosen, Turn) else (chosen, {})
        returned = f"{where}: what it returned"
        return names_of(returned, names), numbers_of(
            f"{returned} as weights", "the weight", weights
        )

    made = (function, {"network": description, "choose": choose})
    return Schedule(_C.schedule_function(description, turn), None, made)


def _seed(seed: int | None) -> int:
    """The given one, or one that all ranks have."""
    if seed is not None:
        expect("nsn.schedule: seed", seed, numbers.Integral, "an int")
        if not 0 <= int(seed) < 2**64:
            raise ValueError(
                f"nsn.schedule: the seed must be at least 0 and below 2 ** 64, but is {seed}."
            )
        return int(seed)
    drawn = [_C.draw_seed()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(drawn, src=0)
    return drawn[0]
