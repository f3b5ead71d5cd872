"""Text, character by character: the network predicts each position's next one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsn import files
from nsn.training.errors import InputError


@dataclass(frozen=True)
class Windows:
    """A part of a text, seen through windows of the network's context length.

    A sample is the place where its window starts. Training reads windows at random places;
    evaluation reads the same ones each time, spread evenly and without overlap.

    Attributes:
        tokens: the characters' numbers, int64, ``(N)``, N above ``length``.
        length: characters in a window, T.
        count: windows in one pass.
        dtype: of the network's input.
    """

    tokens: Tensor
    length: int
    count: int
    dtype: torch.dtype = torch.int64

    @classmethod
    def read(
        cls, path: Path, table: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple["Windows", "Windows"]:
        """The two parts of a text file: what is trained on, and the end, which is evaluated on.

        With ``validation`` it is the end of what is trained on otherwise, and that is read no more.

        Args:
            path: a UTF-8 file.
            table: the recipe's ``data``: ``characters``, ``windows``, ``test_share``,
                ``test_windows`` and ``validation``.
            shape: of the network's input: ``(T,)``.
            dtype: of the network's input, integral.

        Raises:
            InputError: where the file cannot be read, has a character that ``characters`` lacks, is
                too short, or does not fit the network.
        """
        if len(shape) != 1 or dtype.is_floating_point:
            raise InputError(
                f"data: text is fed as integers of shape (T,), but the network's input is {dtype} "
                f"of shape {shape}. Use a recipe with network.input.shape = [T] and dtype 'int64'."
            )
        try:
            text = files.read(path).decode()
        except OSError as error:
            raise InputError(f"data: {files.reason(error)}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"data: '{path}' is no UTF-8 text: {error}.") from None
        numbers = {character: number for number, character in enumerate(table["characters"])}
        try:
            tokens = torch.tensor([numbers[character] for character in text])
        except KeyError as error:
            character = error.args[0]
            raise InputError(
                f"data: '{path}' has the character {character!r} at {text.index(character)}, but "
                f"the recipe's data.characters has not. Add it there, and one class to the network."
            ) from None
        length = shape[0]
        train, test = tokens.tensor_split([len(tokens) - int(len(tokens) * table["test_share"])])
        if table.get("validation"):
            train, test = train.tensor_split([len(train) - int(len(train) * table["validation"])])
        for part, name in ((train, "to train on"), (test, "to evaluate on")):
            if len(part) <= length:
                raise InputError(
                    f"data: '{path}' leaves {len(part)} characters {name}, but a window and its "
                    f"next character are {length + 1}. Give a longer text, or another "
                    f"data.test_share."
                )
        fitting = (len(test) - 1) // length
        return (
            cls(train, length, table["windows"], dtype),
            cls(test, length, min(table["test_windows"], fitting), dtype),
        )

    def __len__(self) -> int:
        return self.count

    def shuffled(self) -> Tensor:
        return torch.randint(len(self.tokens) - self.length, (self.count,))

    def ordered(self) -> Tensor:
        return torch.arange(self.count) * ((len(self.tokens) - 1) // self.count)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tokens,)

    def batch(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        windows = self.tokens.unfold(0, self.length + 1, 1).index_select(0, samples)
        return windows[:, :-1].to(self.dtype).contiguous(), windows[:, 1:].contiguous()
