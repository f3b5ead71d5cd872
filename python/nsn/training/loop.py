"""The training loop, and evaluation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from nsn import ALL, Network, joint_loss
from nsn.training.data import Data, Split, to_input
from nsn.training.recipe import Recipe

_EVALUATION_BATCH = 2000


@dataclass(frozen=True)
class Progress:
    """Where a run is, after a step.

    Attributes:
        epoch: counted from 1.
        step: steps done in this epoch.
        steps: steps in an epoch.
        loss: the joint loss of this step's batch.
    """

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass
class Run:
    """What a run left.

    Attributes:
        network: with its last weights.
        epochs: one record for each complete epoch, as report.json has them.
        interrupted: whether the run was ended early.
    """

    network: Network
    epochs: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False


def train(
    recipe: Recipe,
    data: Data,
    seed: int,
    *,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Trains a recipe's network: each step one joint pass of all sub-networks.

    All randomness comes from torch's default generator, in this order: ``manual_seed(seed)``, the
    network's initial weights, then for each epoch one ``randperm`` of the training samples and for
    each step the seed of its dropout. A C++ program that does the same gets the same weights.

    Args:
        recipe: what to train.
        data: in memory.
        seed: for torch's default generator.
        on_step: called after each step.
        on_epoch: called after each epoch's evaluation, with its record.
        should_stop: asked before each step; True ends the run with the weights of that moment.
    """
    torch.manual_seed(seed)
    run = Run(Network(recipe.description))
    optimizer = recipe.optimizer(run.network)
    rates = [group["lr"] for group in optimizer.param_groups]
    samples, size = len(data.train), recipe.batch_size
    steps = -(-samples // size)
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        total = 0.0
        run.network.train()
        for step, batch in enumerate(torch.randperm(samples).split(size)):
            if should_stop():
                run.interrupted = True
                return run
            factor = recipe.learning_rate_factor((epoch - 1) * steps + step, steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = _step(run.network, optimizer, data.train, batch)
            total += loss * len(batch)
            on_step(Progress(epoch, step + 1, steps, loss))
        seconds = time.perf_counter() - started
        record = {
            "epoch": epoch,
            "train_loss": total / samples,
            "seconds": seconds,
            "subnetworks": evaluate(run.network, data.test),
        }
        run.epochs.append(record)
        on_epoch(record)
    return run


def _step(
    network: Network, optimizer: torch.optim.Optimizer, split: Split, batch: torch.Tensor
) -> float:
    images = to_input(split.images.index_select(0, batch), _dtype(network))
    loss = joint_loss(network(images, ALL), split.labels.index_select(0, batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(network: Network, split: Split) -> dict[str, dict[str, float]]:
    """Accuracy and mean cross entropy of each sub-network, from the weights of this moment."""
    training = network.training
    network.eval()
    correct = dict.fromkeys(network.subnetworks, 0)
    loss = dict.fromkeys(network.subnetworks, 0.0)
    with torch.no_grad():
        for images, labels in zip(
            split.images.split(_EVALUATION_BATCH),
            split.labels.split(_EVALUATION_BATCH),
            strict=True,
        ):
            outputs = network(to_input(images, _dtype(network)), ALL)
            for name, output in outputs.items():
                correct[name] += int(output.argmax(1).eq(labels).sum())
                loss[name] += float(
                    torch.nn.functional.cross_entropy(output, labels, reduction="sum")
                )
    network.train(training)
    return {
        name: {"accuracy": correct[name] / len(split), "loss": loss[name] / len(split)}
        for name in network.subnetworks
    }


def _dtype(network: Network) -> torch.dtype:
    return next(network.parameters()).dtype
