"""The recipe ``paper``, step by step, against the paper's method written down in plain torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nsn.training.data import Data
from nsn.training.images import Images
from nsn.training.loop import Run
from nsn.training.recipe import load_recipe

STEPS = 50
NO_DROPOUT = [
    "network.blocks.hidden1.dropout=0",
    "network.blocks.hidden2.dropout=0",
    "network.subnetworks.sub1.dropout.hidden2=0",
]


def transcription(weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]) -> None:
    """Trains in place: 0.3 as learning rate, averaged momentum, L2 on base, the two smallest's mean."""
    momentum = {key: torch.zeros_like(value) for key, value in weights.items()}
    for x, y in batches:
        gradients: dict[str, dict[str, Tensor]] = {}
        for name, hidden in (("base", ["hidden1", "hidden2"]), ("sub1", ["hidden2"]), ("sub2", [])):
            own = {key: value.clone().requires_grad_() for key, value in weights.items()}
            h = x
            for layer in hidden:
                h = F.relu(h @ own[f"{layer}.weight"].T + own[f"{layer}.bias"])
            logits = h @ own["output.weight"].T + own["output.bias"]
            loss = F.cross_entropy(logits, y)
            if name == "base":
                for layer in ("hidden1", "hidden2", "output"):
                    loss = loss + 4.5e-5 * own[f"{layer}.weight"].pow(2).sum()
            loss.backward()
            gradients[name] = {key: value.grad for key, value in own.items()}
        for part in ("weight", "bias"):
            merged = {
                "hidden1": gradients["base"][f"hidden1.{part}"],
                "hidden2": (
                    gradients["sub1"][f"hidden2.{part}"] + gradients["base"][f"hidden2.{part}"]
                )
                / 2,
                "output": (
                    gradients["sub2"][f"output.{part}"] + gradients["sub1"][f"output.{part}"]
                )
                / 2,
            }
            for layer, gradient in merged.items():
                key = f"{layer}.{part}"
                momentum[key] = 0.9 * momentum[key] + 0.1 * gradient
                weights[key] = weights[key] - 0.3 * momentum[key]


@pytest.mark.parametrize("fused", ["true", "false"])
def test_50_steps_of_the_recipe(mnist: Path, fused: str) -> None:
    recipe = load_recipe(
        "paper",
        ["epochs=1", 'network.input.dtype="float64"', f"optimizer.fused={fused}", *NO_DROPOUT],
    )
    samples = STEPS * recipe.batch_size
    train, test = (
        Images(whole.images[:count], whole.labels[:count], torch.float64)
        for whole, count in (
            (Images.read(mnist, "train", (784,)), samples),
            (Images.read(mnist, "t10k", (784,)), 100),
        )
    )
    steps = 0

    def count(progress: object) -> None:
        nonlocal steps
        steps += 1

    run = Run(recipe, Data(train, test), seed=11)
    run.train(on_step=count)
    assert steps == STEPS

    # The same start and the same batches, by the documented order of random numbers.
    torch.manual_seed(11)
    weights = {}
    for layer, (out, inner) in {
        "hidden1": (784, 784),
        "hidden2": (784, 784),
        "output": (10, 784),
    }.items():
        weights[f"{layer}.weight"] = torch.nn.init.xavier_uniform_(
            torch.empty(out, inner, dtype=torch.float64)
        )
        weights[f"{layer}.bias"] = torch.full((out,), 0.01, dtype=torch.float64)
    batches = [
        (train.images[batch].double() / 255, train.labels[batch])
        for batch in torch.randperm(samples).split(recipe.batch_size)
    ]
    transcription(weights, batches)
    for key, parameter in run.network.named_parameters():
        assert (parameter - weights[key]).abs().max() < 1e-9, key


def test_schedule_divides_by_3_after_200_and_400_epochs() -> None:
    recipe = load_recipe("paper")
    assert recipe.epochs == 600
    factors = [
        recipe.learning_rate_factor(epoch * 469, 469) for epoch in (0, 199, 200, 399, 400, 599)
    ]
    assert factors == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 9, 1 / 9])
    assert recipe.values["optimizer"]["lr"] == 0.03
