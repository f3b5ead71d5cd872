"""Curves of a run."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nsn.training.report import write_atomically


def plot_curves(epochs: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws test accuracy of each sub-network, and the training loss, over the epochs.

    Args:
        epochs: the records of report.json; may be empty.
        path: the PNG file to write.
        title: above the curves.
    """
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        accuracy, loss = figure.subplots(1, 2)
        numbers = [record["epoch"] for record in epochs]
        names = list(epochs[0]["subnetworks"]) if epochs else []
        for name in names:
            values = [record["subnetworks"][name]["accuracy"] for record in epochs]
            accuracy.plot(numbers, values, marker=".", label=name)
        accuracy.set(xlabel="epoch", ylabel="test accuracy")
        if names:
            accuracy.legend()
        loss.plot(numbers, [record["train_loss"] for record in epochs], marker=".", color="black")
        loss.set(xlabel="epoch", ylabel="training loss, summed over sub-networks")
        for axes in (accuracy, loss):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getvalue())
