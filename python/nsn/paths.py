"""The ways of sub-networks through a network's blocks, and how wide each block is on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsn.description import Description
from nsn.summary import Summary


@dataclass(frozen=True)
class Width:
    """How much is kept of one dimension of a block.

    Attributes:
        name: of the dimension; ``output`` for what a block passes on as it gets it.
        kept: extent that the sub-network keeps.
        full: extent that the block has.
    """

    name: str
    kept: int
    full: int

    @property
    def fraction(self) -> float:
        """What is kept of the whole, above 0 and at most 1."""
        return self.kept / self.full


@dataclass(frozen=True)
class Kept:
    """A block on a sub-network's way.

    Attributes:
        widths: of the block's own dimensions, in its order; then of its output, where that follows
            the input and is narrower, or where the block has no dimension of its own.
        own: whether no other sub-network uses its parameters, or, where it has none, the block.
    """

    widths: tuple[Width, ...]
    own: bool

    @property
    def whole(self) -> bool:
        """Whether nothing of it is narrower."""
        return all(width.kept == width.full for width in self.widths)

    def texts(self) -> list[str]:
        """What is narrower, "16 of 32", with the dimension's name where there are several."""
        several = len(self.widths) > 1
        return [
            f"{width.name} {width.kept} of {width.full}"
            if several
            else f"{width.kept} of {width.full}"
            for width in self.widths
            if width.kept != width.full
        ]


@dataclass(frozen=True)
class Path:
    """A sub-network's way.

    Attributes:
        name: of the sub-network.
        parameters: elements that it reads.
        kept: for each of the network's blocks, in order, what it keeps; None where it drops one.
    """

    name: str
    parameters: int
    kept: tuple[Kept | None, ...]


@dataclass(frozen=True)
class Paths:
    """The ways of all sub-networks.

    Attributes:
        blocks: name and type of each of the network's blocks, in order.
        ways: one for each sub-network, ``base`` first.
    """

    blocks: tuple[tuple[str, str], ...]
    ways: tuple[Path, ...]


def paths_of(description: Description) -> Paths:
    """The ways of a network's sub-networks."""
    summary = description.describe()
    documents = {each["name"]: each for each in json.loads(description.to_json())["blocks"]}
    return Paths(
        tuple((name, each["type"]) for name, each in documents.items()),
        tuple(_path(each, summary, documents) for each in summary),
    )


@dataclass(frozen=True)
class _Passed:
    """What one block passes on to the next: some of its channels, or features."""

    kept: Sequence[int]
    full: int

    @property
    def width(self) -> Width:
        return Width("output", len(self.kept), self.full)


def _path(
    subnetwork: dict[str, Any], summary: Summary, documents: dict[str, dict[str, Any]]
) -> Path:
    kept: dict[str, Kept | None] = dict.fromkeys(documents)
    passed = _Passed(range(1), 1)  # the network's input is whole
    for block in subnetwork["blocks"]:
        name = block["name"]
        widths = {
            key: Width(key, each["kept"], each["full"]) for key, each in block["widths"].items()
        }
        passed = _passed(documents[name], widths, passed)
        shown = list(widths.values())
        output = passed.width
        if not shown or (output.kept < output.full and not _has_extent(shown, output)):
            shown.append(output)
        users = sum(name in (each["name"] for each in other["blocks"]) for other in summary)
        own = users == 1 or 0 < block["parameters"] == block["private_parameters"]
        kept[name] = Kept(tuple(shown), own)
    return Path(subnetwork["name"], subnetwork["parameters"], tuple(kept.values()))


def _passed(
    block: dict[str, Any], widths: dict[str, Width], passed: _Passed, prefix: str = ""
) -> _Passed:
    """What a block passes on, given what it gets.

    Args:
        block: its JSON.
        widths: of the dimensions of the whole block by their full names, as ``conv1.out``.
        passed: what it gets.
        prefix: what stands before the names of this part's dimensions.
    """
    if block["type"] == "Sequence":
        for inner in block["blocks"]:
            passed = _passed(inner, widths, passed, f"{prefix}{inner['name']}.")
        return passed
    if block["type"] == "TiedOutput":
        return _Passed(range(block["num_embeddings"]), block["num_embeddings"])
    out = widths.get(f"{prefix}out")
    if out is None:
        return passed
    groups = block.get("groups", 1)
    if groups == 1 or len(passed.kept) in (passed.full, block["in_channels"]):
        reached = range(groups)
    else:  # by those channels that are there, from the front
        reached = range(len({each * groups // passed.full for each in passed.kept}))
    kept, full = out.kept // groups, out.full // groups
    channels = [group * full + each for group in reached for each in range(kept)]
    return _Passed(channels, out.full)


def _has_extent(widths: list[Width], wanted: Width) -> bool:
    return any((each.kept, each.full) == (wanted.kept, wanted.full) for each in widths)
