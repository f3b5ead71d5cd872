"""The parameters of a network: the modules that hold them, and the table that all else reads."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nsn import _C
from nsn.checks import expect, kind_of
from nsn.description import Description

#: Hooks of torch.nn.utils that make a parameter anew before each pass; a network calls them.
_REPARAMETRIZING = (prune.BasePruningMethod, SpectralNorm, WeightNorm)


class Block(nn.Module):
    """The parameters of one block, or of a part of one, under the block's names.

    It computes nothing: the network does, from what it finds here. So what would change a block's
    computation elsewhere (hooks, another module in its place) is refused.
    """

    def __init__(self, summary: str = "parameters") -> None:
        nn.Module.__init__(self)  # BatchNormBlock has another base behind this one
        self._summary = summary

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        """Refused, but for those of ``torch.nn.utils`` that make a parameter anew."""
        if not isinstance(hook, _REPARAMETRIZING):
            raise _no_hooks("register_forward_pre_hook")
        return super().register_forward_pre_hook(hook, **options)

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        """Refused: a block is not called by itself."""
        raise _no_hooks("register_forward_hook")

    def register_full_backward_hook(self, *args: Any, **options: Any) -> Any:
        """Refused: a block is not called by itself."""
        raise _no_hooks("register_full_backward_hook")

    def register_full_backward_pre_hook(self, *args: Any, **options: Any) -> Any:
        """Refused: a block is not called by itself."""
        raise _no_hooks("register_full_backward_pre_hook")

    def register_backward_hook(self, *args: Any, **options: Any) -> Any:
        """Refused: a block is not called by itself."""
        raise _no_hooks("register_backward_hook")

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None and self.__dict__.get("_parameters", {}).get(name) is not None:
            raise ValueError(
                f"nsn.Network: parameter '{name}' of a block cannot be removed, since the "
                f"network's description has it. Describe the block without it, or fill it with "
                f"zeros and freeze it."
            )
        _check_module(self, name, value)
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As elsewhere, but not in the place of a part of the block."""
        _check_module(self, name, module)
        super().add_module(name, module)

    def forward(self, *args: Any) -> Tensor:
        raise TypeError(
            "nsn: a block of a network is not called by itself, since the network runs all "
            'sub-networks that pass it together. Call the network: net(x, "sub1").'
        )

    def _get_name(self) -> str:
        return self._summary

    def _add(self, path: list[str], tensor: Tensor, is_buffer: bool) -> None:
        """Takes a tensor in under a path of names: one module for each but the last."""
        name = path[0]
        if name not in self._modules and hasattr(self, name):
            raise ValueError(
                f"nsn.Network: '{name}' is the name of a block or sub-network, but also of an "
                f"attribute of torch.nn.Module. Rename it."
            )
        if len(path) > 1:
            if name not in self._modules:
                self.add_module(name, Block())
            part = self._modules[name]
            assert isinstance(part, Block)
            part._add(path[1:], tensor, is_buffer)
        elif is_buffer:
            self.register_buffer(name, tensor)
        else:
            self.register_parameter(name, nn.Parameter(tensor))


class BatchNormBlock(Block, _BatchNorm):
    """A batch norm's parameters; known as one to torch, whose tools for them are refused."""

    def __init__(self, summary: str) -> None:
        Block.__init__(self, summary)

    @property
    def num_features(self) -> int:  # type: ignore[override]
        """Refused: ``SyncBatchNorm.convert_sync_batchnorm`` asks for it."""
        raise ValueError(
            "nsn.Network: a batch norm is a block of the network's description, which "
            "SyncBatchNorm cannot take the place of. Under DDP each process normalises by its own "
            "batch; use larger batches, or GroupNorm or LayerNorm."
        )

    def reset_running_stats(self) -> None:
        """Refused: what ``update_bn`` does is ``recalibrate`` here."""
        raise ValueError(
            "nsn.Network: running statistics belong to sub-networks and are not reset by "
            "themselves, as torch.optim.swa_utils.update_bn would. Call "
            "net.recalibrate(batches), which makes them anew."
        )

    def extra_repr(self) -> str:
        return ""

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        nn.Module._load_from_state_dict(self, *args, **options)


def _no_hooks(name: str) -> ValueError:
    return ValueError(
        f"nsn.Network: {name} on a block would never run, since the network runs all "
        f"sub-networks that pass a block together. Put the hook on the network, or on a "
        f"parameter: net.block.weight.register_hook(...)."
    )


def _check_module(owner: nn.Module, name: str, module: object) -> None:
    """Refuses a module in the place of a block, or of a part of one."""
    there = owner.__dict__.get("_modules", {}).get(name)
    if isinstance(there, Block) and module is not there:
        raise ValueError(
            f"nsn.Network: '{name}' is a block of the network's description, and a "
            f"{type(module).__name__} in its place would not be run. Describe another network "
            f"and load the weights that stay; or change parameters in place (LoRA and the like: "
            f"torch.nn.utils.parametrize)."
        )


class ParameterTable(nn.Module):
    """A description, and the tensors that stand for its parameters at each moment.

    The base of :class:`nsn.Network`, and all of it that views, packs, copies, files and optimizers
    know: what the network is, which of its parameters are there, and where they are now.
    """

    def _build(self, description: Description, core: _C.Core, parameters: list[Tensor]) -> None:
        nn.Module.__init__(self)
        self._description = description
        self._core = core
        self._missing: frozenset[str] = frozenset()
        self._bytes_read = 0
        self._places = {name: place for place, name in enumerate(description.names)}
        # Each tensor's place: the modules on the way to it, and its name there.
        self._table = [tuple(name.split(".")) for name, _ in description.parameters]
        self._trainable = [not is_buffer for _, is_buffer in description.parameters]
        self._with_modes = description.blocks_with_modes
        for name in description.blocks:
            if hasattr(self, name):
                raise ValueError(
                    f"nsn.Network: block '{name}' has the name of an attribute of torch.nn.Module. "
                    f"Rename the block."
                )
            summary = description.summary_of(name)
            kind = BatchNormBlock if summary.startswith("BatchNorm(") else Block
            self.add_module(name, kind(summary))
        for path, trainable, tensor in zip(self._table, self._trainable, parameters, strict=True):
            block = self._modules[path[0]]
            assert isinstance(block, Block)
            block._add(list(path[1:]), tensor, not trainable)

    def _note(self, report: _C.LoadReport) -> None:
        """Takes over what is there and how much of the file was read."""
        self._missing = frozenset(report.missing)
        self._bytes_read = report.bytes_read

    @property
    def loaded(self) -> list[str]:
        """The sub-networks whose parameters are there, in order.

        All, unless ``nsn.load(path, only=...)`` made the network. The others can be neither run,
        nor viewed, nor saved, until ``nsn.load_rest`` adds them.
        """
        return [name for name in self.subnetworks if name not in self._missing]

    @property
    def bytes_read(self) -> int:
        """How many bytes of files were read for it, headers included; 0 for one not loaded."""
        return self._bytes_read

    def _check_loaded(self, names: Sequence[str]) -> None:
        if self._missing:
            report = _C.LoadReport(set(self._missing), self._bytes_read)
            report.check_loaded(names, self.subnetworks)

    @property
    def description(self) -> Description:
        """What the network is, with the dtype that its parameters have now; a value."""
        # As they are stored: to make reparametrized ones anew here would be a step of theirs.
        blocks = [self._modules[name] for name in self._description.blocks]
        stored = (each.state_dict(keep_vars=True).values() for each in blocks if each is not None)
        dtypes = {each.dtype for each in chain.from_iterable(stored) if each.is_floating_point()}
        if len(dtypes) == 1 and dtypes != {self._description.parameter_dtype}:
            self._description = Description._of(self._description.with_dtype(dtypes.pop()))
            self._core = _C.Core(self._description)
        return self._description

    @property
    def subnetworks(self) -> list[str]:
        """The sub-networks' names, ``base`` first."""
        return self._description.names

    def __setattr__(self, name: str, value: Any) -> None:
        _check_module(self, name, value)
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As elsewhere, but not in the place of a block."""
        _check_module(self, name, module)
        super().add_module(name, module)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """As elsewhere.

        Raises:
            ValueError: where the network was loaded in part.
        """
        self._check_loaded(self.subnetworks)
        return super().state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As elsewhere; with all parameters in it a network that was loaded in part is whole."""
        expect("nsn.Network.load_state_dict: state_dict", state_dict, Mapping, "a dict of tensors")
        for key in state_dict:
            expect("nsn.Network.load_state_dict: each key", key, str, "a str")
        result = super().load_state_dict(state_dict, *args, **options)
        if self._missing and all(".".join(path) in state_dict for path in self._table):
            self._missing = frozenset()
        return result

    def _place(self, name: str) -> int:
        place = self._places.get(name)
        return self._description.index_of(name) if place is None else place

    def _parameters_now(self) -> list[Tensor]:
        """The tensors that the blocks have at this moment, whoever put them there."""
        tensors = []
        made: set[nn.Module] = set()
        for path in self._table:
            module: Any = self
            for name in path[:-1]:
                module = module._modules[name]
            if module._forward_pre_hooks and module not in made:
                made.add(module)
                for hook in module._forward_pre_hooks.values():
                    hook(module, ())
            tensors.append(getattr(module, path[-1]))
        return tensors

    def _plain_parameters(self, what: str) -> list[Tensor]:
        """The tensors, for ``what`` reads their memory itself.

        Raises:
            TypeError: where one has no memory of its own.
        """
        tensors = self._parameters_now()
        for path, tensor in zip(self._table, tensors, strict=True):
            wraps = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
            if wraps or tensor.is_meta:
                kind = "meta tensor" if tensor.is_meta else type(tensor).__name__
                raise TypeError(
                    f"nsn.{what}: parameter '{'.'.join(path)}' is a {kind}, which has no plain "
                    f"memory to read. Make plain tensors of all first, for example with "
                    f"full_tensor(), dequantize() or to_empty()."
                )
        return tensors

    def _check_nothing_added(self, function: str) -> None:
        """Refuses modules and tensors of a subclass's own, which a description does not have."""
        blocks = set(self._description.blocks)
        for name in [*self._modules, *self._parameters, *self._buffers]:
            if name not in blocks:
                raise ValueError(
                    f"{function}: '{name}' is no block of the network's description, so that a "
                    f"checkpoint would lack it. Keep it beside the network rather than in it, or "
                    f"save the state_dict."
                )

    def _module_of(self, path: tuple[str, ...]) -> nn.Module:
        """The module that holds the tensor at a path of the table."""
        return self.get_submodule(".".join(path[:-1]))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_core"]  # made again from the description
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._core = _C.Core(self._description)


def description_in(argument: str, network: "ParameterTable | Description") -> Description:
    """The description where a network or its description is asked for.

    Raises:
        TypeError: where it is neither.
    """
    expect(
        argument,
        network,
        (ParameterTable, Description),
        "an nsn.Network or its description",
        "Of a wrapped network, such as a DistributedDataParallel, take .module.",
    )
    return network if isinstance(network, Description) else network.description


def network_in(argument: str, value: object) -> ParameterTable:
    """The network that was given, or that a wrapper holds: DDP, AveragedModel, torch.compile's.

    Raises:
        TypeError: where there is none.
    """
    inside = value
    while isinstance(inside, nn.Module) and not isinstance(inside, ParameterTable):
        held = inside._modules.get("module") or inside._modules.get("_orig_mod")
        if held is None:
            break
        inside = held
    if isinstance(inside, ParameterTable):
        return inside
    raise TypeError(
        f"{argument} must be an nsn.Network, but is {kind_of(value)}. Give the network, or a "
        f"wrapper that holds it as .module."
    )
