"""What inference.py prints of its results, and what the runtime's are held against."""

from typing import Any

from common import VECTORS, title
from engines import NATIVE
from rich.console import Console
from rich.table import Table

Document = dict[str, Any]

#: The most that the runtime should take, over the best engine, by kind and batch size. They are
#: what it was written for; nothing fails where one is missed.
TARGETS = {
    "mlp": {"1": 0.95, "8": 0.85, "128": 0.9},
    "cnn": {"1": 1.0, "8": 1.0, "128": 1.0},
    "transformer": {"1": 1.0, "8": 1.0},
}
#: The most that the packed view should take, over the runtime: a factor, and microseconds for what
#: torch and Python ask for.
PACKED_FACTOR, PACKED_US = 1.1, 10.0
#: Of fewer weights a call takes longer than to read them.
LEAST_WEIGHTS = 100_000
#: Ways that tables of documents leave out: weights of these types take as long as int8's at all but
#: the smallest batch.
LEFT_OUT = ("runtime float16", "runtime bfloat16")
#: How much faster the paper's base should be at batch 1 with weights of int8.
INT8_FACTOR = 1.8


def is_own(way: str) -> bool:
    """Whether it is nsn's."""
    return way in ("view", "packed") or way.startswith("runtime")


def best(median: dict[str, float], level: str | None = None) -> str:
    """The fastest engine, of those that are held to a level or of all."""
    beside = () if level in (None, "native") else NATIVE
    others = [way for way in median if not is_own(way) and way not in beside]
    return min(others, key=lambda way: median[way])


def show(above: str, level: str, result: Document) -> None:
    """Prints the medians of one configuration."""
    rows = [each for names in result["batch"].values() for each in names.values()]
    columns = list(dict.fromkeys(way for row in rows for way in row["p10_p90_us"]))
    table = Table(title=f"{above}, median us", title_justify="left")
    table.add_column("batch, sub-network", no_wrap=True)
    for way in columns:
        is_native = level != "native" and way in NATIVE
        table.add_column(way + (" (native)" if is_native else ""), justify="right")
    for batch, names in result["batch"].items():
        for name, measured in names.items():
            median = {way: f"{time:.1f}" for way, time in measured["median_us"].items()}
            for way, found in measured["wrong"].items():
                median[way] = f"(wrong: {found['median_us']:.1f})"
            table.add_row(f"{batch}, {name}", *(median[way] for way in columns))
    console = Console(width=180)
    console.print(table)
    for name, bandwidth in result.get("read_bandwidth", {}).items():
        if "1" not in result["batch"] or result["weights"][name] < LEAST_WEIGHTS:
            continue
        for way in ("runtime", "packed"):
            time = result["batch"]["1"][name]["median_us"][way]
            reached = 4 * result["weights"][name] / (1e-6 * time)
            console.print(
                f"{name}, batch 1: {way} reads its weights at {reached / 1e9:.0f} GB/s, "
                f"{reached / bandwidth:.0%} of the {bandwidth / 1e9:.0f} at which torch reads as "
                "many"
            )
    console.print("bytes: " + "  ".join(f"{way} {size:,}" for way, size in result["bytes"].items()))
    console.print(f"an empty call from Python: {result['empty_call_us']} us")


def markdown(level: str, document: Document) -> str:
    """The tables of docs/performance.md."""
    vectors = VECTORS[document["level"]]
    is_held = level != "native"
    parts = []
    for kind, measured in document["kinds"].items():
        for threads, result in measured["threads"].items():
            rows = [
                (batch, name, each)
                for batch, names in result["batch"].items()
                for name, each in names.items()
            ]
            every = dict.fromkeys(way for _, _, each in rows for way in each["p10_p90_us"])
            ways = [way for way in every if way not in LEFT_OUT]
            headings = [
                f"{kind}, {vectors}, {threads} thread{'s' if threads != '1' else ''}",
                *(f"{way} ({VECTORS['v4']})" if is_held and way in NATIVE else way for way in ways),
                "runtime / best",
                *(["over all"] if is_held else []),
                "of peak",
                "peak / best",
            ]
            lines = [headings, ["---"] * len(headings)]
            for batch, name, each in rows:
                median = each["median_us"]
                held, of_all = best(median, level), best(median)
                least = least_us(result, batch, name)
                lines.append(
                    [
                        f"{batch}, {name}",
                        *(in_us(median[way]) if way in median else "wrong" for way in ways),
                        f"{median['runtime'] / median[held]:.2f} {held}",
                        *(
                            [f"{median['runtime'] / median[of_all]:.2f} {of_all}"]
                            if is_held
                            else []
                        ),
                        f"{least / median['runtime']:.0%}",
                        f"{least / median[held]:.2f}",
                    ]
                )
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def in_us(time: float) -> str:
    """Microseconds with three digits or more."""
    return f"{time:.1f}" if time < 100 else f"{time:,.0f}"


def least_us(result: Document, batch: str, name: str) -> float:
    """What a sub-network takes at the processor's peak of multiply-adds."""
    return float(1e6 * int(batch) * result["flops"][name] / result["peak_flops"])


def show_targets(level: str, document: Document) -> None:
    """Prints how the runtime stands beside the best engine, and what misses its target."""
    console = Console(width=180)
    missed: list[str] = []
    cells = 0
    for kind, measured in document["kinds"].items():
        for threads, result in measured["threads"].items():
            table = Table(
                title=f"{kind}: {title(level, threads)}: the runtime beside the best engine",
                title_justify="left",
            )
            table.add_column("batch, sub-network", no_wrap=True)
            columns = ["runtime us", "best us", "best", "runtime / best", "target"]
            columns += ["of peak", "peak / best"]
            columns += [] if level == "native" else ["best of all, native ones too", "over that"]
            for column in (*columns, "packed / runtime", "packed - runtime us", "misses"):
                table.add_column(column, justify="right")
            for batch, names in result["batch"].items():
                target = TARGETS[kind].get(batch)
                for name, each in names.items():
                    median = each["median_us"]
                    own, packed = median["runtime"], median["packed"]
                    held, of_all = best(median, level), best(median)
                    ratio = own / median[held]
                    least = least_us(result, batch, name)
                    misses = {
                        f"runtime {ratio:.2f} of {held}": target is not None and ratio > target,
                        f"packed {packed:.1f} us over {own:.1f}": packed
                        > PACKED_FACTOR * own + PACKED_US,
                    }
                    found = [text for text, is_missed in misses.items() if is_missed]
                    cells += 1
                    missed += [f"{kind}, {threads}, {batch}, {name}: {text}" for text in found]
                    beside = [f"{median[of_all]:.1f} {of_all}", f"{own / median[of_all]:.2f}"]
                    table.add_row(
                        f"{batch}, {name}",
                        f"{own:.1f}",
                        f"{median[held]:.1f}",
                        held,
                        f"{ratio:.2f}",
                        f"{target:.2f}" if target is not None else "",
                        f"{least / own:.0%}",
                        f"{least / median[held]:.2f}",
                        *([] if level == "native" else beside),
                        f"{packed / own:.2f}",
                        f"{packed - own:.1f}",
                        "; ".join(text.split()[0] for text in found),
                    )
            console.print(table)
            narrow = result["batch"].get("1", {}).get("base", {}).get("median_us", {})
            if kind == "mlp" and "runtime int8" in narrow:
                factor = narrow["runtime"] / narrow["runtime int8"]
                console.print(
                    f"base, batch 1: int8 is {factor:.2f} times as fast (target {INT8_FACTOR})"
                )
                if factor < INT8_FACTOR:
                    missed.append(f"mlp, {threads}, 1, base: int8 {factor:.2f} times as fast")
    console.print(f"{document['level']}: {len(missed)} misses in {cells} cells")
    for text in missed:
        console.print(f"  kind, threads, batch, sub-network: {text}", highlight=False)
