"""Handles on one sub-network, for inference."""

from __future__ import annotations

import weakref
from typing import NoReturn

import torch
from torch import Tensor

from nsn import _C
from nsn.checks import expect_batch, expect_name, refuse_tracing
from nsn.parameters import ParameterTable, network_in


class View:
    """A const handle on one sub-network, made by :meth:`Network.view`.

    It evaluates (no dropout) and records no gradients, whatever the network's mode and the caller's
    grad mode are. It shares the network's storages: updates in place (optimizers,
    ``load_state_dict``) are seen; after the network moved to other storages (``to``,
    ``load_state_dict(assign=True)``) the view keeps the old ones, and :meth:`stale` says so. Any
    number of threads may call views of one network at once, and the GIL is released meanwhile;
    training the network while a view of it runs is a race that the caller prevents.
    """

    def __init__(self, network: ParameterTable, name: str) -> None:
        network = network_in("nsn.View: network", network)
        expect_name("nsn.View: name", name)
        self._network = weakref.ref(network)
        with torch.no_grad():
            self._view = _C.View(network._core, name, network._parameters_now())

    @property
    def name(self) -> str:
        """The sub-network's name."""
        return self._view.name

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that it reads, on the network's storages, without gradients."""
        return self._view.parameters

    def __call__(self, x: Tensor) -> Tensor:
        """The sub-network's output: ``(B, *input)`` to ``(B, *output)``."""
        refuse_tracing()
        expect_batch("nsn.View", x)
        return self._view(x)

    def stale(self) -> bool:
        """Whether the network now has other storages; False once the network is gone."""
        network = self._network()
        if network is None:
            return False
        with torch.no_grad():
            return self._view.stale(network._parameters_now())

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "nsn.View: a view cannot be copied or pickled. Copy the network, and make a view of "
            "the copy: net.view(name)."
        )

    def __repr__(self) -> str:
        return f"nsn.View('{self.name}')"
