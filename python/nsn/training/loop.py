"""The training loop, and evaluation."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsn import Network, joint_loss
from nsn.schedule import Turn
from nsn.training.data import Data, Split
from nsn.training.errors import DivergedError, InputError
from nsn.training.recipe import Recipe
from nsn.training.tables import difference

_EVALUATION_BATCH = 500


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


class Run:
    """The training of a recipe's network: each step one joint pass of all listed sub-networks.

    All randomness comes from torch's default generator, in this order: ``manual_seed(seed)``, the
    network's initial weights, the seed of ``sampling`` where that is random, then for each epoch
    the order of its samples (one ``randperm`` for images, one ``randint`` for text) and for each
    step the seed of its dropout. A C++ program that does the same gets the same weights.

    A run may stop between any two steps; what ``state_dict`` returns then goes on in another
    process with the same bits.

    Args:
        recipe: what to train.
        data: in memory.
        seed: for torch's default generator.
        evaluates_epochs: whether each epoch ends with an evaluation.

    Attributes:
        network: with the weights of this moment.
        evaluated: what is evaluated and saved: the moving average of its weights and statistics,
            where the recipe has one, else the network.
        epochs: one record for each complete epoch, as report.json has them.
        seconds: what the run took so far, ``total`` and the part of it in ``steps`` (forward, loss,
            backward, optimizer).
        flops: floating-point operations so far: three times those of a forward pass, of all samples
            and sub-networks that ran.
    """

    def __init__(
        self, recipe: Recipe, data: Data, seed: int, evaluates_epochs: bool = True
    ) -> None:
        torch.manual_seed(seed)
        self.recipe = recipe
        self.seed = seed
        self.network = Network(recipe.description)
        self.epochs: list[dict[str, Any]] = []
        self.seconds = {"total": 0.0, "steps": 0.0}
        self.flops = 0
        self._data = data
        self._evaluates_epochs = evaluates_epochs
        self._teacher = recipe.teacher(self.network)
        self._sampling = recipe.sampling(self.network)
        self._has_statistics = any(is_buffer for _, is_buffer in recipe.description.parameters)
        idle = set(self.network.subnetworks) - set(self._trained(recipe.epochs))
        if idle:
            raise InputError(
                f"recipe: sampling: '{min(idle)}' runs in none of the steps of {recipe.epochs} "
                f"epochs with seed {seed}, so that it has no running statistics to be evaluated "
                f"with. Train longer, or let more run in each step."
            )
        self._average = recipe.average(self.network)
        self._optimizer = recipe.optimizer(self.network)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        # The epoch under way: its samples in order, its steps done, and what they summed up to.
        self._order: Tensor | None = None
        self._step = 0
        self._loss = 0.0
        self._epoch_seconds = 0.0

    @property
    def evaluated(self) -> Network:
        if self._average is None:
            return self.network
        network = self._average.module
        assert isinstance(network, Network)
        return network

    @property
    def complete(self) -> bool:
        """Whether all epochs are done."""
        return len(self.epochs) == self.recipe.epochs

    def train(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Trains until all epochs are done or it is told to stop.

        Raises:
            DivergedError: where the loss is no finite number; the network is as before that step.

        Args:
            on_step: called after each step.
            on_epoch: called after each epoch's evaluation, with its record.
            should_stop: asked before each step.
        """
        while not self.complete:
            started = time.perf_counter()
            finished = self._train_epoch(on_step, should_stop)
            spent = time.perf_counter() - started
            self._epoch_seconds += spent
            self.seconds["total"] += spent
            if not finished:
                return
            started = time.perf_counter()
            self.epochs.append(
                {
                    "epoch": len(self.epochs) + 1,
                    "train_loss": self._loss / len(self._data.train),
                    "seconds": self._epoch_seconds,
                    "subnetworks": (
                        evaluate(
                            self.evaluated, self._data.test, self._trained(len(self.epochs) + 1)
                        )
                        if self._evaluates_epochs
                        else {}
                    ),
                }
            )
            self._order, self._step, self._loss, self._epoch_seconds = None, 0, 0.0, 0.0
            on_epoch(self.epochs[-1])
            self.seconds["total"] += time.perf_counter() - started

    @property
    def _steps_per_epoch(self) -> int:
        return -(-len(self._data.train) // self.recipe.batch_size)

    def _trained(self, epochs: int) -> list[str]:
        """Who is evaluated after so many epochs: not who starts later, or has no statistics yet."""
        if not self._has_statistics and self.recipe.values["sampling"]["kind"] != "from_epoch":
            return list(self.network.subnetworks)
        steps = self._steps_per_epoch
        left = dict.fromkeys(self.network.subnetworks)
        for step in range(epochs * steps):
            for name in self._sampling(step, step // steps).names:
                left.pop(name, None)
            if not left:
                break
        return [name for name in self.network.subnetworks if name not in left]

    def _train_epoch(
        self, on_step: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> bool:
        """The steps that are left of this epoch; False where it was told to stop in between."""
        train, size, epoch = self._data.train, self.recipe.batch_size, len(self.epochs)
        steps = self._steps_per_epoch
        if self._order is None:
            self._order = train.shuffled()
        self.network.train()
        for batch in self._order.split(size)[self._step :]:
            if should_stop():
                return False
            factor = self.recipe.learning_rate_factor(epoch * steps + self._step, steps)
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
            inputs, targets = train.batch(batch)
            started = time.perf_counter()
            self._optimizer.zero_grad()
            turn = self._sampling(epoch * steps + self._step, epoch)
            loss = self._backward(inputs, targets.flatten(), turn)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the training diverged: the loss is {loss} in epoch {epoch + 1}, step "
                    f"{self._step + 1}. Lower optimizer.lr, for example with --set."
                )
            self._optimizer.step()
            self.recipe.bound(self.network)
            if self._average is not None:
                self._average.update_parameters(self.network)
            self.seconds["steps"] += time.perf_counter() - started
            self._loss += loss * len(batch)
            one = sum(self.network.description.flops(name) for name in turn.names)
            self.flops += 3 * len(batch) * one
            self._step += 1
            on_step(Progress(epoch + 1, self._step, steps, loss))
        return True

    def _backward(self, inputs: Tensor, targets: Tensor, turn: Turn) -> float:
        """Makes a step's gradients; returns the summed loss."""
        if self.recipe.by_lane:
            losses = self.network.backward_by_lane(
                inputs,
                lambda name, output: self._loss_of({name: output}, targets),
                turn.names,
            )
            return sum(loss.item() for loss in losses.values())
        joint = self._loss_of(self.network(inputs, turn.names), targets)
        joint.backward()
        return joint.item()

    def _loss_of(self, outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return joint_loss(
            _rows(outputs),
            targets,
            teach=self._teacher,
            label_smoothing=self._smoothing_of(outputs),
        )

    def _smoothing_of(self, outputs: dict[str, Tensor]) -> float | dict[str, float]:
        """The label smoothing of those that run."""
        smoothing = self.recipe.label_smoothing
        if not isinstance(smoothing, dict):
            return smoothing
        return {name: share for name, share in smoothing.items() if name in outputs}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, of this moment; for ``torch.save``."""
        return {
            "recipe": self.recipe.identity,
            "alone": self.recipe.alone_name,
            "seed": self.seed,
            "samples": len(self._data.train),
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "epochs": self.epochs,
            "seconds": self.seconds,
            "flops": self.flops,
            "epoch": {
                "order": self._order,
                "step": self._step,
                "loss": self._loss,
                "seconds": self._epoch_seconds,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the run where ``state_dict`` was taken.

        Raises:
            ValueError: where the state is of another recipe, seed or data set.
        """
        mine = self.state_dict()
        for key in ("alone", "seed", "samples", "recipe"):
            differs = difference(state[key], mine[key], "" if key == "recipe" else key)
            if differs:
                raise ValueError(f"the run there has another value of {differs}")
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        self.flops = state["flops"]
        epoch = state["epoch"]
        self._order, self._step, self._loss = epoch["order"], epoch["step"], epoch["loss"]
        self._epoch_seconds = epoch["seconds"]


def evaluate(
    network: Network, split: Split, names: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Accuracy and mean cross entropy of sub-networks, default all, from this moment's weights."""
    names = network.subnetworks if names is None else names
    training = network.training
    network.eval()
    result = _measured(lambda x: network(x, names), names, split)
    network.train(training)
    return result


def accuracy_of(run: Callable[[Tensor], Tensor], split: Split) -> float:
    """Accuracy of what gives one sub-network's outputs."""
    return _measured(lambda x: {"": run(x)}, ("",), split)[""]["accuracy"]


def _measured(
    run: Callable[[Tensor], dict[str, Tensor]], names: Sequence[str], split: Split
) -> dict[str, dict[str, float]]:
    correct = dict.fromkeys(names, 0)
    loss = dict.fromkeys(names, 0.0)
    total = 0
    with torch.no_grad():
        for batch in split.ordered().split(_EVALUATION_BATCH):
            inputs, targets = split.batch(batch)
            targets = targets.flatten()
            total += len(targets)
            for name, output in _rows(run(inputs)).items():
                correct[name] += int(output.argmax(1).eq(targets).sum())
                loss[name] += float(F.cross_entropy(output, targets, reduction="sum"))
    return {name: {"accuracy": correct[name] / total, "loss": loss[name] / total} for name in names}


def _rows(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``(B, *, classes)`` as ``(B * ..., classes)``, one row for each target."""
    return {name: output.flatten(0, -2) for name, output in outputs.items()}
