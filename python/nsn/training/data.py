"""What a network is trained and evaluated on: images with labels, or text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from nsn import Description
from nsn.description import described_dtype
from nsn.training.errors import InputError
from nsn.training.images import Images
from nsn.training.text import Windows


class Split(Protocol):
    """Samples in memory: those that are trained on, or those that are evaluated on."""

    def __len__(self) -> int:
        """How many samples one pass reads."""

    def shuffled(self) -> Tensor:
        """One epoch's samples in random order, from torch's default generator; int64."""

    def ordered(self) -> Tensor:
        """The samples of an evaluation, always the same; int64."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All that samples are made of, as it was read."""

    def batch(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The network's input and the classes that it should give.

        Args:
            samples: some of ``shuffled`` or ``ordered``, ``(B)``.

        Returns:
            Input ``(B, *input)`` and targets, int64: ``(B)`` for outputs ``(B, classes)``, or
            ``(B, T)`` for ``(B, T, classes)``.
        """


@dataclass(frozen=True)
class Data:
    """A data set with its two splits.

    Where the recipe holds a part of the training data back, ``data.validation``, ``test`` is that
    part, and the test data are not read.
    """

    train: Split
    test: Split


def load_data(table: dict[str, Any], description: Description) -> Data:
    """The data of a recipe, in the form that its network takes.

    Args:
        table: the recipe's ``data``, complete.
        description: the network's.

    Raises:
        InputError: where a file is missing or wrong, or the network cannot take the data.
    """
    path, shape = Path(table["path"]), description.input_shape
    dtype = described_dtype(description)
    outputs = {name: description.output_shape(name) for name in description.names}
    if table["kind"] == "images":
        if table.get("validation"):
            train, test = Images.read(path, "train", shape, dtype).split(table["validation"])
        else:
            train, test = (Images.read(path, half, shape, dtype) for half in ("train", "t10k"))
        largest = max(int(train.labels.max()), int(test.labels.max()))
        _check_outputs(outputs, (), largest + 1, f"there is a label {largest}")
        return Data(train, test)
    number = len(table["characters"])
    parts = Windows.read(path, table, shape, dtype)
    _check_outputs(outputs, shape, number, f"there are {number} characters")
    return Data(*parts)


def _check_outputs(
    outputs: dict[str, tuple[int, ...]], positions: tuple[int, ...], classes: int, reason: str
) -> None:
    """Refuses a network that does not give one number for each class, at each position."""
    expected = ", ".join(map(str, (*positions, "classes")))
    for name, shape in outputs.items():
        if shape[:-1] != positions:
            raise InputError(
                f"data: sub-network '{name}' gives outputs of shape {shape}, but with this data "
                f"they must be ({expected}). End it with a block that gives them."
            )
        if shape[-1] < classes:
            raise InputError(
                f"data: {reason}, but sub-network '{name}' has outputs for 0 to {shape[-1] - 1}. "
                f"Use a recipe whose last block gives at least {classes}."
            )
