"""Products of float32 by all the routes there are, at each level and number of threads.

First those of training, c = a b, of the shapes that layers of the paper's network, of width.py's
and of a transformer have: ``torch`` is at::mm (MKL), ``batch_reduce`` torch's batch-reduce kernels,
``panels`` nsn's own. A star marks the route that the rule takes (csrc/src/products.cpp), with its
time over the best route's. Then x W^T + b with a weight that lies ready:

- plain: ``torch.nn.functional.linear``;
- mkl, onednn: torch's packed operators, packed for that batch size;
- nsn: the packed view of a network of one Dense block; one pack for all batch sizes.

    python benchmarks/products.py
"""

import json
from typing import Any

import torch
import torch.nn.functional as F
from common import arguments_of, measure_everywhere
from inference import Way, medians
from rich.console import Console
from rich.table import Table
from torch import Tensor

import nsn
from nsn import _C

#: Rows, inputs and outputs of layers.
LAYERS = (
    *((batch, 784, 784) for batch in (1, 4, 8, 16, 32, 64, 128, 256)),
    *((batch, 784, 10) for batch in (8, 128, 384)),
    *((batch, 1024, 1024) for batch in (64, 256)),
    (64, 512, 512),
    (64, 256, 256),
    (1024, 128, 384),
    (1024, 128, 512),
    (4096, 512, 128),
    (4096, 128, 65),
)
READY = ((784, 784), (784, 10))
BATCHES = (1, 8, 128)


def products_of(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """c, a and b of a layer's forward, of its inputs' gradient and of its weight's."""
    x, w, y = torch.rand(rows, inputs), torch.rand(outputs, inputs), torch.rand(rows, outputs)
    return {
        "forward": (y, x, w.t()),
        "dX": (torch.empty_like(x), y, w),
        "dW": (torch.empty_like(w), y.t(), x),
    }


def by_routes() -> list[dict[str, Any]]:
    """Times of all routes, for all layers and products."""
    result = []
    for layer in LAYERS:
        for name, (c, a, b) in products_of(*layer).items():
            ways: dict[str, Way] = {
                route: lambda route=route, c=c, a=a, b=b: _C.product_by(route, c, a, b, False)
                for route in _C.product_routes()
                if _C.product_by(route, c, a, b, False)
            }
            chosen = _C.product_route(c, a, b, False)
            times = medians(ways, seconds=0.006)["median_us"]
            result.append({"layer": layer, "product": name, "chosen": chosen, "median_us": times})
    return result


def with_weights_ready() -> list[dict[str, Any]]:
    """Times of x W^T + b."""
    result = []
    for inputs, outputs in READY:
        network = nsn.Network(input=(inputs,), blocks={"dense": nsn.Dense(inputs, outputs)})
        weight, bias = (each.detach() for each in network.parameters())
        packed = network.pack().view("base")
        for batch in BATCHES:
            x = torch.rand(batch, inputs)
            mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, batch)
            onednn = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
            ways: dict[str, Way] = {
                "plain": lambda x=x, w=weight, b=bias: F.linear(x, w, b),
                "mkl": lambda x=x, m=mkl, w=weight, b=bias: torch.ops.mkl._mkl_linear(
                    x, m, w, b, len(x)
                ),
                "onednn": lambda x=x, o=onednn, b=bias: torch.ops.mkldnn._linear_pointwise(
                    x, o, b, "none", [], ""
                ),
                "nsn": lambda x=x, packed=packed: packed(x),
            }
            times = medians(ways)["median_us"]
            result.append({"layer": (batch, inputs, outputs), "median_us": times})
    return result


def show(above: str, result: dict[str, Any]) -> None:
    """Prints both tables."""
    console = Console(width=110)
    routes = _C.product_routes()
    table = Table(title=f"products, median us: {above}", title_justify="left")
    for column in ("rows x in x out", "product", *routes, "chosen / best"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result["routes"]:
        times = row["median_us"]
        marked = ("*" if route == row["chosen"] else "" for route in routes)
        texts = (f"{times[route]:.1f}" if route in times else "-" for route in routes)
        table.add_row(
            " x ".join(map(str, row["layer"])),
            row["product"],
            *(text + mark for text, mark in zip(texts, marked, strict=True)),
            f"{times[row['chosen']] / min(times.values()):.2f}",
        )
    console.print(table)
    table = Table(title=f"x W^T + b, median us: {above}", title_justify="left")
    table.add_column("rows x in x out", justify="right")
    for way in result["ready"][0]["median_us"]:
        table.add_column(way, justify="right")
    for row in result["ready"]:
        times = (f"{time:.1f}" for time in row["median_us"].values())
        table.add_row(" x ".join(map(str, row["layer"])), *times)
    console.print(table)


def main() -> None:
    """Measures in a process for each level and number of threads, prints and writes."""
    parser = arguments_of(__doc__, action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        torch.manual_seed(0)
        with torch.no_grad():
            print(json.dumps({"routes": by_routes(), "ready": with_weights_ready()}))
        return
    measure_everywhere(arguments, show)


if __name__ == "__main__":
    main()
