"""What ``nsn describe`` prints, and where it reads it."""

import math
from pathlib import Path

from rich.console import Group
from rich.table import Table

from nsn import files
from nsn.checkpoint import load
from nsn.description import Depths, Description
from nsn.paths import Kept, paths_of
from nsn.training.errors import InputError
from nsn.training.recipe import description_of, shipped

_MOST_COLUMNS = 32


def read_description(source: str) -> Description:
    """The description of a network.

    Args:
        source: a shipped recipe's name, or the path of a recipe (.toml), of a checkpoint
            (.safetensors) or of a description (.json).

    Raises:
        InputError: where it is none of these, or is malformed.
    """
    kind = ".toml" if source in shipped() else Path(source).suffix
    if kind == ".toml":
        return description_of(source)
    if kind not in (".safetensors", ".json"):
        raise InputError(
            f"a network is read from a checkpoint (.safetensors), a recipe (.toml), a description "
            f"(.json) or one of the recipes {', '.join(shipped())}, but got '{source}'."
        )
    try:
        if kind == ".safetensors":
            return load(source).description
        text = files.read(source).decode()
    except OSError as error:
        raise InputError(files.reason(error)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read '{source}': it is no UTF-8 text: {error}.") from None
    except ValueError as error:
        raise InputError(str(error).removeprefix("nsn: ")) from None
    try:
        return Description.from_json(text)
    except ValueError as error:
        raise InputError(f"'{source}': {error}") from None


def tables(description: Description) -> Group:
    """The sub-networks for a person: in numbers, what they share, and each one's widths."""
    several = len(description.names) > 1
    grid = [_grid(description)] if description.grid else []
    if len(description.names) > _MOST_COLUMNS:
        return Group(
            _overview(description),
            *grid,
            f"What two share, and widths, are shown for up to {_MOST_COLUMNS} sub-networks; --json "
            f"has them all.",
        )
    return Group(
        _overview(description),
        *grid,
        *([_shares(description)] if several else []),
        _widths(description),
    )


def _overview(description: Description) -> Table:
    summary = description.describe()
    base, stored = summary[0]["parameters"], description.parameter_count()
    apart = sum(each["parameters"] for each in summary)
    result = Table(title="Sub-networks")
    if len(summary) > 1:
        result.caption = f"Stored once: {stored:,} parameters; as separate networks: {apart:,}."
    result.add_column("sub-\nnetwork", overflow="fold")
    headings = ("blocks", "parameters", "% of\nbase", "bytes", "FLOPs\na sample", "its own\nalone")
    for heading in headings:
        result.add_column(heading, justify="right", overflow="fold")
    for each in summary:
        result.add_row(
            each["name"],
            str(len(each["blocks"])),
            f"{each['parameters']:,}",
            f"{100 * each['parameters'] / base:.1f}" if base else "-",
            f"{each['bytes']:,}",
            f"{each['flops']:,}",
            f"{each['private_parameters']:,}",
        )
    return result


def _grid(description: Description) -> Table:
    axes = description.grid
    smallest = description.cell(**dict.fromkeys(axes, 0))
    largest = description.cell(**{name: axis.choices - 1 for name, axis in axes.items()})
    ends = (
        f"{name} ({description.parameter_count(name):,} parameters)" for name in (smallest, largest)
    )
    count = math.prod(axis.choices for axis in axes.values())
    result = Table(title="Grid: sub-networks that are not listed")
    result.caption = f"{count:,} of them: {' to '.join(ends)}."
    for heading in ("axis", "choices", "of"):
        result.add_column(heading, overflow="fold")
    for name, axis in axes.items():
        if isinstance(axis, Depths):
            result.add_row(name, f"drops {len(axis.drops)} to 0", ", ".join(axis.drops))
        else:
            result.add_row(name, ", ".join(map(str, axis.widths)), ", ".join(axis.of))
    return result


def _shares(description: Description) -> Table:
    summary = description.describe()
    result = Table(title="Parameters that two share")
    result.add_column("sub-network", overflow="fold")
    for each in summary:
        result.add_column(each["name"], justify="right", overflow="fold")
    for each in summary:
        result.add_row(
            each["name"],
            *("-" if other is each else f"{each['shared'][other['name']]:,}" for other in summary),
        )
    return result


def _widths(description: Description) -> Table:
    paths = paths_of(description)
    dimensions = {
        block["name"]: block["widths"]
        for subnetwork in description.describe()
        for block in subnetwork["blocks"]
    }
    result = Table(title="Widths")
    result.caption = (
        "Widths are counts. In a description a whole number is a count too (1 keeps one); a number "
        "with a point is a fraction (1.0 keeps all)."
    )
    result.add_column("block", overflow="fold")
    result.add_column("full", overflow="fold")
    for way in paths.ways:
        result.add_column(way.name, overflow="fold")
    for place, (name, kind) in enumerate(paths.blocks):
        full = (f"{key} {width['full']}" for key, width in dimensions[name].items())
        cells = (_width_text(way.kept[place]) for way in paths.ways)
        result.add_row(f"{name} ({kind})", "\n".join(full), *cells)
    return result


def _width_text(kept: Kept | None) -> str:
    """A cell of the table of widths."""
    if kept is None:
        return "-"
    return "whole" if kept.whole else "\n".join(kept.texts())
