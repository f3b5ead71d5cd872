"""A network as a value: input, blocks, sub-networks and merge rules, without tensors."""

import json
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nsn import _C
from nsn._C.merge import Rule
from nsn.blocks import BlockOptions, _documents
from nsn.checks import expect, expect_functions, expect_name, kind_of, names_of
from nsn.summary import Summary

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
}


@dataclass(frozen=True)
class Subnetwork:
    """The blocks that a sub-network keeps, and how wide.

    Attributes:
        blocks: their names, in the order of the network; None: all.
        dropout: block's name to this sub-network's dropout there, in place of the block's own.
        width: how much of all blocks is kept, a fraction such as 0.5: what cannot be narrowed stays
            whole, and so does what the shape of the output depends on. Or block's name to how much
            it keeps of the block's dimension: a count, an int (1 keeps one), or a fraction, a float
            (1.0 keeps all). Where the block has several dimensions, name to such a number:
            ``{"block1": {"heads": 2, "ffn": 0.5}}``; of a block inside the block its only
            dimension has its name too: ``{"stage": {"conv": 0.5}}``. A width that would change the
            shape of the sub-network's output must name its dimension: ``{"last": {"out": 5}}``.
            ``"*"`` is all blocks that have no number of their own: ``{"*": 0.5, "conv1": 1.0}``.
    """

    blocks: Sequence[str] | None = None
    dropout: Mapping[str, float] = field(default_factory=dict)
    width: float | Mapping[str, int | float | Mapping[str, int | float]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if isinstance(self.blocks, str):
            raise TypeError(
                f"nsn.Subnetwork: blocks must be a list of names, but is a str. Write "
                f"['{self.blocks}']."
            )
        for name in ("dropout", "width"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and not (
                name == "width" and isinstance(value, numbers.Real)
            ):
                raise TypeError(
                    f"nsn.Subnetwork: {name} must be a dict of blocks"
                    f"{' or one fraction for all' if name == 'width' else ''}, but is a "
                    f"{type(value).__name__}."
                )

    def _document(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = {"name": name}
        if self.blocks is not None:
            document["blocks"] = list(self.blocks)
        if self.dropout:
            document["dropout"] = dict(self.dropout)
        if isinstance(self.width, Mapping):
            width = {
                block: dict(kept) if isinstance(kept, Mapping) else kept
                for block, kept in self.width.items()
            }
            return {**document, "width": width} if width else document
        return {**document, "width": self.width}


@dataclass(frozen=True)
class Widths:
    """An axis of a grid: widths, from the narrowest to the widest.

    Attributes:
        widths: one for each choice, a count or a fraction as in :class:`Subnetwork`.
        of: what has it: blocks, dimensions of blocks (``"block1.heads"``), or ``"*"``, all blocks.
    """

    widths: Sequence[int | float]
    of: Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        kind = "a list of counts and fractions"
        expect("nsn.Widths: widths", self.widths, Sequence, kind)
        for width in self.widths:
            expect("nsn.Widths: each width", width, numbers.Real, "a count or a fraction")
        names_of("nsn.Widths: of", self.of, "blocks")

    @property
    def choices(self) -> int:
        """How many choices it has."""
        return len(self.widths)

    def _document(self, name: str) -> dict[str, Any]:
        return {"name": name, "widths": list(self.widths), "of": list(self.of)}


@dataclass(frozen=True)
class Depths:
    """An axis of a grid: blocks that may be left out.

    Its first choice leaves out all of them, each further one keeps one more, the last all.

    Attributes:
        drops: blocks' names, in the order in which they are left out.
    """

    drops: Sequence[str]

    def __post_init__(self) -> None:
        names_of("nsn.Depths: drops", self.drops, "blocks")

    @property
    def choices(self) -> int:
        """How many choices it has: one more than blocks."""
        return len(self.drops) + 1

    def _document(self, name: str) -> dict[str, Any]:
        return {"name": name, "drops": list(self.drops)}


class Description(_C.Description):
    """A network as a value, checked as a whole when it is made.

    Args:
        input: the shape of one sample, without the batch dimension.
        blocks: name to block, from input to output.
        subnetworks: name to :class:`Subnetwork`, or to the list of the blocks that it keeps.
            ``base`` has all blocks unless it is given here too.
        grid: name to :class:`Widths` or :class:`Depths`, the axes of sub-networks that are not
            listed: each combination of one choice of every axis is a narrower, shallower base,
            named by its choices, ``"w0_d2"``. It is made where it runs, and what is meant by "all"
            elsewhere, as in ``nsn.ALL``, are those that are listed.
        merge: the merge rule; default ``nsn.merge.sum()``.
        block_merge: block's name to the rule in that block, in place of ``merge``.
        dtype: of the input; parameters have it too where it is a floating one, else float32.
            Default: torch's default dtype.

    Raises:
        ValueError: where parts do not fit together; names the part, what was found and the remedy.
        TypeError: where an argument is of another kind.
    """

    def __init__(
        self,
        *,
        input: Sequence[int],
        blocks: Mapping[str, BlockOptions],
        subnetworks: Mapping[str, Subnetwork | Sequence[str]] | None = None,
        grid: Mapping[str, Widths | Depths] | None = None,
        merge: Rule | None = None,
        block_merge: Mapping[str, Rule] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        functions: dict[str, Callable[..., torch.Tensor]] = {}
        own_rules = dict(block_merge or {})
        document: dict[str, Any] = {
            "nsn": 1,
            "input": {
                "shape": _extents(input),
                "dtype": _dtype_name(dtype or torch.get_default_dtype()),
            },
            "blocks": [],
            "subnetworks": [],
        }
        for entry in _documents(blocks, "nsn.Description"):
            if entry["name"] in own_rules:
                entry["merge"] = _rule_document(own_rules.pop(entry["name"]), functions)
            document["blocks"].append(entry)
        if own_rules:
            raise ValueError(
                f"nsn.Description: block_merge names a block that does not exist: "
                f"'{next(iter(own_rules))}'. The blocks are {', '.join(map(repr, blocks))}."
            )
        for name, subnetwork in _items(subnetworks or {}):
            if isinstance(subnetwork, str):
                raise TypeError(
                    f"nsn.Description: sub-network '{name}' must be a list of blocks or an "
                    f"nsn.Subnetwork, but is a str. Write ['{subnetwork}']."
                )
            if not isinstance(subnetwork, Subnetwork):
                subnetwork = Subnetwork(subnetwork)
            document["subnetworks"].append(subnetwork._document(name))
        expect("nsn.Description: grid", grid or {}, Mapping, "a dict of axes")
        for name, axis in (grid or {}).items():
            kind = "nsn.Widths or nsn.Depths"
            expect(f"nsn.Description: axis '{name}'", axis, (Widths, Depths), kind)
            document.setdefault("grid", []).append(axis._document(name))
        if merge is not None:
            document["merge"] = _rule_document(merge, functions)
        super().__init__(_dump(document), functions)

    @classmethod
    def from_json(
        cls, text: str, rules: Mapping[str, Callable[..., torch.Tensor]] | None = None
    ) -> "Description":
        """A description from its JSON document.

        Args:
            text: the document; docs/description.md has the schema.
            rules: merge functions by name, which a document cannot hold.

        Raises:
            ValueError: where the text is no such document or its parts do not fit together.
        """
        expect("nsn.Description.from_json: text", text, str, "a document as a str")
        expect_functions("nsn.Description.from_json: rules", rules or {})
        description = cls.__new__(cls)
        _C.Description.__init__(description, text, dict(rules or {}))
        return description

    @classmethod
    def _of(cls, description: _C.Description) -> "Description":
        """One that the C++ library made, with the functions of its rules."""
        return cls.from_json(description.to_json(), description.functions())

    def alone(self, name: str) -> "Description":
        """The network of one sub-network by itself: its blocks, as wide as it keeps them.

        Args:
            name: the sub-network, which is ``base`` of the result.

        Raises:
            ValueError: where there is no such sub-network.
        """
        expect_name("nsn.Description.alone: name", name)
        return Description._of(super().alone(name))

    @property
    def grid(self) -> dict[str, Widths | Depths]:
        """The axes of sub-networks that are not listed, by name."""
        return {
            axis["name"]: Depths(axis["drops"])
            if "drops" in axis
            else Widths(axis["widths"], axis["of"])
            for axis in json.loads(self.to_json()).get("grid", [])
        }

    def cell(self, /, **choices: int) -> str:
        """The name of a sub-network of the grid.

        Args:
            choices: for each axis, counted from 0, the smallest.

        Raises:
            ValueError: where there is no grid, or an axis is missing, unknown or without that
                choice.
        """
        axes = dict(self._axes)
        if not axes:
            raise ValueError(
                "nsn.Description.cell: the network has no grid. List its sub-networks' names, or "
                "describe one with grid=."
            )
        if set(choices) != set(axes):
            raise ValueError(
                f"nsn.Description.cell: expected a choice for each axis of the grid, "
                f"{', '.join(map(repr, axes))}, but got "
                f"{', '.join(map(repr, choices)) or 'none'}."
            )
        for name, choice in choices.items():
            where = f"nsn.Description.cell: the choice of '{name}'"
            expect(where, choice, numbers.Integral, "an int")
            if not 0 <= int(choice) < axes[name]:
                raise ValueError(f"{where} must be from 0 to {axes[name] - 1}, but is {choice}.")
        return self._cell([int(choices[name]) for name in axes])

    def has_cell(self, name: str) -> bool:
        """Whether the name is that of a sub-network of the grid."""
        expect_name("nsn.Description.has_cell: name", name)
        return self._find(name) is not None and name not in self.names

    def index_of(self, name: str) -> int:
        """A sub-network's place: among ``names``, and behind them for those of the grid.

        Raises:
            ValueError: where there is no such sub-network.
        """
        expect_name("nsn.Description.index_of: name", name)
        return super().index_of(name)

    def blocks_of(self, name: str) -> list[str]:
        """The blocks that a sub-network keeps, in order; raises as :meth:`index_of`."""
        expect_name("nsn.Description.blocks_of: name", name)
        return super().blocks_of(name)

    def output_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a sub-network's output for one sample; raises as :meth:`index_of`."""
        expect_name("nsn.Description.output_shape: name", name)
        return super().output_shape(name)

    def flops(self, name: str) -> int:
        """Of one sample, two for each multiply-add; raises as :meth:`index_of`."""
        expect_name("nsn.Description.flops: name", name)
        return super().flops(name)

    def parameter_count(self, name: str | None = None) -> int:
        """Elements of the parameters of a sub-network, or of all; raises as :meth:`index_of`."""
        if name is not None:
            expect_name("nsn.Description.parameter_count: name", name)
        return super().parameter_count(name)

    def to_json(self, indent: int = -1) -> str:
        """The JSON document; docs/description.md has the schema.

        Args:
            indent: spaces for each level; -1: all on one line.
        """
        expect("nsn.Description.to_json: indent", indent, int, "an int")
        return super().to_json(indent)

    def describe(self) -> Summary:
        """What each sub-network is: blocks, widths, parameters, bytes, FLOPs, what it shares."""
        return Summary(super().describe())

    def program(self, name: str) -> str:
        """What a sub-network computes in inference, in primitives, as a JSON document.

        ``{"input": {..}, "steps": [..], "output": value}``; docs/program.md has the schema. Raises
        as :meth:`index_of`.
        """
        expect_name("nsn.Description.program: name", name)
        return super().program(name)

    def program_text(self, name: str) -> str:
        """The same for people, one line a step."""
        expect_name("nsn.Description.program_text: name", name)
        return super().program_text(name)

    def plan(self, name: str) -> str:
        """How packs run a sub-network in float32 on the CPU, as a JSON document.

        ``{"steps": [..], "arena_bytes": .., "flops": ..}``; docs/program.md has the schema.

        Raises:
            ValueError: as :meth:`index_of`, and where it is not of float32, so that packs run its
                program step by step.
        """
        expect_name("nsn.Description.plan: name", name)
        return super().plan(name)

    def plan_text(self, name: str) -> str:
        """The same for people, one line a step."""
        expect_name("nsn.Description.plan_text: name", name)
        return super().plan_text(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Description.from_json, (self.to_json(), self.functions())

    def __repr__(self) -> str:
        return f"Description.from_json('''{self.to_json(2)}''')"


def _items(subnetworks: Any) -> list[tuple[str, Any]]:
    if not isinstance(subnetworks, Mapping):
        raise TypeError(
            f"nsn.Description: subnetworks must be a dict of names, but is a "
            f"{type(subnetworks).__name__}."
        )
    return list(subnetworks.items())


def _extents(shape: Sequence[int]) -> list[int]:
    if isinstance(shape, (Mapping, str)):
        raise TypeError(
            f"nsn.Description: input must be the shape of one sample, a tuple, but is a "
            f"{type(shape).__name__}. A network has one input."
        )
    if isinstance(shape, int):
        raise TypeError(
            f"nsn.Description: input must be the shape of one sample, a tuple, but is an int. "
            f"Write ({shape},)."
        )
    return list(shape)


def _dtype_name(dtype: torch.dtype) -> str:
    if dtype not in _DTYPES:
        raise ValueError(
            f"nsn.Description: the input's dtype must be a floating or integral one, but is "
            f"{dtype if isinstance(dtype, torch.dtype) else kind_of(dtype)}. Use torch.float32."
        )
    return _DTYPES[dtype]


def _plain(value: Any) -> int | float:
    """Numbers of other libraries, such as numpy's, as Python's."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"it is a {type(value).__name__}")


def _dump(document: dict[str, Any]) -> str:
    try:
        return json.dumps(document, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"nsn.Description: an option is neither a finite number, a string nor a bool: {error}."
        ) from None


def _rule_document(rule: Rule, functions: dict[str, Callable[..., torch.Tensor]]) -> dict[str, Any]:
    """A rule's JSON; a function is put into ``functions`` under its name."""
    if not isinstance(rule, Rule):
        raise TypeError(
            f"nsn.Description: a merge rule must come from nsn.merge, such as nsn.merge.mean(), "
            f"but is a {type(rule).__name__}. Call the function that makes it, or "
            f"wrap one of your own in nsn.merge.function."
        )
    if rule.is_builtin:
        return {"rule": rule.name, **({"weights": rule.weights} if rule.weights else {})}
    if (
        rule.function is not None
        and functions.setdefault(rule.name, rule.function) != rule.function
    ):
        raise ValueError(
            f"nsn.Description: two different merge functions are named '{rule.name}'. Give one of "
            f"them another name: nsn.merge.function(..., name=...)."
        )
    return {"rule": "function", "name": rule.name}


def described_dtype(description: Description) -> torch.dtype:
    """Of a network's input, as it is described."""
    dtype: torch.dtype = getattr(torch, json.loads(description.to_json())["input"]["dtype"])
    return dtype
