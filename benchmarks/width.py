"""One joint step of networks with narrower sub-networks inside, in all the ways there are.

A step is: gradients dropped, forward of all widths, summed cross entropy, backward. It ends with
gradients in ``.grad``; there is no optimizer, which would cost each way the same. All ways of one
network run interleaved in one process for each level and number of threads, from the same weights,
and the gradients of each are first checked against those of slicing in float64. Beside them stands
a step of the full network alone. Prints tables, writes JSON as results come, and a plot of the time
against the number of sub-networks.

    python benchmarks/width.py --out width.json --plot width.png
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plain
import torch
import torch.nn.functional as F
from common import (
    Release,
    Step,
    arguments_of,
    child,
    configurations,
    interleaved,
    machine,
    title,
    write_json,
)
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nsn
from nsn.blocks import BlockOptions

WIDTHS = (1.0, 0.75, 0.5, 0.25)
COUNTS = (1, 2, 4, 8, 16)
SECONDS, SECONDS_OF_COUNT = 9, 2

EXPLAINED = {
    "nsn": "nsn.Network from Python, nsn.ALL and nsn.joint_loss",
    "nsn_by_lane": "Network.backward_by_lane: the activations of one sub-network at a time",
    "sliced_eager": "leading parts of the full weights under autograd, one summed loss",
    "sliced_loop": "the same with a backward for each width, as slimmable networks are trained",
    "sliced_channels_last": "sliced_eager with input and weights in torch.channels_last (CNN)",
    "loop_channels_last": "sliced_loop likewise",
    "sliced_compiled": "torch.compile of sliced_eager",
    "nested": "a Function in plain torch whose products share what widths share (MLP)",
    "separate": "each width a network of its own with a backward of its own",
    "nsn_alone": "the full network alone, as a sub-network of nsn",
    "plain_alone": "the full network alone, in plain torch",
}
#: Of a parameter's gradient, as a norm, what float32 may differ from float64 by. In the CNN one
#: activation whose sign is rounded the other way makes 5e-3: what batch norm leaves of a gradient
#: is the small rest of large sums.
TOLERANCES = {"mlp": 1e-4, "cnn": 1e-2, "transformer": 1e-4}

Loss = Callable[[], Tensor]
#: What makes the gradients and returns the loss, and the modules that they are gradients of.
Way = tuple[Callable[[], float], list[nn.Module]]


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


def backward(*losses: Loss) -> Callable[[], float]:
    """Goes through losses one after the other, each with a backward of its own."""

    def run() -> float:
        total = 0.0
        for loss in losses:
            value = loss()
            value.backward()
            total += value.detach()
        return float(total)

    return run


def sliced_losses(sliced: nn.Module, x: Tensor, y: Tensor, count: int) -> list[Loss]:
    """One loss for each width."""
    return [lambda place=place: cross_entropy(sliced(x, place), y) for place in range(count)]


def together(losses: list[Loss]) -> Loss:
    """One loss for all."""
    return lambda: torch.stack([loss() for loss in losses]).sum()


def ways_of(kind: str, widths: Sequence[float]) -> tuple[dict[str, Way], dict[str, Way], Way]:
    """Ways of a joint step, ways of the full network alone, and slicing in float64."""
    torch.manual_seed(1)
    make_nsn, make_plain, make_sliced = NETWORKS[kind]
    x, y = plain.inputs(make_plain)
    count = len(widths)
    sliced, separate = make_sliced(widths), [make_plain(width) for width in widths]
    net, by_lane, alone = make_nsn(widths), make_nsn(widths), make_nsn(widths)
    for each in (net, by_lane, alone, *separate):
        plain.copy_weights(sliced, each)

    def twin() -> nn.Module:
        return copy.deepcopy(sliced)

    def nsn_loss() -> Tensor:
        outputs = {name: each.flatten(0, -2) for name, each in net(x, nsn.ALL).items()}
        return nsn.joint_loss(outputs, y.flatten())

    def nsn_by_lane() -> float:
        losses = by_lane.backward_by_lane(x, lambda _, output: cross_entropy(output, y))
        return float(sum(losses.values()))

    loop, compiled = twin(), twin()
    compiled_loss = torch.compile(together(sliced_losses(compiled, x, y, count)))
    ways: dict[str, Way] = {
        "nsn": (backward(nsn_loss), [net]),
        "nsn_by_lane": (nsn_by_lane, [by_lane]),
        "sliced_eager": (backward(together(sliced_losses(sliced, x, y, count))), [sliced]),
        "sliced_loop": (backward(*sliced_losses(loop, x, y, count)), [loop]),
    }
    if kind == "cnn":
        x_last = x.contiguous(memory_format=torch.channels_last)
        for name in ("sliced_channels_last", "loop_channels_last"):
            last = twin().to(memory_format=torch.channels_last)
            losses = sliced_losses(last, x_last, y, count)
            one_by_one = name.startswith("loop")
            ways[name] = (backward(*(losses if one_by_one else [together(losses)])), [last])
    ways["sliced_compiled"] = (backward(compiled_loss), [compiled])
    if kind == "mlp":
        nested = plain.NestedMlp(widths)
        plain.copy_weights(sliced, nested)
        targets = y.repeat(count)
        ways["nested"] = (
            backward(
                lambda: F.cross_entropy(nested.all_widths(x), targets, reduction="sum") / len(y)
            ),
            [nested],
        )
    each_alone = [lambda each=each: cross_entropy(each(x), y) for each in separate]
    ways["separate"] = (backward(*each_alone), list(separate))

    full = copy.deepcopy(separate[0])
    alone_ways: dict[str, Way] = {
        "nsn_alone": (backward(lambda: cross_entropy(alone(x), y)), [alone]),
        "plain_alone": (backward(lambda: cross_entropy(full(x), y)), [full]),
    }
    exact = twin().double()
    x_exact = x.double() if x.is_floating_point() else x
    return ways, alone_ways, (backward(*sliced_losses(exact, x_exact, y, count)), [exact])


def step_of(way: Way) -> tuple[Step, Release]:
    """A step of a way, and what drops the gradients."""
    run, modules = way

    def release() -> None:
        for module in modules:
            module.zero_grad()

    def step() -> None:
        release()
        run()

    return step, release


def check(ways: dict[str, Way], exact: Way, tolerance: float) -> dict[str, float]:
    """All ways have the loss and the gradients of float64; returns the largest differences."""
    expected = exact[0]()
    differences = {}
    for name, (run, modules) in ways.items():
        torch.testing.assert_close(run(), expected, rtol=1e-5, atol=1e-5)
        if len(modules) > 1:
            continue  # gradients of their own
        # As a whole: float32 rounds single elements against the largest of what is summed.
        differences[name] = max(
            float((a.grad - b.grad).norm() / b.grad.norm())
            for (_, a), (_, b) in zip(
                plain.weights(modules[0]), plain.weights(exact[1][0]), strict=True
            )
        )
        if not differences[name] < tolerance:
            raise SystemExit(f"{name}: gradients differ from float64 by {differences[name]:.1e}")
    return differences


def measure(kind: str) -> dict[str, Any]:
    """One process: all ways of one network."""
    ways, alone, exact = ways_of(kind, WIDTHS)
    differences = check(ways, exact, TOLERANCES[kind])
    result = interleaved({name: step_of(each) for name, each in ways.items()}, SECONDS)
    return {
        **result,
        "gradients_differ_by": differences,
        "alone": interleaved({name: step_of(each) for name, each in alone.items()}, 4),
    }


def measure_counts() -> dict[str, Any]:
    """One process: the MLP with more and more sub-networks."""
    result = {}
    for count in COUNTS:
        ways, _, _ = ways_of("mlp", evenly(count))
        shown = {name: step_of(ways[name]) for name in ("nsn", "sliced_eager")}
        result[str(count)] = interleaved(shown, SECONDS_OF_COUNT, steps=1)
    return result


def print_table(above: str, result: dict[str, Any]) -> None:
    """One line a way."""
    table = Table(title=above, title_justify="left")
    for column in ("way", "median", "p10 - p90", "/ nsn", "peak memory", "gradients off by"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, median in result["median_ms"].items():
        low, high = result["p10_p90_ms"][name]
        off = result.get("gradients_differ_by", {}).get(name)
        table.add_row(
            name,
            f"{median:.1f} ms",
            f"{low:.1f} - {high:.1f}",
            f"{median / next(iter(result['median_ms'].values())):.2f}",
            f"{result['peak_bytes'][name] / 1e6:.1f} MB",
            f"{off:.0e}" if off is not None else "",
        )
    Console(width=110).print(table)


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
    """Runs one process for each network, level and number of threads."""
    parser = arguments_of(__doc__, choices=[*NETWORKS, "counts"])
    parser.add_argument("--kinds", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        count = arguments.child == "counts"
        print(json.dumps(measure_counts() if count else measure(arguments.child)))
        return
    levels: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    document = {
        "machine": machine(),
        "step": "forward, summed cross entropy, backward; no optimizer",
        "widths": WIDTHS,
        "levels": levels,
        "subnetworks": counts,
    }
    for level, threads in configurations(arguments):
        for kind in arguments.kinds:
            result = child(level, threads, kind)
            levels.setdefault(level, {}).setdefault(threads, {})[kind] = result
            print_table(f"{kind}, one step: {title(level, threads)}", result)
            print_table(f"{kind}, the full network alone", result["alone"])
            write_json(arguments.out, document)
    for name, text in EXPLAINED.items():
        print(f"{name}: {text}")
    if not arguments.plot:
        return
    for threads in arguments.threads:
        counts[threads] = child("native", threads, "counts")
        for count, result in counts[threads].items():
            print_table(f"mlp, sub-networks: {count}: {title('native', threads)}", result)
        write_json(arguments.out, document)
    plot(counts, arguments.plot)


if __name__ == "__main__":
    main()
