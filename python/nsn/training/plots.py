"""Curves of runs."""

import io
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nsn.training.report import write_atomically

_STYLES = ("-", "--", ":", "-.")


def plot_curves(runs: Mapping[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draws test accuracy of each sub-network, and the training loss, over the epochs.

    A sub-network has one colour in all runs, a run one style of line.

    Args:
        runs: label to report, as report.json has it; its ``epochs`` may be empty.
        path: the PNG file to write.
        title: above the curves.
    """
    many_epochs = any(len(report["epochs"]) > 60 for report in runs.values())
    marker = "" if many_epochs else "."
    colours: dict[str, str] = {}
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        accuracy, loss = figure.subplots(1, 2)
        for (label, report), style in zip(runs.items(), cycle(_STYLES)):
            epochs, alone = report["epochs"], report.get("alone")
            numbers = [record["epoch"] for record in epochs]
            for name in epochs[0]["subnetworks"] if epochs else []:
                values = [record["subnetworks"][name]["accuracy"] for record in epochs]
                shown = alone or name
                colour = colours.setdefault(shown, f"C{len(colours) % 10}")
                text = f"{shown} alone" if alone else shown
                accuracy.plot(
                    numbers,
                    values,
                    linestyle=style,
                    marker=marker,
                    linewidth=1,
                    color=colour,
                    label=text if len(runs) == 1 else f"{label}: {text}",
                )
            loss.plot(
                numbers,
                [record["train_loss"] for record in epochs],
                linestyle=style,
                marker=marker,
                linewidth=1,
                color="black",
                label=label,
            )
        accuracy.set(xlabel="epoch", ylabel="test accuracy")
        loss.set(xlabel="epoch", ylabel="training loss, summed over sub-networks", yscale="log")
        if colours:
            accuracy.legend(fontsize=7 if len(runs) > 1 else 9)
        if len(runs) > 1:
            loss.legend(fontsize=7)
        for axes in (accuracy, loss):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getvalue())
