"""Packed weights: snapshots of a network, laid out for inference."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from nsn import _C

if TYPE_CHECKING:
    from nsn.network import Network


class PackEntry(TypedDict):
    """One copy of one slice of one parameter."""

    #: "hidden1.weight".
    parameter: str
    #: The extents of the slice.
    shape: tuple[int, ...]
    #: "product", "convolution", "convolution by oneDNN" or "copy".
    form: str
    #: Of a convolution: at which of the pack's batch sizes this form is used; empty: at all.
    batch_sizes: list[int]
    bytes: int
    #: The sub-networks that use it.
    subnetworks: list[str]


class PackedView:
    """A handle on one sub-network of a :class:`Pack`; const, and for any number of threads."""

    def __init__(self, pack: Pack, view: _C.PackedView) -> None:
        self._pack = pack
        self._view = view

    @property
    def name(self) -> str:
        """The sub-network's name."""
        return self._view.name

    def __call__(self, x: Tensor) -> Tensor:
        """The sub-network's output: ``(B, *input)`` to ``(B, *output)``, without gradients."""
        return self._view(x)

    def stale(self) -> bool:
        """As :meth:`Pack.stale`."""
        return self._pack.stale()

    def __repr__(self) -> str:
        return f"nsn.PackedView('{self.name}')"


class Pack:
    """A snapshot of a network's weights for the fastest inference, made by :meth:`Network.pack`.

    It holds one copy of the weights that its sub-networks use; sub-networks that use the same slice
    of a weight share its pack. Products run on panels of the weight that serve all batch sizes,
    with scale, bias and ReLU in the same pass (float32 on the CPU); convolutions on a channels-last
    copy, or on oneDNN's own format where that was the faster at a batch size when it was packed;
    whatever else is read is copied as it is.

    What the network does afterwards changes nothing here: :meth:`stale` tells whether it did, and
    :meth:`refresh` packs anew, for all views made of this pack. ``print(pack)`` shows what it
    holds.
    """

    def __init__(
        self,
        network: Network,
        subnetworks: Sequence[str] = (),
        batch_sizes: Sequence[int] = (1, 8),
    ) -> None:
        self._network = weakref.ref(network)
        with torch.no_grad():
            self._pack = _C.Pack(
                network._core, network._parameters_now(), list(subnetworks), list(batch_sizes)
            )

    def view(self, name: str) -> PackedView:
        """A handle on one sub-network.

        Raises:
            ValueError: where it is not in this pack.
        """
        return PackedView(self, self._pack.view(name))

    def stale(self) -> bool:
        """Whether the network's weights are other ones now, in place or moved.

        Reads all of them once. False once the network is gone.
        """
        network = self._network()
        if network is None:
            return False
        with torch.no_grad():
            return self._pack.stale(network._parameters_now())

    def refresh(self) -> None:
        """Packs anew; all views made of this pack see it.

        Raises:
            ValueError: once the network is gone.
        """
        network = self._network()
        if network is None:
            raise ValueError(
                "nsn.Pack: the network that this pack was made of is gone, so there is nothing to "
                "pack anew. Keep the network, or use the pack as it is."
            )
        with torch.no_grad():
            self._pack.refresh(network._parameters_now())

    @property
    def entries(self) -> list[PackEntry]:
        """What it holds: each copy of each slice, with its form, bytes and users."""
        return self._pack.entries()

    @property
    def bytes(self) -> int:
        """What it holds, in bytes."""
        return self._pack.bytes

    def __str__(self) -> str:
        return str(self._pack)
