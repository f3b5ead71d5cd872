"""Each block by itself: the table of cases that the tests run (tests/python/cases.py), at size.

- step: forward, summed squares and backward of all sub-networks; ``nsn`` is one joint pass, and
  ``plain`` runs their copies as modules of torch (``extract``), one after the other;
- base: inference of the whole network; ``packed`` is a packed view, ``view`` a view, and ``plain``
  the copy.

Ratios are over ``plain``: below 1 is faster. An entry that makes the block's input, or another
block behind it, is part of all of them.

    PYTHONPATH=tests/python python benchmarks/ops.py
"""

from typing import Any

import torch
from common import run
from inference import Way, medians
from rich.console import Console
from rich.table import Table

import nsn
from cases import LARGE, Case, table

SECONDS = 0.01


def ways_of(case: Case) -> dict[str, dict[str, Way]]:
    """What is timed, by kind and way."""
    net = nsn.Network(case.description(merge=nsn.merge.mean()))
    copies = [net.extract(name) for name in net.subnetworks]
    x = case.batch_of_inputs()

    def joint() -> None:
        net.zero_grad()
        sum(y.square().mean() for y in net(x, nsn.ALL).values()).backward()

    def one_after_the_other() -> None:
        for module in copies:
            module.zero_grad()
            module(x).square().mean().backward()

    evaluated = net.extract("base").eval()
    packed, view = net.pack(["base"]).view("base"), net.view("base")

    def plain() -> None:
        with torch.inference_mode():
            evaluated(x)

    return {
        "step": {"nsn": joint, "plain": one_after_the_other},
        "base": {"packed": lambda: packed(x), "view": lambda: view(x), "plain": plain},
    }


def measure() -> dict[str, Any]:
    """Medians in microseconds, by case, kind and way."""
    result: dict[str, Any] = {}
    for name, case in table(LARGE).items():
        if case.is_corner:
            continue
        result[name] = {
            kind: medians(ways, seconds=SECONDS)["median_us"]
            for kind, ways in ways_of(case).items()
        }
    return result


def show(above: str, result: dict[str, Any]) -> None:
    """Prints one row a case."""
    rows = Table(title=f"blocks, median us and ratios over plain: {above}", title_justify="left")
    rows.add_column("case", no_wrap=True)
    for column in ("step", "/ plain", "packed", "/ plain", "view", "/ plain"):
        rows.add_column(column, justify="right")
    for name, kinds in result.items():
        cells = []
        for kind, way in (("step", "nsn"), ("base", "packed"), ("base", "view")):
            times = kinds[kind]
            cells += [f"{times[way]:.0f}", f"{times[way] / times['plain']:.2f}"]
        rows.add_row(name, *cells)
    Console(width=100).print(rows)


if __name__ == "__main__":
    run(__doc__, measure, show)
