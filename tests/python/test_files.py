"""What a path may name, and how a new file takes an old one's place: for all that nsn writes."""

import fcntl
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import nsn
from nsn import files
from nsn.describing import tables
from nsn.training.errors import InputError
from nsn.training.images import read_idx
from nsn.training.plots import plot_curves
from nsn.training.recipe import load_recipe
from nsn.training.report import read_report, read_state, write_json, write_state


def network(fill: float = 0.0) -> nsn.Network:
    net = nsn.Network(input=(4,), blocks={"a": nsn.Dense(4, 4), "b": nsn.Dense(4, 2)})
    with torch.no_grad():
        net.a.weight.fill_(fill)
    return net


#: All that writes a file: what is written holds the number.
WRITERS: dict[str, Callable[[float, Path], None]] = {
    "checkpoint": lambda number, path: nsn.save(network(number), path),
    "state": lambda number, path: write_state(path, {"number": number}),
    "json": lambda number, path: write_json(path, {"number": number}),
    "curves": lambda number, path: plot_curves({}, path, str(number)),
}
#: All that reads one.
READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": nsn.load,
    "part": lambda path: nsn.load(path, only="base"),
    "metadata": nsn.load_metadata,
    "rest": lambda path: nsn.load_rest(network(), path),
    "state": lambda path: read_state(path, ["number"]),
    "report": read_report,
    "recipe": lambda path: load_recipe(str(path), []),
    "images": read_idx,
}


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


write = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
read = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@write
def test_links_are_followed(write: Callable[[float, Path], None], tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    (tmp_path / "over").symlink_to("far")
    link.symlink_to("over/target")
    write(1.0, link)  # a link that leads to nothing yet
    assert link.is_symlink() and stat.S_ISREG(target.lstat().st_mode)
    before = target.read_bytes()
    write(2.0, link)
    assert link.is_symlink() and target.read_bytes() != before
    assert names(tmp_path / "far") == ["target"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="cannot write"):
        write(1.0, tmp_path / "round")


@write
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_stays(write: Callable[[float, Path], None], mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o022)
    try:
        write(1.0, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(mode)
        write(2.0, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@write
def test_what_may_not_be_written_is_refused(
    write: Callable[[float, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    write(1.0, path)
    before = path.read_bytes()
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"cannot write '.*file': Permission denied"):
        write(2.0, path)
    path.chmod(0o644)
    os.link(path, tmp_path / "other")
    with pytest.raises(OSError, match=r"2 names \(hard links\).* Remove this one first"):
        write(2.0, path)
    assert path.read_bytes() == (tmp_path / "other").read_bytes() == before
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is a FIFO, and must be a regular file"):
        write(1.0, tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(OSError, match="it is a device, and must be a regular file"):
        write(1.0, tmp_path / "null")
    with pytest.raises(IsADirectoryError):
        write(1.0, tmp_path)
    with pytest.raises(IsADirectoryError):
        write(1.0, f"{tmp_path}/new/")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        write(1.0, tmp_path / "no" / "folder")
    assert {each.name for each in tmp_path.iterdir()} == {"file", "other", "fifo", "null"}


@read
def test_reading_never_waits(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, kind in (("fifo", "FIFO"), ("device", "device")):
        with pytest.raises((OSError, InputError), match=f"it is a {kind}, and must be a regular"):
            read(tmp_path / name)
    with pytest.raises((OSError, InputError), match=r"[Dd]irectory|no report|report.json"):
        read(tmp_path)


@pytest.mark.parametrize("name", [b"\xff\xfe", "ü".encode(), b"x" * 255, b" \n\t'", b"-"], ids=repr)
def test_any_name_that_a_file_may_have(name: bytes, tmp_path: Path) -> None:
    """As text with surrogates, as bytes, as a Path: as Python's own open."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = os.fsencode(folder) + b"/" + name
    forms = [path, os.fsdecode(path), Path(os.fsdecode(path))]
    for number, form in enumerate(forms):
        nsn.save(network(number), form)
        assert names(folder) == [os.fsdecode(name)]
        for again in forms:
            assert nsn.load(again).a.weight[0, 0] == number
    missing = os.fsencode(tmp_path) + b"/no\xff"
    with pytest.raises(FileNotFoundError) as error:
        nsn.load(missing)
    assert error.value.filename == os.fsdecode(missing)


def test_names_that_no_file_has(tmp_path: Path) -> None:
    for call in (lambda path: nsn.save(network(), path), nsn.load, nsn.load_metadata):
        with pytest.raises(ValueError, match="NUL"):
            call(str(tmp_path / "a\0b"))
        with pytest.raises(OSError, match="File name too long"):
            call(tmp_path / ("x" * 256))
        with pytest.raises(FileNotFoundError):
            call("")
        with pytest.raises(TypeError, match="expected str, bytes or os.PathLike object, not int"):
            call(3)  # type: ignore[arg-type]
    assert names(tmp_path) == []


ENDLESS = """
import sys, torch, nsn
net = nsn.Network(input=(600,), blocks={"a": nsn.Dense(600, 600), "b": nsn.Dense(600, 2)})
print("ready", flush=True)
while True:
    nsn.save(net, sys.argv[1])
"""


def test_nothing_stays_of_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for round in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.013 * round)
            process.send_signal(signal.SIGKILL)
        nsn.load(path)  # whole at any time
    nsn.save(network(), path)
    assert names(tmp_path) == ["model"]


def test_old_temporaries_go_and_live_ones_stay(tmp_path: Path) -> None:
    dead, live, foreign = (
        tmp_path / f".nsn-{digit * 16}.tmp" if digit != "f" else tmp_path / ".nsn-notes.tmp"
        for digit in "01f"
    )
    for each in (dead, live, foreign):
        each.write_text("x")
    (tmp_path / f".nsn-{'2' * 16}.tmp").mkdir()
    (tmp_path / f".nsn-{'2' * 16}.tmp" / "part").write_text("x")
    with live.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        nsn.save(network(), tmp_path / "model")
    assert {each.name for each in tmp_path.iterdir()} == {live.name, foreign.name, "model"}
    nsn.save(network(), tmp_path / "model")
    assert not live.exists()


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with pytest.raises(RuntimeError), files.new_folder(path) as made:
        (made / "part").write_text("x")
        assert not path.exists()
        raise RuntimeError
    assert names(tmp_path) == []
    with files.new_folder(path) as made:
        (made / "part").write_text("x")
    assert names(tmp_path) == [path.name] and names(path) == ["part"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o700 == 0o700
    with (
        pytest.raises(FileExistsError, match="Remove it, or give another path"),
        files.new_folder(path),
    ):
        pass
    with pytest.raises(FileExistsError), files.new_folder(tmp_path / "late") as made:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").write_text("x")
    assert names(tmp_path / "late") == ["theirs"]


@write
def test_a_full_disk_leaves_the_old_file(
    write: Callable[[float, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    write(1.0, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write '.*file': File too large"):
            write(2.0, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and names(tmp_path) == ["file"]


def test_a_header_larger_than_memory_is_refused_at_once(tmp_path: Path) -> None:
    """A sparse file may be as long as it likes."""
    path = tmp_path / "sparse"
    side = 500_000
    document = json.loads(network().description.to_json())
    document["blocks"][0] |= {"in_features": 4, "out_features": side}
    document["blocks"][1] |= {"in_features": side, "out_features": side}
    shapes = {"a.bias": [side], "a.weight": [side, 4], "b.bias": [side], "b.weight": [side, side]}
    entries, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    header = json.dumps({"__metadata__": {"nsn": json.dumps(document)}, **entries}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + begin)
    for only in (None, "base"):
        started = time.perf_counter()
        with pytest.raises(ValueError, match=r"1,?000\S* bytes .*memory"):
            nsn.load(path, only=only)
        assert time.perf_counter() - started < 1


def test_refusals_take_no_time(tmp_path: Path) -> None:
    """Counted before anything is built: each takes well below a second on an idle machine."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    entries = ",".join(f'"t{number}":{entry}' for number in range(1_000_000))
    header = f'{{"__metadata__":{{"nsn":"{{}}"}},{entries}}}'.encode()
    (tmp_path / "many").write_bytes(len(header).to_bytes(8, "little") + header)
    document = json.loads(network().description.to_json())
    block = document["blocks"][0]
    blocks = [{**block, "name": f"b{number}"} for number in range(600_000)]
    long = json.dumps({**document, "blocks": blocks})
    named = [{"name": f"s{number}", "blocks": [block["name"]]} for number in range(1023)]
    crowd = nsn.Description.from_json(
        json.dumps({**document, "blocks": [block], "subnetworks": named})
    )
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: nsn.load(tmp_path / "many"), "more than 250000 tensors"),
        (lambda: nsn.load_metadata(tmp_path / "many"), "more than 250000 tensors"),
        (lambda: nsn.Description.from_json(long), "more than 2000000 values"),
    ]
    for call, message in calls:
        started = time.perf_counter()
        with pytest.raises(ValueError, match=message):
            call()
        assert time.perf_counter() - started < 3
    started = time.perf_counter()
    Console(file=io.StringIO(), width=100).print(tables(crowd))
    assert time.perf_counter() - started < 3
