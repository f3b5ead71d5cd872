"""What the loops beside this file share: a network, data, and how it is judged."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nsn


def make_network() -> nsn.Network:
    """A small MLP with a half, a quarter and a shallow one in it; batch norms of their own."""
    blocks: dict[str, nsn.Dense | nsn.BatchNorm | nsn.Activation] = {}
    for i in (1, 2):
        blocks[f"hidden{i}"] = nsn.Dense(16 if i == 1 else 64, 64)
        blocks[f"norm{i}"] = nsn.BatchNorm(64, per_subnetwork=["affine", "statistics"])
        blocks[f"relu{i}"] = nsn.Activation("relu")
    return nsn.Network(
        input=(16,),
        blocks={**blocks, "output": nsn.Dense(64, 4)},
        subnetworks={
            "half": nsn.Subnetwork(width=0.5),
            "quarter": nsn.Subnetwork(width=0.25),
            "shallow": ["hidden1", "norm1", "relu1", "output"],
        },
        merge=nsn.merge.mean(),
    )


def make_data(size: int = 2048, seed: int = 0) -> TensorDataset:
    """Four noisy clusters: x (size, 16), y (size)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    y = torch.randint(4, (size,), generator=generator)
    return TensorDataset(centres[y] + torch.randn(size, 16, generator=generator), y)


@torch.no_grad()
def accuracies(model: nn.Module, data: TensorDataset) -> dict[str, float]:
    """Of each sub-network, in eval mode; leaves the mode as it was."""
    x, y = data.tensors
    mode = model.training
    outputs: dict[str, Tensor] = model.eval()(x, nsn.ALL)
    model.train(mode)
    return {name: (out.argmax(1) == y).float().mean().item() for name, out in outputs.items()}


def show(scores: dict[str, float]) -> None:
    """One line for people."""
    print("  ".join(f"{name} {score:.3f}" for name, score in scores.items()))
