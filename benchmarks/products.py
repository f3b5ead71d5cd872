"""One product, x W^T + b of float32, in the forms in which a weight can lie ready for it.

- plain: ``torch.nn.functional.linear``;
- mkl, onednn: torch's packed operators, packed for that batch size;
- nsn: the packed view of a network of one Dense block; one pack for all batch sizes.

    OMP_NUM_THREADS=1 python benchmarks/products.py
"""

import argparse

import torch
import torch.nn.functional as F
from inference import Way, medians
from torch import Tensor

import nsn


def ways_of(weight: Tensor, bias: Tensor, packed: nsn.PackedView, x: Tensor) -> dict[str, Way]:
    """Ways to compute the product for x: (B, in)."""
    batch = len(x)
    mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, batch)
    onednn = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
    return {
        "plain": lambda: F.linear(x, weight, bias),
        "mkl": lambda: torch.ops.mkl._mkl_linear(x, mkl, weight, bias, batch),
        "onednn": lambda: torch.ops.mkldnn._linear_pointwise(x, onednn, bias, "none", [], ""),
        "nsn": lambda: packed(x),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, nargs=2, default=[784, 784], metavar=("IN", "OUT"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 128])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    inside, out = arguments.features
    network = nsn.Network(input=(inside,), blocks={"dense": nsn.Dense(inside, out)})
    weight, bias = (each.detach() for each in network.parameters())
    packed = network.pack().view("base")
    print(f"{inside} to {out} features, {torch.get_num_threads()} thread(s), median us")
    with torch.no_grad():
        for batch in arguments.batches:
            times = medians(ways_of(weight, bias, packed, torch.rand(batch, inside)))["median_us"]
            print(f"batch {batch}: " + "  ".join(f"{way} {us:.1f}" for way, us in times.items()))


if __name__ == "__main__":
    main()
