"""The network as a ``torch.nn.Module``."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from nsn import _C
from nsn._C.merge import Rule
from nsn.blocks import BlockOptions
from nsn.checks import (
    expect,
    expect_batch,
    expect_callable,
    expect_name,
    names_of,
    refuse_tracing,
    shown,
)
from nsn.description import Depths, Description, Subnetwork, Widths
from nsn.extract import extract
from nsn.pack import Pack
from nsn.parameters import ParameterTable
from nsn.summary import Summary
from nsn.view import View

P = ParamSpec("P")
T = TypeVar("T")


class All:
    """The type of :data:`ALL`."""

    def __repr__(self) -> str:
        return "nsn.ALL"

    def __reduce__(self) -> str:
        return "ALL"


#: Stands for all sub-networks that are listed, in the description's order.
ALL: Final = All()


def _not_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Has torch.compile leave a C++ operation as it is, with a graph break around it.

    The marks are those of ``torch.compiler.disable``, which would import ``torch._dynamo`` at once:
    as much again as all of torch.
    """
    marks = cast(Any, function)
    marks._torchdynamo_disable = True
    marks._torchdynamo_disable_msg = (
        "nsn runs its joint pass as one C++ operation, which cannot be traced"
    )
    return function


def _refuse_compiled_autograd() -> None:
    """Where torch traces a backward, the joint pass's has nothing to be traced.

    Raises:
        RuntimeError: under compiled autograd.
    """
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    if compiled is not None and compiled.compiled_autograd_enabled:
        raise RuntimeError(
            "nsn: compiled autograd traces the backward, and that of a joint pass is one C++ "
            "operation. Compile with torch._dynamo.config.compiled_autograd = False, or train "
            "net.extract(name)."
        )


@_not_compiled
def _joint(
    core: _C.Core, parameters: list[Tensor], x: Tensor, places: list[int], training: bool
) -> list[Tensor]:
    refuse_tracing()
    _refuse_compiled_autograd()
    return core.joint(parameters, x, places, training)


@_not_compiled
def _lane(
    core: _C.Core,
    parameters: list[Tensor],
    x: Tensor,
    places: list[int],
    lane: int,
    training: bool,
    seed: int,
) -> Tensor:
    refuse_tracing()
    _refuse_compiled_autograd()
    return core.lane(parameters, x, places, lane, training, seed)


class Network(ParameterTable):
    """A network together with the sub-networks that live inside it.

    A module as any other: its parameters, ``<block>.<parameter>``, are ``nn.Parameter``s, and
    ``state_dict``, ``to``, ``deepcopy``, pickle, optimizers, hooks, ``functional_call``, DDP and
    autocast act on them as they do elsewhere. Merge rules act within a process: under DDP each
    process merges its own lanes' gradients, and DDP averages what they merged, which for linear
    rules is the gradient of the joined batch. Running statistics of batch norms are each process's
    own, as in torch: DDP copies those of the first process to the others before each pass.

    What it would ignore is refused when it is asked for: hooks on blocks and modules in their place
    (``torch.nn.utils.prune``, ``weight_norm``, ``spectral_norm`` and ``parametrize`` work), modes
    of single blocks, tracing, ``state_dict`` of a network that was loaded in part.

    Args:
        description: a :class:`Description`; or else its arguments, by name.
        device: where the parameters are; default: torch's default device.

    Raises:
        ValueError, TypeError: as :class:`Description`.
    """

    def __init__(
        self,
        description: Description | None = None,
        *,
        input: Sequence[int] | None = None,
        blocks: Mapping[str, BlockOptions] | None = None,
        subnetworks: Mapping[str, Subnetwork | Sequence[str]] | None = None,
        grid: Mapping[str, Widths | Depths] | None = None,
        merge: Rule | None = None,
        block_merge: Mapping[str, Rule] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if description is None:
            if input is None or blocks is None:
                raise TypeError(
                    "nsn.Network: give a Description, or at least input= and blocks=, the shape of "
                    "one sample and the blocks."
                )
            description = Description(
                input=input,
                blocks=blocks,
                subnetworks=subnetworks,
                grid=grid,
                merge=merge,
                block_merge=block_merge,
                dtype=dtype,
            )
        elif not isinstance(description, Description):
            raise TypeError(
                f"nsn.Network: expected an nsn.Description, but got a "
                f"{type(description).__name__}. Give input=, blocks=, ... by name, or "
                f"Description.from_json(text)."
            )
        elif any(
            each is not None
            for each in (input, blocks, subnetworks, grid, merge, block_merge, dtype)
        ):
            raise TypeError(
                "nsn.Network: give either a Description or its arguments by name, not both."
            )
        core = _C.Core(description)
        # Drawn on the CPU, so that a seed gives the same weights everywhere.
        where = torch.get_default_device() if device is None else torch.device(device)
        parameters = [tensor.to(where) for tensor in core.initial_parameters()]
        self._build(description, core, parameters)

    @classmethod
    def _from_parameters(
        cls,
        description: Description,
        parameters: list[Tensor],
        report: _C.LoadReport | None = None,
    ) -> "Network":
        network = cls.__new__(cls)
        network._build(description, _C.Core(description), parameters)
        if report is not None:
            network._note(report)
        return network

    @overload
    def forward(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, x: Tensor, names: str | None = None
    ) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, names: All | Sequence[str]) -> dict[str, Tensor]: ...

    def forward(
        self, x: Tensor, names: str | All | Sequence[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """One forward of one or several sub-networks over one batch.

        In training mode each sub-network applies its dropout. Backward merges the sub-networks'
        gradients by the description's rules; a parameter that no sub-network of this pass uses gets
        no gradient.

        Args:
            x: ``(B, *input)``.
            names: a sub-network's name, for its output alone; several names, or ``nsn.ALL``, for a
                dict of outputs from one joint pass, in that order. Default: ``"base"``.

        Returns:
            ``(B, *output)`` for one name; name to ``(B, *output)`` for several.

        Raises:
            ValueError: where x has another shape or dtype than described, or a name is unknown or
                given twice.
        """
        if names is None:
            names = "base"
        if isinstance(names, str):
            return self._joint(x, [names])[0]
        several = self._several("forward", names)
        return dict(zip(several, self._joint(x, several), strict=True))

    def backward_by_lane(
        self,
        x: Tensor,
        loss: Callable[[str, Tensor], Tensor],
        names: All | Sequence[str] = ALL,
    ) -> dict[str, Tensor]:
        """A joint step that holds the activations of one sub-network at a time.

        Forward, loss and backward of each sub-network, one after the other. Leaves in ``.grad``
        what ``net(x, names)``, the sum of the losses and one backward would leave; what
        sub-networks have in common is computed anew for each. For linear rules.

        Args:
            x: ``(B, *input)``.
            loss: takes a sub-network's name and its output ``(B, *output)``, returns a scalar.
            names: which sub-networks; default: all that are listed.

        Returns:
            The losses by name, detached.

        Raises:
            ValueError: as ``net(x, names)``; and where a parameter has a function rule, where in
                training several of the sub-networks share running statistics, or where ``loss``
                returns no scalar.
        """
        several = self._several("backward_by_lane", names)
        takes = "a function of a name and an output"
        expect_callable("nsn.Network.backward_by_lane: loss", loss, takes)
        places = self._places_of(x, several)
        seed = _C.draw_seed() if self.training else 0
        losses: dict[str, Tensor] = {}
        any_grad = False
        for lane, name in enumerate(several):
            parameters = self._parameters_now()
            output = _lane(self._core, parameters, x, places, lane, self.training, seed)
            value = loss(name, output)
            if not isinstance(value, Tensor) or value.dim() != 0:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
                raise ValueError(
                    f"nsn.Network.backward_by_lane: the loss must return a scalar tensor, but "
                    f"returned {found}. Reduce it, for example with mean()."
                )
            # A lane whose parameters are all frozen has no graph; where all are so, torch says it.
            any_grad = any_grad or value.requires_grad
            if value.requires_grad or (not any_grad and name == several[-1]):
                value.backward()
            losses[name] = value.detach()
            del output, value  # and with them what the lane's graph still holds
        return losses

    def _places_of(self, x: Tensor, names: list[str]) -> list[int]:
        """The sub-networks' places, and a check of what a pass is given."""
        expect_batch("nsn.Network", x)
        places = [self._place(name) for name in names]
        if self._missing:
            self._check_loaded(names)
        for name in self._with_modes:
            block = self._modules[name]
            if block is not None and block.training != self.training:
                mine, its = ("train", "eval") if self.training else ("eval", "train")
                raise ValueError(
                    f"nsn.Network: block '{name}' is in {its}() mode, but the network in {mine}(), "
                    f"and a network runs in one mode. Call net.{mine}() or net.{its}(); to keep "
                    f"running statistics while training, describe the batch norm with "
                    f"track=False."
                )
        return places

    def _joint(self, x: Tensor, names: list[str]) -> list[Tensor]:
        places = self._places_of(x, names)
        return _joint(self._core, self._parameters_now(), x, places, self.training)

    def _several(self, method: str, names: All | Sequence[str]) -> list[str]:
        """The names of several sub-networks, given to a method."""
        if isinstance(names, All):
            return self.subnetworks
        if isinstance(names, tuple) and hasattr(names, "weights"):
            raise TypeError(
                f"nsn.Network.{method}: names is a schedule's Turn. Give its names: turn.names."
            )
        return names_of(f"nsn.Network.{method}: names", names, may_be_all=True)

    def describe(self) -> Summary:
        """What each sub-network is: blocks, widths, parameters, bytes, FLOPs, what it shares."""
        return self.description.describe()

    def recalibrate(
        self,
        batches: Iterable[Tensor | Sequence[Tensor]],
        names: All | Sequence[str] | str = ALL,
    ) -> None:
        """Makes the running statistics of batch norms anew, each as the mean over batches.

        Nothing is dropped, and weights stay as they are. Statistics that sub-networks share become
        the mean over those named. Source: Yu & Huang, "Universally Slimmable Networks and Improved
        Training Techniques", 2019.

        Args:
            batches: of the training data, each ``(B, *input)``, or a tuple or list of which that is
                the first element, as a ``DataLoader`` gives.
            names: whose statistics; default: those of all that are listed.

        Raises:
            ValueError: where there is no batch, no batch norm, or no such sub-network; the old
                statistics then stay.
            TypeError: where a batch holds no tensor.
        """
        chosen = self._several("recalibrate", [names] if isinstance(names, str) else names)
        expect("nsn.Network.recalibrate: batches", batches, Iterable, "an iterable of batches")
        places = [self._place(name) for name in chosen]
        self._check_loaded(chosen)
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            raise ValueError(
                "nsn.Network.recalibrate: there are no batches. Give some of the training data."
            )
        parameters = [tensor.detach() for tensor in self._parameters_now()]
        # Aside, so that batches that do not fit leave the old statistics as they are.
        made = self._core.start_statistics(parameters, places)
        for batch in chain([first], batches):
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"nsn.Network.recalibrate: expected batches as tensors, or as tuples or lists "
                    f"whose first element is one, but got a {type(batch).__name__}. Iterate over "
                    f"tensors or a DataLoader."
                )
            self._core.calibrate(made, x, places)
        self._core.take_statistics(parameters, made)

    def view(self, name: str) -> View:
        """A zero-copy handle on one sub-network, for inference.

        Args:
            name: the sub-network.

        Raises:
            ValueError: where there is no such sub-network, or it was not loaded.
        """
        expect_name("nsn.Network.view: name", name)
        self._check_loaded([name])
        return View(self, name)

    def pack(self, subnetworks: Sequence[str] | None = None) -> Pack:
        """A snapshot of the weights, laid out for the fastest inference.

        Args:
            subnetworks: which ones it serves; default: all that are listed.

        Raises:
            ValueError: for unknown sub-networks, for none, and for those that were not loaded.
        """
        names = self.subnetworks
        if subnetworks is not None:
            names = subnetworks = names_of("nsn.Network.pack: subnetworks", subnetworks)
        self._check_loaded(names)
        return Pack(self, subnetworks)

    def extract(self, name: str) -> nn.Sequential:
        """A sub-network as a plain ``torch.nn`` module that knows nothing of nsn.

        It has contiguous weights of its own and gives the same outputs; its children are named as
        the blocks. ``torch.save`` and ``torch.load(weights_only=False)`` work on it where nsn is
        not installed. Dropout is in it; mode and ``requires_grad`` are the network's.

        Args:
            name: the sub-network.

        Raises:
            ValueError: where there is no such sub-network, or it was not loaded.
        """
        expect_name("nsn.Network.extract: name", name)
        self._check_loaded([name])
        return extract(self, name)

    def extra_repr(self) -> str:
        lines = [
            f"{name}: {' -> '.join(self._description.blocks_of(name))}"
            f", {self._description.parameter_count(name):,} parameters"
            for name in self.subnetworks
        ]
        grid = self._description.grid
        if grid:
            axes = " x ".join(f"{axis.choices} {name}" for name, axis in grid.items())
            lines.append(f"grid: {axes}")
        return "\n".join([*lines, f"merge: {self._description.merge.name}"])
