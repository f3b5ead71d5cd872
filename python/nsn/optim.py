"""What goes with torch's optimizers: parameter groups, and a bound on the weights' rows."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from nsn.checks import expect, expect_name, names_of
from nsn.parameters import ParameterTable, network_in


def param_groups(
    network: ParameterTable, weight_decay: float, of: str | None = None
) -> list[dict[str, Any]]:
    """The parameters in groups by the weight decay that each is to get: weights, not biases.

    With ``of``, the decay stands for an L2 term ``weight_decay / 2 * |W|^2`` in the loss of that
    sub-network alone: a weight gets ``weight_decay`` times the coefficient that the merge rule
    gives the sub-network's gradient when all run together. The paper's 4.5e-5 * |W|^2 on base's
    loss is ``param_groups(net, 9e-5, of="base")``; merging leaves 9e-5 on hidden1, 4.5e-5 on
    hidden2 and none on output.

    Args:
        network: whose parameters.
        weight_decay: as torch's optimizers have it: the gradient grows by weight_decay * W.
        of: the sub-network in whose loss the L2 term stands; None decays all weights alike.

    Returns:
        Groups ``{"params": [...], "weight_decay": ...}`` for any ``torch.optim`` optimizer.

    Raises:
        ValueError: for an unknown sub-network, a negative decay, or ``of`` with a function rule.
    """
    network = network_in("nsn.param_groups: network", network)
    expect("nsn.param_groups: weight_decay", weight_decay, numbers.Real, "a number")
    if of is not None:
        expect_name("nsn.param_groups: of", of)
    names = network._table
    groups = network._core.decay_groups(float(weight_decay), of or "")
    return [
        {
            "params": [leaf for place in places for leaf in _leaves(network, names[place])],
            "weight_decay": decay,
        }
        for decay, places in groups
    ]


def bound_row_norms(network: ParameterTable, most: float, blocks: Sequence[str]) -> None:
    """Scales the rows of some blocks' weights whose 2-norm is above a bound down to it.

    A row is what feeds one output feature, of a convolution one filter. For after each step of an
    optimizer::

        optimizer.step()
        nsn.bound_row_norms(net, 2.5, ["hidden1", "hidden2"])

    A narrower sub-network reads a part of a row, whose norm is no larger. With ``most=2.5`` the row
    ``[3, 4]``, of norm 5, becomes ``[1.5, 2]``. Source: Srivastava et al., "Dropout", 2014
    (max-norm regularization).

    Args:
        network: whose weights.
        most: the bound, positive.
        blocks: names of blocks; of one with others inside, the weights of all of these.

    Raises:
        ValueError: for a bound that is not positive, a name that is no block or has no weight, and
            a weight that is computed by a parametrization, which would forget it.
    """
    network = network_in("nsn.bound_row_norms: network", network)
    expect("nsn.bound_row_norms: most", most, numbers.Real, "a number")
    names = names_of("nsn.bound_row_norms: blocks", blocks, "blocks")
    for path in network._table:
        if path[0] in names and path[-1] not in _own_tensors(network._module_of(path)):
            raise ValueError(
                f"nsn.bound_row_norms: '{'.'.join(path)}' is computed from another tensor (a "
                f"parametrization), so that what is done to it is forgotten. Bound it in the "
                f"parametrization."
            )
    network._core.bound_row_norms(network._parameters_now(), float(most), names)


def average_fn(
    decay: float,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """The exponential moving average for ``torch.optim.swa_utils.AveragedModel``.

    ::

        average = AveragedModel(net, multi_avg_fn=nsn.average_fn(0.999), use_buffers=True)
        ...
        optimizer.step()
        average.update_parameters(net)

    With ``use_buffers`` it averages batch norms' statistics too, and takes over their counters,
    which torch's own ``get_ema_multi_avg_fn`` would round to 0. Sources: Polyak & Juditsky,
    "Acceleration of stochastic approximation by averaging", 1992; Tarvainen & Valpola, "Mean
    teachers are better role models", 2017.

    Args:
        decay: average <- decay * average + (1 - decay) * network; at least 0 and below 1.

    Raises:
        ValueError: for another decay.
    """
    expect("nsn.average_fn: decay", decay, numbers.Real, "a number")
    if not 0 <= decay < 1:
        raise ValueError(
            f"nsn.average_fn: the decay must be at least 0 and below 1, but is {decay}. Take "
            f"0.999, for example."
        )

    def update(
        averages: Sequence[Tensor], currents: Sequence[Tensor], number: Tensor | int
    ) -> None:
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1.0 - float(decay))
            else:
                average.copy_(current)

    return update


def _own_tensors(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers}


def _leaves(network: ParameterTable, path: tuple[str, ...]) -> list[nn.Parameter]:
    """What an optimizer updates: the parameter, or what a parametrization computes it from."""
    module, parameter = network._module_of(path), path[-1]
    if parametrize.is_parametrized(module, parameter):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return list(parametrizations[parameter].parameters())
    return [module.get_parameter(parameter)]
