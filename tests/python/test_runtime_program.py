"""nsn-run, the program on the runtime: what it prints, and what it refuses."""

import io
import resource
import signal
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

import nsn
from nsn import runtime
from shipping import exported, inputs, network


def file_of(kind: str) -> Path:
    return exported(kind, "runtime").folder / "network.nsnrt"


PROGRAM = Path(nsn.__file__).parent / "bin" / "nsn-run"


def nsn_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)


def test_the_program_describes_runs_and_verifies(tmp_path: Path) -> None:
    for kind, name in (("cnn", "half"), ("transformer", "base")):
        x, net = inputs(kind, 5), network(kind)
        expected = net.view(name)(x)
        numpy.save(tmp_path / "x.npy", x.numpy())
        numpy.save(tmp_path / "is.npy", expected.numpy())
        (tmp_path / "x.raw").write_bytes(x.numpy().tobytes())
        described = nsn_run("describe", file_of(kind))
        assert described.returncode == 0, described.stderr
        assert [line.split()[0] for line in described.stdout.splitlines()[1:]] == net.subnetworks
        for given in ("x.npy", "x.raw"):
            for made in ("y.npy", "y.raw"):
                done = nsn_run("run", file_of(kind), name, tmp_path / given, tmp_path / made)
                assert done.returncode == 0, done.stderr
            found = torch.from_numpy(numpy.load(tmp_path / "y.npy"))
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
            assert (tmp_path / "y.raw").read_bytes() == found.numpy().tobytes()
            good = nsn_run("verify", file_of(kind), name, tmp_path / given, tmp_path / "is.npy")
            assert good.returncode == 0 and "5 samples" in good.stdout and "agrees" in good.stdout
        expected[2].view(-1)[1] += 1e-3 * expected.abs().max()
        numpy.save(tmp_path / "other.npy", expected.numpy())
        bad = nsn_run("verify", file_of(kind), name, tmp_path / "x.npy", tmp_path / "other.npy")
        assert bad.returncode == 3 and "DIFFERS" in bad.stdout
    timed = nsn_run("bench", file_of("cnn"), "shallow", "--batch", 2, "--threads=2")
    assert timed.returncode == 0 and "shallow      batch 2: median " in timed.stdout, timed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing.\n\nUsage: nsn-run COMMAND"),
        (["fly", "FILE"], "there is no command fly"),
        (["describe"], "'describe' takes FILE, but is given nothing.\n\nUsage"),
        (["describe", "a", "b"], "'describe' takes FILE, but is given 'a' 'b'."),
        (
            ["run", "FILE", "base"],
            "'run' takes FILE SUBNETWORK INPUT OUTPUT, but is given",
        ),
        (["bench", "a", "b", "c"], "'bench' takes FILE [SUBNETWORK], but is given 'a' 'b' 'c'."),
        (["describe", "FILE", "--speed", "3"], "there is no option --speed"),
        (["describe", "FILE", "--tolerance", "3"], "takes no options, but is given --tolerance"),
        (
            ["run", "FILE", "base", "x", "y", "--batch", "3"],
            "'run' takes --threads, but is given --batch",
        ),
        (["bench", "FILE", "--batch"], "--batch needs a number"),
        (["bench", "FILE", "--batch="], "--batch must be a whole number from 1 to 1073741824, but"),
        (["bench", "FILE", "--speed=3"], "there is no option --speed."),
        *(
            (
                ["bench", "FILE", "--batch", wrong],
                f"--batch must be a whole number from 1 to 1073741824, but is '{wrong}'",
            )
            for wrong in ("none", "1.5", "0", "-1", "", "2 ", "99999999999999999999")
        ),
        (
            ["bench", "FILE", "--threads", "1.9"],
            "--threads must be a whole number from 1 to 1024, but is '1.9'",
        ),
        (
            ["verify", "FILE", "base", "GOOD", "GOOD", "--tolerance", "nan"],
            "--tolerance must be a number above 0 and below 1e9, but is 'nan'",
        ),
        (
            ["bench", "FILE", "--batch", "900000000"],
            "there is no memory for runs of 900000000 samples. Give fewer.",
        ),
        (["bench", "FILE", "--batch", "2", "--batch=3"], "--batch is given twice"),
        (["describe", "/nowhere"], "'/nowhere' cannot be opened"),
        (["bench", "FILE", "none"], "has no sub-network 'none'. It has 'base'"),
        (["describe", "FOLDER"], "is no regular file, but a folder. Give the path of a file."),
        (["run", "FILE", "base", "/nowhere", "y"], "'/nowhere' cannot be read: No such file"),
        (["run", "FILE", "base", "FOLDER", "y"], "cannot be read: Is a directory. Check the path"),
        (["run", "FILE", "base", "GOOD", "/nowhere/y"], "'/nowhere/y' cannot be written: No such"),
        (
            ["run", "FILE", "base", "SHORT", "y"],
            "must hold samples of (B, 784) float32, 3136 bytes",
        ),
        (["run", "FILE", "base", "DOUBLE", "y"], "holds '<f8', and must hold '<f4' or '<i8'"),
        (
            ["run", "FILE", "base", "OTHER", "y"],
            "3136 bytes of shape (784, 1) float32. Convert it.",
        ),
        (
            ["verify", "FILE", "base", "GOOD", "TURNED"],
            "must hold outputs of shape (1, 10) and float32, but is of shape (10, 1). Give what",
        ),
        (
            ["verify", "FILE", "base", "GOOD", "SHORT"],
            "must hold outputs of shape (1, 10) and float32, but holds 4 bytes. Give what",
        ),
    ],
)
def test_the_program_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234")
    numpy.save(tmp_path / "double.npy", numpy.zeros((1, 784)))
    numpy.save(tmp_path / "other.npy", numpy.zeros((784, 1), numpy.float32))
    numpy.save(tmp_path / "good.npy", numpy.zeros((1, 784), numpy.float32))
    numpy.save(tmp_path / "turned.npy", numpy.zeros((10, 1), numpy.float32))
    stands_for = {
        "FILE": file_of("mlp"),
        "SHORT": tmp_path / "short",
        "DOUBLE": tmp_path / "double.npy",
        "OTHER": tmp_path / "other.npy",
        "GOOD": tmp_path / "good.npy",
        "TURNED": tmp_path / "turned.npy",
        "FOLDER": tmp_path,
    }
    done = nsn_run(*(stands_for.get(each, each) for each in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("nsn-run: ") and message in done.stderr, done.stderr


def test_what_cannot_be_said_is_an_error() -> None:
    for command in ("describe", "--version"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [PROGRAM, command, file_of("mlp")],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert done.returncode == 2
        assert "cannot be written to the standard output. Check where it goes" in done.stderr


def test_names_in_capitals_are_numpys_too(tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", inputs("mlp", 2).numpy())
    for name in ("y.NPY", "y.Npy"):
        done = nsn_run("run", file_of("mlp"), "base", tmp_path / "x.npy", tmp_path / name)
        assert done.returncode == 0 and numpy.load(tmp_path / name).shape == (2, 10), done.stderr


def saved(changes: dict[bytes, bytes]) -> bytes:
    """Five samples as numpy.save writes them, with other words in the header."""
    file = io.BytesIO()
    numpy.save(file, numpy.zeros((5, 784), numpy.float32))
    content = file.getvalue()
    for old, new in changes.items():
        assert content.count(old) == 1
        # The header is as long as before.
        content = content.replace(old, new).replace(
            b" " * (len(new) - len(old)) + b"\n", b"\n", len(new) > len(old)
        )
    return content


WHOLE = saved({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-1], "its header names 15680 bytes of numbers, but it holds 15679. Save it anew"),
        (WHOLE[:-3136], "names 15680 bytes of numbers, but it holds 12544"),
        (WHOLE + b"more", "names 15680 bytes of numbers, but it holds 15684"),
        (saved({b"(5, 784)": b"(9, 784)"}), "names 28224 bytes of numbers, but it holds 15680"),
        (
            saved({b"(5, 784)": b"(4611686018427387909, 784)"}),
            "names more than 2^63 bytes of numbers",
        ),
        (saved({b"(5, 784)": b"(-5, 784"}), "its header has the shape '(-5, 784"),
        (saved({b"(5, 784)": b"(5; 784)"}), "its header has the shape '(5; 784'"),
        (saved({b"(5, 784)": b"(five, 784)"}), "its header has the shape '(five, 784'"),
        (saved({b"(5, 784)": b"(\x1b[2J)"}), r"its header has the shape '(\x1b[2J'"),
        (
            saved({b"(5, 784)": b"(99999999999999999999, 1)"}),
            "its header has the shape '(99999999999999999999, 1'",
        ),
        (saved({b"'shape'": b"'shade'"}), "its header has no 'shape'"),
        (saved({b"'descr'": b"'order'"}), "its header has no 'descr'"),
        (WHOLE[:7], "it ends in its header, after 7 bytes"),
        (WHOLE[:9], "it ends in its header, after 9 bytes"),
        (WHOLE[:60], "it ends in its header, after 60 bytes"),
        (b"\x93NUMPY\x01\x00\x0a\x00'shape':  ", "its header has no 'descr'"),
        (b"\x93NUMPY\x01\x00\x0a\x00'descr':  ", "holds , and must hold '<f4' or '<i8'"),
        (b"\x93NUMPY\x09\x00\x0a\x00'descr':  ", "it has version 9, but 1 to 3 are known"),
        (b"", "its first bytes are others"),
        (WHOLE[128:], "its first bytes are others"),
    ],
)
def test_files_of_numpy_that_are_damaged(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    done = nsn_run("run", file_of("mlp"), "base", tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 2 and not (tmp_path / "y.npy").exists()
    assert message in done.stderr and "x.npy'" in done.stderr, done.stderr


def test_files_of_numpy_of_all_versions(tmp_path: Path) -> None:
    x = inputs("mlp", 5).numpy()
    for version in ((1, 0), (2, 0), (3, 0)):
        with (tmp_path / "x.npy").open("wb") as file:
            numpy.lib.format.write_array(file, x, version=version)
        done = nsn_run("run", file_of("mlp"), "base", tmp_path / "x.npy", tmp_path / "y.npy")
        assert done.returncode == 0, done.stderr
        assert numpy.load(tmp_path / "y.npy").shape == (5, 10)


def test_an_output_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Where the disk is full, as where a file may not grow that far; links lead to what they did."""
    numpy.save(tmp_path / "x.npy", inputs("mlp", 500).numpy())
    folder = tmp_path / "out"
    folder.mkdir()
    real, link = folder / "real.npy", folder / "link.npy"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real.npy")

    def shorten() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    program = Path(nsn.__file__).parent / "bin" / "nsn-run"
    for path in (link, folder / "new.npy"):
        command = [program, "run", file_of("mlp"), "base", tmp_path / "x.npy", path]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=shorten)
        assert done.returncode == 2, done
        assert f"'{path}' cannot be written: File too large. Check the path, its" in done.stderr
        assert real.read_bytes() == b"old"
        assert {each.name for each in folder.iterdir()} == {"real.npy", "link.npy"}
    for path in (link, folder / "new.npy"):
        done = nsn_run("run", file_of("mlp"), "base", tmp_path / "x.npy", path)
        assert done.returncode == 0, done.stderr
        assert numpy.load(path).shape == (500, 10)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert {each.name for each in folder.iterdir()} == {"real.npy", "link.npy", "new.npy"}
    # What is no file is written to as it is.
    one = tmp_path / "one.npy"
    numpy.save(one, inputs("mlp", 1).numpy())
    piped = subprocess.run(
        [program, "run", file_of("mlp"), "base", one, "/dev/stdout"], capture_output=True
    )
    assert piped.returncode == 0 and len(piped.stdout) == 10 * 4, piped.stderr


def test_what_is_no_number_agrees_with_itself(tmp_path: Path) -> None:
    x = inputs("mlp", 2)
    x[1, 3] = torch.nan
    numpy.save(tmp_path / "x.npy", x.numpy())
    command = file_of("mlp"), "base", tmp_path / "x.npy", tmp_path / "y.npy"
    assert nsn_run("run", *command).returncode == 0
    y = numpy.load(tmp_path / "y.npy")
    assert numpy.isnan(y[1]).any() and not numpy.isnan(y[0]).any()
    assert nsn_run("verify", *command).returncode == 0
    for row in (0, 1):
        other = y.copy()
        other[row] = 0.0 if row else numpy.nan
        numpy.save(tmp_path / "y.npy", other)
        assert nsn_run("verify", *command).returncode == 3


def test_help_and_version() -> None:
    for asked in (["--help"], ["-h"], ["help"], ["run", "--help"]):
        done = nsn_run(*asked)
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.startswith("Usage: nsn-run COMMAND FILE")
    done = nsn_run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nsn-run {nsn.__version__}\n"


def test_a_file_of_which_not_all_is_there(tmp_path: Path) -> None:
    content = file_of("mlp").read_bytes()
    header = int.from_bytes(content[16:24], "little")
    (tmp_path / "header").write_bytes(content[:header])
    ends = runtime.Model(file_of("mlp")).subnetworks
    done = nsn_run("bench", tmp_path / "header")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        f"header' ends after {header} bytes, but its smallest sub-network needs its first "
        f"{min(each.file_bytes for each in ends.values())}. Append the rest." in done.stderr
    )
    for command in (["bench"], ["run", "x", "y"], ["verify", "x", "y"]):
        done = nsn_run(command[0], tmp_path / "header", "base", *command[1:])
        assert done.returncode == 2
        assert (
            f"but sub-network 'base' needs its first {ends['base'].file_bytes}. Append the rest."
            in done.stderr
        )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"h\x1b[1m", r"h\x1b[1m"),
        (b"a\nb\t\x7f", r"a\x0ab\x09\x7f"),
        (b"h\xc2\x9bm", r"h\xc2\x9bm"),
        (b"h\x9bm\xffe", r"h\x9bm\xffe"),
        ("hö€".encode(), "hö€"),
    ],
)
def test_names_do_nothing_to_a_terminal(name: bytes, shown: str, tmp_path: Path) -> None:
    content = file_of("mlp").read_bytes()
    old = (4).to_bytes(8, "little") + b"half\0\0\0\0"
    assert content.count(old) == 1
    new = len(name).to_bytes(8, "little") + name.ljust(8, b"\0")
    (tmp_path / "net").write_bytes(content.replace(old, new))
    described = nsn_run("describe", tmp_path / "net")
    assert described.returncode == 0, described.stderr
    assert f"\n{shown} " in described.stdout
    assert all(each.isprintable() for each in described.stdout.replace("\n", ""))
    wrong = nsn_run("bench", tmp_path / "net", "none")
    assert wrong.returncode == 2 and f"'{shown}'" in wrong.stderr
