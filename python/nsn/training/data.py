"""Image classification data in the idx format of MNIST, gzipped or not.

Source of the format: http://yann.lecun.com/exdb/mnist (magic number, extents, then bytes).
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nsn.training.errors import InputError

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Split:
    """One half of a data set, in memory.

    Attributes:
        images: uint8, ``(N, rows * columns)``.
        labels: int64, ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set with its two splits."""

    train: Split
    test: Split


def read_idx(path: Path) -> Tensor:
    """The array of an idx file of unsigned bytes, gzipped or not; uint8, of the file's shape.

    Raises:
        InputError: where the file is missing, corrupt, truncated or no such file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP_MAGIC:
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"data: '{path}' is a damaged gzip file: {error}. Copy it again."
        ) from None
    except OSError as error:
        raise InputError(f"data: cannot read '{path}': {error.strerror}.") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise InputError(
            f"data: '{path}' is no idx file of unsigned bytes: it starts with "
            f"{content[:4].hex() or 'nothing'}, but should with 0000 08. Give MNIST's own files."
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < header:
        raise InputError(f"data: '{path}' ends inside its header. It is truncated; copy it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise InputError(
            f"data: '{path}' announces {' x '.join(map(str, shape))} bytes, but has "
            f"{len(content) - header}. It is truncated or damaged; copy it again."
        )
    if math.prod(shape) == 0:
        raise InputError(f"data: '{path}' holds no samples.")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def load_data(directory: Path) -> Data:
    """The four files of an MNIST-like data set: MNIST itself, Fashion-MNIST, ...

    Args:
        directory: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
            ``t10k``; each may end in ``.gz`` and may have a dot before ``idx``.

    Raises:
        InputError: where a file is missing or wrong, or images and labels do not belong together.
    """
    if not directory.is_dir():
        raise InputError(
            f"data: there is no folder '{directory}'. Give one with MNIST's idx files."
        )
    return Data(_split(directory, "train"), _split(directory, "t10k"))


def _split(directory: Path, prefix: str) -> Split:
    images_path = _find(directory, f"{prefix}-images", "idx3-ubyte")
    labels_path = _find(directory, f"{prefix}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dim() != 3:
        raise InputError(
            f"data: '{images_path}' must hold images, (N, rows, columns), but has the shape "
            f"{tuple(images.shape)}."
        )
    if labels.dim() != 1:
        raise InputError(
            f"data: '{labels_path}' must hold labels, (N), but has the shape {tuple(labels.shape)}."
        )
    if len(images) != len(labels):
        raise InputError(
            f"data: '{images_path}' has {len(images)} images, but '{labels_path}' has "
            f"{len(labels)} labels. Use files that belong together."
        )
    return Split(images.flatten(1), labels.long())


def _find(directory: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (directory / name).exists():
            return directory / name
    raise InputError(
        f"data: '{directory}' has no file {names[0]} (or {names[1]}). Copy MNIST's files there."
    )


def check_fits(data: Data, input_shape: tuple[int, ...], classes: int) -> None:
    """Refuses data that the network cannot take.

    Args:
        data: the data set.
        input_shape: of one sample, as the network's description has it.
        classes: how many outputs each sub-network has.
    """
    pixels = data.train.images.shape[1]
    if input_shape != (pixels,):
        raise InputError(
            f"data: an image has {pixels} pixels, but the network's input has the shape "
            f"{input_shape}. Use a recipe whose network.input.shape is [{pixels}]."
        )
    if data.test.images.shape[1] != pixels:
        raise InputError(
            f"data: a training image has {pixels} pixels, but a test image "
            f"{data.test.images.shape[1]}. Use files that belong together."
        )
    largest = int(max(data.train.labels.max(), data.test.labels.max()))
    if largest >= classes:
        raise InputError(
            f"data: there is a label {largest}, but the network has outputs for 0 to {classes - 1}."
            f" Use a recipe whose last block has at least {largest + 1} out_features."
        )


def to_input(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as the network's input in [0, 1]: ``(B, pixels)`` of uint8 to ``dtype``."""
    return images.to(dtype).div_(255)
