"""How large exports are: the recipes' networks, with random weights, in all formats.

python benchmarks/sizes.py [RECIPE ...]
"""

import sys
import tempfile
from pathlib import Path

import torch

import nsn
from nsn.exporting import FORMATS
from nsn.training.recipe import description_of


def main() -> None:
    """Prints the sizes."""
    for recipe in sys.argv[1:] or ["demo", "cnn", "transformer"]:
        network = nsn.Network(description_of(recipe))
        if any("running_mean" in name for name, _ in network.named_buffers()):
            network.recalibrate([torch.rand(32, *network.description.input_shape)])
        with torch.no_grad():
            for parameter in network.parameters():  # tensors that start equal would be stored once
                parameter.add_(torch.rand_like(parameter))
        network.eval()
        tensors = network.state_dict().items()
        copy = sum(each.nbytes for name, each in tensors if "num_batches_tracked" not in name)
        print(f"{recipe}: one copy of the weights is {copy:,} bytes")
        for format in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                export = nsn.export(network, Path(folder) / format, format)
            sizes = {name: facts["bytes"] for name, facts in export.files.items()}
            if format == "onnx":
                graphs = sum(size for name, size in sizes.items() if name.endswith(".onnx"))
                sizes = {"weights.bin": sizes["weights.bin"], "all graphs": graphs}
            if format == "pt2":
                sizes = {"all files": sum(sizes.values())}
            for name, size in sizes.items():
                print(
                    f"  {format:10}  {name:12}  {size:>10,}  {size / copy:.2f} copies", flush=True
                )


if __name__ == "__main__":
    main()
