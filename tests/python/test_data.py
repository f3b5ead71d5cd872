import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nsn
from nsn.training.data import load_data
from nsn.training.errors import InputError
from nsn.training.images import Images, read_idx
from nsn.training.text import Windows


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


def description(shape: tuple[int, ...], classes: int) -> nsn.Description:
    last = {"output": nsn.Dense(shape[-1], classes)}
    return nsn.Description(input=shape, blocks=last, subnetworks={"other": ["output"]})


@pytest.mark.parametrize("gz", [False, True])
def test_reads_sets_gzipped_or_not(tmp_path: Path, gz: bool) -> None:
    table = {"kind": "images", "path": str(write_set(tmp_path, gz=gz))}
    data = load_data(table, description((16,), 6))
    assert len(data.train) == len(data.test) == 6
    images, labels = data.test.batch(torch.tensor([5, 1]))
    assert labels.tolist() == [5, 1] and labels.dtype == torch.int64
    assert images.shape == (2, 16) and images.dtype == torch.float32
    assert images[1, 3] == torch.tensor(19 / 255)


def test_images_in_the_shape_and_dtype_of_the_network(tmp_path: Path) -> None:
    flat = Images.read(write_set(tmp_path), "train", (16,))
    deep = Images.read(tmp_path, "train", (1, 4, 4), torch.float64)
    x, _ = deep.batch(deep.ordered())
    assert x.shape == (6, 1, 4, 4) and x.dtype == torch.float64
    assert torch.equal(x.flatten(1).float(), flat.batch(flat.ordered())[0])
    assert deep.ordered().tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(deep.shuffled().tolist()) == [0, 1, 2, 3, 4, 5]


def test_reads_names_with_a_dot(tmp_path: Path) -> None:
    write_set(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(Images.read(tmp_path, "t10k", (16,))) == 6


def test_reads_mnist(mnist: Path) -> None:
    train, test = (Images.read(mnist, half, (784,)) for half in ("train", "t10k"))
    assert train.images.shape == (60000, 784) and test.images.shape == (10000, 784)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    x, _ = test.batch(torch.arange(3))
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
        Images.read(tmp_path, "train", (16,))


def test_missing_folder_file_and_mismatch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        Images.read(tmp_path / "nowhere", "train", (16,))
    write_set(tmp_path / "a", count=6, labels=5)
    with pytest.raises(InputError, match="has 6 images, but .* has 5 labels"):
        Images.read(tmp_path / "a", "train", (16,))
    folder = write_set(tmp_path / "b")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="has no file t10k-labels-idx1-ubyte"):
        Images.read(folder, "t10k", (16,))
    with pytest.raises(InputError, match="cannot read"):
        read_idx(folder / "nothing")


def test_images_that_do_not_fit_the_network(tmp_path: Path) -> None:
    table = {"kind": "images", "path": str(write_set(tmp_path))}
    for shape, classes, message in (
        ((784,), 6, r"4 x 4 pixels, but the network's input is torch.float32 of shape \(784,\)"),
        ((4, 4), 6, r"network.input.shape = \[16\] or \[1, 4, 4\]"),
        ((1, 4, 4), 6, r"'base' gives outputs of shape \(1, 4, 6\), .* must be \(classes\)"),
        ((16,), 5, "there is a label 5, but sub-network 'base' has outputs for 0 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            load_data(table, description(shape, classes))


TEXT = {"kind": "text", "characters": "abc", "windows": 7, "test_share": 0.25, "test_windows": 50}


def windows(tmp_path: Path, text: str, length: int = 4, **other: object) -> tuple[Windows, Windows]:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return Windows.read(path, {**TEXT, **other}, (length,), torch.int64)


def test_windows_of_a_text(tmp_path: Path) -> None:
    text = "".join("abc"[i * i % 7 % 3] for i in range(80))
    numbers = ["abc".index(character) for character in text]
    train, test = windows(tmp_path, text)
    assert train.tokens.tolist() == numbers[:60] and test.tokens.tolist() == numbers[60:]
    x, y = train.batch(torch.tensor([0, 55]))
    assert x.tolist() == [numbers[0:4], numbers[55:59]]
    assert y.tolist() == [numbers[1:5], numbers[56:60]]
    assert x.dtype == y.dtype == torch.int64

    # All places occur, none beyond the end; a new order each time.
    starts = torch.cat([train.shuffled() for _ in range(200)])
    assert len(train) == 7 and starts.numel() == 1400
    assert sorted(set(starts.tolist())) == list(range(56))

    # Four windows of four fit into 20 characters with a next one each; they do not overlap.
    assert len(test) == 4 and test.ordered().tolist() == [0, 4, 8, 12]
    _, few = windows(tmp_path, text, test_windows=2)
    assert few.ordered().tolist() == [0, 9]


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        ("ab" * 40 + "d", {}, "has the character 'd' at 80, but the recipe's data.characters"),
        ("abc", {}, "leaves 3 characters to train on, but a window and its next character are 5"),
        ("abc" * 6, {}, "leaves 4 characters to evaluate on"),
    ],
)
def test_texts_that_cannot_be_used(
    tmp_path: Path, text: str, other: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        windows(tmp_path, text, **other)


def test_text_that_does_not_fit_or_is_none(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for shape, dtype in (((4,), torch.float32), ((4, 4), torch.int64)):
        with pytest.raises(InputError, match=f"as integers of shape .* but .* is {dtype} of shape"):
            Windows.read(path, TEXT, shape, dtype)
    with pytest.raises(InputError, match="cannot read '.*text.txt': No such file"):
        Windows.read(path, TEXT, (4,), torch.int64)
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="is no UTF-8 text"):
        Windows.read(path, TEXT, (4,), torch.int64)


def test_outputs_that_do_not_fit_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc" * 20)
    table = {**TEXT, "path": str(path)}
    embedding = nsn.Embedding(3, 8)
    for blocks, message in (
        (
            {"embedding": embedding, "flat": nsn.Flatten(), "last": nsn.Dense(32, 3)},
            r"'base' gives outputs of shape \(3,\), .* must be \(4, classes\)",
        ),
        (
            {"embedding": embedding, "last": nsn.Dense(8, 2)},
            "there are 3 characters, but sub-network 'base' has outputs for 0 to 1",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_data(table, nsn.Description(input=(4,), dtype=torch.int64, blocks=blocks))
