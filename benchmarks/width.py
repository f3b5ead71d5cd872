"""One joint step of networks with narrower sub-networks inside, in all the ways there are.

A step is: gradients dropped, forward of all widths, summed cross entropy, backward. It ends with
gradients in ``.grad``; there is no optimizer, which would cost each way the same. All ways of one
network run interleaved in one process for each number of threads, from the same weights, and are
first checked to give the same loss. Prints tables, writes JSON and a plot of the time against the
number of sub-networks.

    python benchmarks/width.py --out width.json --plot width.png
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plain
import torch
import torch.nn.functional as F
from common import THREADS, Release, Step, child, interleaved, machine, write_json
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nsn
from nsn.blocks import BlockOptions

WIDTHS = (1.0, 0.75, 0.5, 0.25)
COUNTS = (1, 2, 4, 8, 16)
ROUNDS, STEPS = 12, 3

EXPLAINED = {
    "nsn": "nsn.Network from Python, nsn.ALL and nsn.joint_loss",
    "sliced_eager": "leading parts of the full weights under autograd, one summed loss",
    "sliced_channels_last": "the same with input and weights in torch.channels_last (CNN)",
    "sliced_compiled": "torch.compile of sliced_eager",
    "separate": "each width a network of its own with a backward of its own",
}

Loss = Callable[[], Tensor]


def evenly(count: int) -> list[float]:
    """Widths of so many sub-networks: 1, ..., 2/count, 1/count."""
    return [place / count for place in range(count, 0, -1)]


def network(
    blocks: dict[str, BlockOptions],
    narrowed: dict[str, Sequence[str]],
    widths: Sequence[float],
    **description: Any,
) -> nsn.Network:
    """A network of sub-networks that keep all blocks, with these dimensions narrowed."""
    return nsn.Network(
        blocks=blocks,
        subnetworks={
            f"width{place}": nsn.Subnetwork(
                list(blocks),
                width={name: dict.fromkeys(each, width) for name, each in narrowed.items()},
            )
            for place, width in enumerate(widths)
            if width < 1.0
        },
        **description,
    )


def mlp(widths: Sequence[float]) -> nsn.Network:
    """plain.Mlp as nsn has it."""
    layer = nsn.Dense(plain.HIDDEN, plain.HIDDEN, activation="relu")
    hidden = {f"hidden{place}": layer for place in range(plain.LAYERS)}
    return network(
        {**hidden, "output": nsn.Dense(plain.HIDDEN, plain.CLASSES)},
        dict.fromkeys(hidden, ("out",)),
        widths,
        input=(plain.HIDDEN,),
    )


def cnn(widths: Sequence[float]) -> nsn.Network:
    """plain.Cnn as nsn has it."""

    def stage(given: int, made: int, stride: int = 1, **more: BlockOptions) -> dict[str, Any]:
        return {
            "conv": nsn.Conv2d(given, made, 3, stride, padding=1, bias=False),
            "norm": nsn.BatchNorm(made, per_subnetwork=["affine", "statistics"]),
            "relu": nsn.Activation("relu"),
            **more,
        }

    first, second, third, _ = plain.CHANNELS
    blocks = {
        "stem": nsn.Sequence(stage(1, first, plain.STRIDES[0])),
        "shallow": nsn.Sequence(stage(first, second, pool=nsn.MaxPool2d(2))),
        "deep": nsn.Sequence(stage(second, third)),
        "refine": nsn.Residual(stage(third, third)),
        "pool": nsn.GlobalAvgPool(),
        "output": nsn.Dense(third, plain.CLASSES),
    }
    narrowed = dict.fromkeys(("stem", "shallow", "deep"), ("conv.out",))
    return network(blocks, narrowed, widths, input=(1, 28, 28))


def transformer(widths: Sequence[float]) -> nsn.Network:
    """plain.Transformer as nsn has it."""
    block = nsn.Transformer(
        plain.FEATURES, plain.HEADS, plain.FFN, causal=True, per_subnetwork=["affine"]
    )
    stack = {f"block{place}": block for place in range(plain.BLOCKS)}
    return network(
        {
            "tokens": nsn.Embedding(plain.VOCABULARY, plain.FEATURES),
            "positions": nsn.PositionEmbedding(plain.CONTEXT, plain.FEATURES),
            **stack,
            "norm": nsn.LayerNorm(plain.FEATURES, per_subnetwork=["affine"]),
            "output": nsn.Dense(plain.FEATURES, plain.VOCABULARY),
        },
        dict.fromkeys(stack, ("heads", "ffn")),
        widths,
        input=(plain.CONTEXT,),
        dtype=torch.int64,
    )


NETWORKS = {
    "mlp": (mlp, plain.Mlp, plain.SlicedMlp),
    "cnn": (cnn, plain.Cnn, plain.SlicedCnn),
    "transformer": (transformer, plain.Transformer, plain.SlicedTransformer),
}


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over the batch, and over positions where there are any."""
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def losses(kind: str, widths: Sequence[float]) -> dict[str, tuple[list[Loss], list[nn.Module]]]:
    """Name to the losses that a step goes through, one after the other, and what has parameters."""
    torch.manual_seed(1)
    make_nsn, make_plain, make_sliced = NETWORKS[kind]
    x, y = plain.inputs(make_plain)
    sliced, separate = make_sliced(widths), [make_plain(width) for width in widths]
    net, places = make_nsn(widths), range(len(widths))
    for each in (net, *separate):
        plain.copy_weights(sliced, each)

    def nsn_loss() -> Tensor:
        outputs = {name: each.flatten(0, -2) for name, each in net(x, nsn.ALL).items()}
        return nsn.joint_loss(outputs, y.flatten())

    def sliced_loss(sliced: nn.Module = sliced, x: Tensor = x) -> Tensor:
        return torch.stack([cross_entropy(sliced(x, place), y) for place in places]).sum()

    ways: dict[str, tuple[list[Loss], list[nn.Module]]] = {
        "nsn": ([nsn_loss], [net]),
        "sliced_eager": ([sliced_loss], [sliced]),
    }
    if kind == "cnn":
        last = copy.deepcopy(sliced).to(memory_format=torch.channels_last)
        x_last = x.contiguous(memory_format=torch.channels_last)
        ways["sliced_channels_last"] = ([lambda: sliced_loss(last, x_last)], [last])
    twin = copy.deepcopy(sliced)
    compiled = torch.compile(lambda: sliced_loss(twin))
    ways["sliced_compiled"] = ([compiled], [twin])
    alone = [lambda each=each: cross_entropy(each(x), y) for each in separate]
    ways["separate"] = (alone, list(separate))
    return ways


def way(losses: list[Loss], modules: list[nn.Module]) -> tuple[Step, Release]:
    """A step through these losses."""

    def release() -> None:
        for module in modules:
            module.zero_grad()

    def step() -> None:
        release()
        for loss in losses:
            loss().backward()

    return step, release


def check(ways: dict[str, tuple[list[Loss], list[nn.Module]]]) -> None:
    """All ways have one loss, and nsn and slicing the same gradients."""
    for name, (each, modules) in ways.items():
        values = [loss() for loss in each]
        for value in values:
            value.backward()
        total = sum(value.item() for value in values)
        if name == "nsn":
            expected, merged = total, plain.weights(modules[0])
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
        if name == "sliced_eager":
            for (_, a), (_, b) in zip(merged, plain.weights(modules[0]), strict=True):
                # As a whole: float32 rounds single elements against the largest of what is summed.
                difference = float((a.grad - b.grad).norm() / b.grad.norm())
                assert difference < 1e-3, difference


def measure(kind: str) -> dict[str, Any]:
    """One process: all ways of one network."""
    ways = losses(kind, WIDTHS)
    check(ways)
    return interleaved({name: way(*each) for name, each in ways.items()}, ROUNDS, STEPS)


def measure_counts() -> dict[str, Any]:
    """One process: the MLP with more and more sub-networks."""
    result = {}
    for count in COUNTS:
        ways = losses("mlp", evenly(count))
        shown = {name: way(*ways[name]) for name in ("nsn", "sliced_eager")}
        result[str(count)] = interleaved(shown, ROUNDS, STEPS)
    return result


def print_table(title: str, result: dict[str, Any]) -> None:
    """One line a way."""
    table = Table(title=title, title_justify="left")
    for column in ("way", "median", "p10 - p90", "/ nsn", "peak memory"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, median in result["median_ms"].items():
        low, high = result["p10_p90_ms"][name]
        table.add_row(
            name,
            f"{median:.1f} ms",
            f"{low:.1f} - {high:.1f}",
            f"{median / result['median_ms']['nsn']:.2f}",
            f"{result['peak_bytes'][name] / 1e6:.1f} MB",
        )
    Console(width=100).print(table)


def plot(results: dict[str, Any], path: Path) -> None:
    """The time of a step against the number of sub-networks."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (threads, of_count) in zip(
        figure.subplots(1, len(results), sharey=True), results.items(), strict=True
    ):
        for name in ("nsn", "sliced_eager"):
            times = [of_count[str(count)]["median_ms"][name] for count in COUNTS]
            axes.plot(COUNTS, times, marker=".", label=name)
        axes.set(title=f"threads: {threads}", xlabel="sub-networks", xticks=COUNTS)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].set_ylabel("ms a step")
    figure.axes[0].legend()
    figure.suptitle("MLP of 8 x 1024, batch 64, n sub-networks of widths 1/n, 2/n, ..., 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs one process for each network and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", choices=[*NETWORKS, "counts"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        count = arguments.child == "counts"
        print(json.dumps(measure_counts() if count else measure(arguments.child)))
        return
    results: dict[str, dict[str, Any]] = {}
    counts: dict[str, Any] = {}
    for threads in THREADS:
        results[threads] = {}
        for kind in NETWORKS:
            results[threads][kind] = child(threads, kind)
            print_table(f"{kind}, one step, threads: {threads}", results[threads][kind])
        counts[threads] = child(threads, "counts")
        for count, result in counts[threads].items():
            print_table(f"mlp, sub-networks: {count}, threads: {threads}", result)
    for name, text in EXPLAINED.items():
        print(f"{name}: {text}")
    if arguments.plot:
        plot(counts, arguments.plot)
    if arguments.out:
        document = {
            "machine": machine(),
            "step": "forward, summed cross entropy, backward; no optimizer",
            "widths": WIDTHS,
            "steps": ROUNDS * STEPS,
            "threads": results,
            "subnetworks": counts,
        }
        write_json(arguments.out, document)


if __name__ == "__main__":
    main()
