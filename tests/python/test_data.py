import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nsn.training.data import check_fits, load_data, read_idx, to_input
from nsn.training.errors import InputError


def idx(shape: tuple[int, ...], content: bytes | None = None) -> bytes:
    size = torch.Size(shape).numel()
    body = content if content is not None else bytes(i % 251 for i in range(size))
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + body


def write_set(
    folder: Path, rows: int = 4, count: int = 6, labels: int | None = None, gz: bool = False
) -> Path:
    folder.mkdir(exist_ok=True)
    for prefix in ("train", "t10k"):
        files = {
            f"{prefix}-images-idx3-ubyte": idx((count, rows, rows)),
            f"{prefix}-labels-idx1-ubyte": idx((labels or count,), bytes(range(labels or count))),
        }
        for name, content in files.items():
            path = folder / (name + ".gz" if gz else name)
            path.write_bytes(gzip.compress(content) if gz else content)
    return folder


@pytest.mark.parametrize("gz", [False, True])
def test_reads_sets_gzipped_or_not(tmp_path: Path, gz: bool) -> None:
    data = load_data(write_set(tmp_path, gz=gz))
    assert data.train.images.shape == (6, 16) and data.train.images.dtype == torch.uint8
    assert data.train.images[1, 3] == 19
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4, 5] and data.test.labels.dtype == torch.int64


def test_reads_names_with_a_dot(tmp_path: Path) -> None:
    write_set(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load_data(tmp_path).train) == 6


def test_reads_mnist(mnist: Path) -> None:
    data = load_data(mnist)
    assert data.train.images.shape == (60000, 784) and data.test.images.shape == (10000, 784)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    x = to_input(data.test.images[:3], torch.float32)
    assert x.min() == 0 and 0.9 < x.max() <= 1


def damage_header(content: bytes) -> bytes:
    return b"\0\0\x0d" + content[3:]  # floats


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda c: c[:-1], r"announces 6 x 4 x 4 bytes, but has 95\. It is truncated"),
    "too long": (lambda c: c + b"x", r"announces 6 x 4 x 4 bytes, but has 97"),
    "inside the header": (lambda c: c[:9], "ends inside its header"),
    "empty": (lambda c: b"", "is no idx file of unsigned bytes: it starts with nothing"),
    "text": (lambda c: b"hello world", "is no idx file of unsigned bytes: it starts with 68656c6c"),
    "floats": (damage_header, "is no idx file of unsigned bytes"),
    "cut gzip": (lambda c: gzip.compress(c)[:-9], "is a damaged gzip file"),
    "bad gzip": (lambda c: gzip.compress(c)[:12] + b"\xff" * 30, "is a damaged gzip file"),
    "no samples": (lambda c: idx((0, 4, 4)), "holds no samples"),
    "labels": (
        lambda c: idx((6,)),
        r"must hold images, \(N, rows, columns\), but has the shape \(6,\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = write_set(tmp_path) / "train-images-idx3-ubyte"
    damage, message = DAMAGES[kind]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_data(tmp_path)


def test_missing_folder_file_and_mismatch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_data(tmp_path / "nowhere")
    write_set(tmp_path / "a", count=6, labels=5)
    with pytest.raises(InputError, match="has 6 images, but .* has 5 labels"):
        load_data(tmp_path / "a")
    folder = write_set(tmp_path / "b")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="has no file t10k-labels-idx1-ubyte"):
        load_data(folder)
    with pytest.raises(InputError, match="cannot read"):
        read_idx(folder / "nothing")


def test_data_that_does_not_fit_the_network(tmp_path: Path) -> None:
    data = load_data(write_set(tmp_path))
    check_fits(data, (16,), 6)
    with pytest.raises(
        InputError, match=r"16 pixels, but the network's input has the shape \(784,\)"
    ):
        check_fits(data, (784,), 6)
    with pytest.raises(
        InputError, match="there is a label 5, but the network has outputs for 0 to 4"
    ):
        check_fits(data, (16,), 5)
