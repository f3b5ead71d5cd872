"""Curves of runs."""

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nsn import files
from nsn.training.recipe import metric_of

_STYLES = ("-", "--", ":", "-.")


def plot_curves(runs: Mapping[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draws each sub-network's test accuracy, for text its test loss, and the training loss.

    A sub-network has one colour in all runs, and another style of line in each run that has it.

    Args:
        runs: label to report, as report.json has it; its ``epochs`` may be empty.
        path: the PNG file to write.
        title: above the curves.
    """
    many_epochs = any(len(report["epochs"]) > 60 for report in runs.values())
    line = {"marker": "" if many_epochs else ".", "linewidth": 1}
    metrics = {metric_of(report.get("recipe", {})) for report in runs.values()}
    metric = metrics.pop() if len(metrics) == 1 else "accuracy"
    colours: dict[str, str] = {}
    styles: dict[str, Iterator[str]] = defaultdict(lambda: cycle(_STYLES))
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        score, loss = figure.subplots(1, 2)
        for label, report in runs.items():
            epochs, alone = report["epochs"], report.get("alone")
            numbers = [record["epoch"] for record in epochs]
            for name in epochs[-1]["subnetworks"] if epochs else []:
                scores = [record["subnetworks"].get(name) for record in epochs]
                values = [math.nan if each is None else each[metric] for each in scores]
                shown = alone or name
                colour = colours.setdefault(shown, f"C{len(colours) % 10}")
                text = f"{shown} alone" if alone else shown
                score.plot(
                    numbers,
                    values,
                    linestyle=next(styles[shown]),
                    color=colour,
                    label=text if len(runs) == 1 or label == text else f"{label}: {text}",
                    **line,
                )
            loss.plot(
                numbers,
                [record["train_loss"] for record in epochs],
                linestyle=next(styles[f"loss of {alone}"]),
                color=colours.get(str(alone), "black"),
                label=label,
                **line,
            )
        score.set(xlabel="epoch", ylabel=f"test {metric}")
        loss.set(xlabel="epoch", ylabel="training loss, summed over sub-networks", yscale="log")
        if colours:
            score.legend(fontsize=7 if len(runs) > 1 else 9)
        if len(runs) > 1:
            loss.legend(fontsize=7)
        for axes in (score, loss):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
    files.write(path, image.getbuffer())
