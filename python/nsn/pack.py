"""Packed weights: snapshots of a network, laid out for inference."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from nsn import _C, files
from nsn.checks import expect, expect_batch, expect_name, names_of, refuse_tracing
from nsn.parameters import ParameterTable, network_in
from nsn.summary import PackEntry


class PackedView:
    """A handle on one sub-network of a :class:`Pack`; const, and for any number of threads."""

    def __init__(self, pack: Pack, view: _C.PackedView) -> None:
        self._pack = pack
        self._view = view

    @property
    def name(self) -> str:
        """The sub-network's name."""
        return self._view.name

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The sub-network's output: ``(B, *input)`` to ``(B, *output)``, without gradients.

        Args:
            x: a batch.
            out: None, or where the output goes, and what is returned: contiguous, of the weights'
                dtype, and no memory of ``x``.

        Raises:
            ValueError: where x has another shape or dtype than described, or ``out`` does not fit.
        """
        refuse_tracing()
        expect_batch("nsn.PackedView", x)
        if out is None:
            return self._view(x)
        expect("nsn.PackedView: out", out, Tensor, "a tensor")
        self._view(x, out)
        return out

    def stale(self) -> bool:
        """As :meth:`Pack.stale`."""
        return self._pack.stale()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "nsn.PackedView: a view cannot be copied or pickled. Copy the network, and pack the "
            "copy: net.pack().view(name)."
        )

    def __repr__(self) -> str:
        return f"nsn.PackedView('{self.name}')"


class Pack:
    """A snapshot of a network's weights for the fastest inference, made by :meth:`Network.pack`.

    It holds one copy of the weights that its sub-networks use. A sub-network of float32 on the CPU
    runs as a plan (:meth:`Description.plan_text` shows it): batch norms, scales, activations and
    residual sums are part of the product or convolution in front of them, and buffers lie in one
    arena of the thread; others run their program step by step, on copies.
    Products and convolutions without groups read panels of the weight; one copy serves all batch
    sizes, and all leading slices of a weight, while a slice that is none (of heads, of gated
    halves) has its own. Whatever else is read is copied as it is.

    What the network does afterwards changes nothing here: :meth:`stale` tells whether it did, and
    :meth:`refresh` packs anew, for all views made of this pack. ``print(pack)`` shows what it
    holds.
    """

    def __init__(self, network: ParameterTable, subnetworks: Sequence[str] | None = None) -> None:
        network = network_in("nsn.Pack: network", network)
        chosen = []  # all
        if subnetworks is not None:
            chosen = names_of("nsn.Pack: subnetworks", subnetworks)
            if not chosen:
                raise ValueError(
                    "nsn.Pack: subnetworks must name at least one, but is empty. Leave it out "
                    "where all are meant."
                )
        self._network: Callable[[], ParameterTable | None] = weakref.ref(network)
        self._is_mapped = False
        with torch.no_grad():
            self._pack = _C.Pack(network._core, network._plain_parameters("Pack"), chosen)

    @classmethod
    def map(cls, path: str | os.PathLike[str]) -> Pack:
        """The pack of a runtime file (``nsn.export(..., "runtime")``), mapped.

        Weights are read where they lie, one copy for all processes, of the type that the file has.
        There is no network, so that it is never stale. Of a file that ends early it has the
        sub-networks that are there.

        Raises:
            OSError: where the file cannot be read (FileNotFoundError where there is none).
                ValueError: where it is none of the runtime's.
        """
        encoded = files.readable(path)
        pack = cls.__new__(cls)
        pack._network = lambda: None
        pack._is_mapped = True
        pack._pack = _C.Pack.map(encoded)
        return pack

    def view(self, name: str) -> PackedView:
        """A handle on one sub-network.

        Raises:
            ValueError: where it is not in this pack.
        """
        expect_name("nsn.Pack.view: name", name)
        return PackedView(self, self._pack.view(name))

    def stale(self) -> bool:
        """Whether the network's weights are other ones now, in place or moved.

        Reads all of them once. False once the network is gone.
        """
        network = self._network()
        if network is None:
            return False
        with torch.no_grad():
            return self._pack.stale(network._plain_parameters("Pack.stale"))

    def refresh(self) -> None:
        """Packs anew; all views made of this pack see it.

        Raises:
            ValueError: once the network is gone, and where there was none.
        """
        if self._is_mapped:
            raise ValueError(
                "nsn.Pack: this pack is mapped from a file, so there is nothing to pack anew. Map "
                "the file that is to be used in its place."
            )
        network = self._network()
        if network is None:
            raise ValueError(
                "nsn.Pack: the network that this pack was made of is gone, so there is nothing to "
                "pack anew. Keep the network, or use the pack as it is."
            )
        with torch.no_grad():
            self._pack.refresh(network._plain_parameters("Pack.refresh"))

    @property
    def entries(self) -> list[PackEntry]:
        """What it holds: each copy of each slice, with its form, bytes and users."""
        return self._pack.entries()

    @property
    def bytes(self) -> int:
        """What it holds, in bytes."""
        return self._pack.bytes

    def __reduce__(self) -> NoReturn:
        instead = "Map its file once more" if self._is_mapped else "Copy the network, and pack it"
        raise TypeError(f"nsn.Pack: a pack cannot be copied or pickled. {instead}.")

    def __str__(self) -> str:
        return str(self._pack)
