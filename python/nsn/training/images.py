"""Image classification data in the idx format of MNIST, gzipped or not.

Source of the format: http://yann.lecun.com/exdb/mnist (magic number, extents, then bytes).
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nsn import files
from nsn.training.errors import InputError

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Images:
    """One half of an image data set, in memory.

    Attributes:
        images: uint8, ``(N, *input)``.
        labels: int64, ``(N)``.
        dtype: of the network's input, whose values are in [0, 1].
    """

    images: Tensor
    labels: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def read(
        cls, folder: Path, half: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> "Images":
        """The images and labels of an MNIST-like data set: MNIST itself, Fashion-MNIST, ...

        Args:
            folder: holds ``<half>-images-idx3-ubyte`` and ``<half>-labels-idx1-ubyte``; each may
                end in ``.gz`` and may have a dot before ``idx``.
            half: ``train`` or ``t10k``.
            shape: of the network's input: ``(rows * columns,)`` or ``(1, rows, columns)``.
            dtype: of the network's input.

        Raises:
            InputError: where a file is missing or wrong, images and labels do not belong together,
                or the images do not fit the network.
        """
        if not folder.is_dir():
            raise InputError(
                f"data: there is no folder '{folder}'. Give one with MNIST's idx files (--data)."
            )
        images_path = _find(folder, f"{half}-images", "idx3-ubyte")
        labels_path = _find(folder, f"{half}-labels", "idx1-ubyte")
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.dim() != 3:
            raise InputError(
                f"data: '{images_path}' must hold images, (N, rows, columns), but has the shape "
                f"{tuple(images.shape)}."
            )
        if labels.dim() != 1:
            raise InputError(
                f"data: '{labels_path}' must hold labels, (N), but has the shape "
                f"{tuple(labels.shape)}."
            )
        if len(images) != len(labels):
            raise InputError(
                f"data: '{images_path}' has {len(images)} images, but '{labels_path}' has "
                f"{len(labels)} labels. Use files that belong together."
            )
        rows, columns = images.shape[1:]
        fits = shape in ((rows * columns,), (1, rows, columns))
        if not (fits and dtype.is_floating_point):
            raise InputError(
                f"data: an image of '{images_path}' has {rows} x {columns} pixels, but the "
                f"network's input is {dtype} of shape {shape}. Use a recipe with "
                f"network.input.shape = [{rows * columns}] or [1, {rows}, {columns}], and a "
                f"floating dtype."
            )
        return cls(images.reshape(-1, *shape), labels.long(), dtype)

    def split(self, share: float) -> tuple["Images", "Images"]:
        """Two parts, of which the second one has the given share of the samples, at the end.

        Raises:
            InputError: where a part would be empty.
        """
        count = round(len(self) * share)
        if not 0 < count < len(self):
            raise InputError(
                f"data: a share of {share} of {len(self)} images leaves a part empty. Give another "
                f"data.validation."
            )
        return (
            replace(self, images=self.images[:-count], labels=self.labels[:-count]),
            replace(self, images=self.images[-count:], labels=self.labels[-count:]),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(self) -> Tensor:
        return torch.randperm(len(self))

    def ordered(self) -> Tensor:
        return torch.arange(len(self))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.labels

    def batch(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images.index_select(0, samples).to(self.dtype).div_(255)
        return images, self.labels.index_select(0, samples)


def read_idx(path: Path) -> Tensor:
    """The array of an idx file of unsigned bytes, gzipped or not; uint8, of the file's shape.

    Raises:
        InputError: where the file is missing, corrupt, truncated or no such file.
    """
    try:
        content = files.read(path)
        if content[:2] == _GZIP_MAGIC:
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"data: '{path}' is a damaged gzip file: {error}. Copy it again."
        ) from None
    except OSError as error:
        raise InputError(f"data: {files.reason(error)}") from None
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


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise InputError(
        f"data: '{folder}' has no file {names[0]} (or {names[1]}). Copy MNIST's files there."
    )
