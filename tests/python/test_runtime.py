"""The runtime by its C interface: files that networks are written to, sessions, and what they say.

That what comes out is right is in test_cases.py, test_pack.py and test_export.py too; what runs cost,
and files that would do harm, in tests/runtime.
"""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import nsn
from nsn import runtime
from shipping import exported, inputs, network


def file_of(kind: str) -> Path:
    return exported(kind, "runtime").folder / "network.nsnrt"


def test_says_what_is_in_a_file() -> None:
    model, net = runtime.Model(file_of("cnn")), network("cnn")
    assert list(model.subnetworks) == list(net.subnetworks)
    for name, one in model.subnetworks.items():
        assert one.name == name and one.is_there and one.dtype == torch.float32
        assert one.input_shape == net.description.input_shape
        assert one.output_shape == net.description.output_shape(name)
        assert one.weight_bytes < one.file_bytes <= file_of("cnn").stat().st_size
        assert one.weight_bytes >= 4 * net.description.parameter_count(name) * 0.9
    assert runtime.Model(file_of("transformer")).subnetworks["base"].dtype == torch.int64


def test_a_file_that_arrives_in_parts(tmp_path: Path) -> None:
    """The smallest runs on the beginning; what is appended is there for a session that runs."""
    content, net = file_of("mlp").read_bytes(), network("mlp")
    x = inputs("mlp", 3)
    order = sorted(
        runtime.Model(file_of("mlp")).subnetworks.values(), key=lambda each: each.file_bytes
    )
    path = tmp_path / "arriving.nsnrt"
    path.write_bytes(content[: order[0].file_bytes])
    model = runtime.Model(path)
    session = runtime.Session(model, max_batch=3)
    for i, one in enumerate(order):
        if i:
            assert not model.subnetworks[one.name].is_there
            with pytest.raises(ValueError, match="the file ends before the weights of this"):
                session.run(one.name, x)
            with pytest.raises(ValueError, match="ends before its weights"):
                model.load(one.name)
            with path.open("ab") as file:
                file.write(content[path.stat().st_size : one.file_bytes])
            model.grow()
        model.load(one.name)
        assert model.subnetworks[one.name].is_there
        assert torch.allclose(session.run(one.name, x), net.view(one.name)(x), atol=1e-5)
    assert path.read_bytes() == content


def rounded(kind: str, dtype: torch.dtype) -> nsn.Network:
    """A network whose weights of products and convolutions are what a file of the dtype holds."""
    net = copy.deepcopy(network(kind))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("weight") or parameter.dim() < 2:
                continue
            if dtype != torch.int8:
                parameter.copy_(parameter.to(dtype))
                continue
            scales = parameter.abs().flatten(1).amax(1) / 127
            scales = scales.view(-1, *(1,) * (parameter.dim() - 1))
            parameter.copy_((parameter / scales).round() * scales)
    return net


@pytest.mark.parametrize("batch", [1, 2, 13])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_narrow_weights(kind: str, dtype: torch.dtype, batch: int, tmp_path: Path) -> None:
    """Are rounded as they should be, and nothing else is: all is computed in float32."""
    folder = nsn.export(network(kind), tmp_path / "narrow", "runtime", weights=dtype).folder
    model = runtime.Model(folder / "network.nsnrt")
    session, net, x = runtime.Session(model, batch), rounded(kind, dtype), inputs(kind, batch)
    for name in net.subnetworks:
        expected = net.view(name)(x)
        size = expected.abs().max()
        assert (session.run(name, x) - expected).abs().max() < 3e-6 * size, name
        # A file of other numbers.
        assert (network(kind).view(name)(x) - expected).abs().max() > 3e-5 * size, name
    whole = runtime.Model(file_of(kind)).subnetworks["base"].weight_bytes
    share = dtype.itemsize / 4
    assert share < model.subnetworks["base"].weight_bytes / whole < share + 0.2


def test_narrow_weights_by_all_their_users(tmp_path: Path) -> None:
    """Slices that are not leading, and a table that a product reads too, which stays as it is."""
    for dtype in (torch.float16, torch.int8):
        folder = tmp_path / str(dtype)
        nsn.export(network("transformer"), folder, "runtime", weights=dtype)
        session = runtime.Session(runtime.Model(folder / "network.nsnrt"), 5)
        x = inputs("transformer", 5)
        for name in network("transformer").subnetworks:
            expected = network("transformer").view(name)(x)
            difference = (session.run(name, x) - expected).abs().max() / expected.abs().max()
            assert 1e-5 < difference < (1e-3 if dtype == torch.float16 else 2e-2)


def test_weights_that_a_type_cannot_hold(tmp_path: Path) -> None:
    net = copy.deepcopy(network("mlp"))
    for number in (7e4, float("inf"), float("nan")):
        with torch.no_grad():
            net.get_parameter("hidden1.weight")[3, 4] = number
        with pytest.raises(ValueError, match=r"'hidden1.weight' has a weight of size .*finite and"):
            nsn.export(net, tmp_path / "none", "runtime", weights=torch.float16)
        assert not (tmp_path / "none").exists()
    with torch.no_grad():
        # Rows that have no largest weight to be scaled by, or one whose scale would be none.
        net.get_parameter("hidden1.weight")[3] = 0.0
        for row, multiple in enumerate((1, 63, 64, 128, 129)):
            net.get_parameter("hidden1.weight")[4 + row] = multiple * 2.0**-149
    nsn.export(net, tmp_path / "zeros", "runtime", weights=torch.int8)
    session = runtime.Session(runtime.Model(tmp_path / "zeros" / "network.nsnrt"))
    assert session.run("base", inputs("mlp", 1)).isfinite().all()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_a_pack_of_a_file(kind: str) -> None:
    pack, net, x = nsn.Pack.map(file_of(kind)), network(kind), inputs(kind, 6)
    session = runtime.Session(runtime.Model(file_of(kind)), 6, threads=1)
    for name in net.subnetworks:
        view = pack.view(name)
        expected = net.view(name)(x)
        assert torch.allclose(view(x), expected, atol=1e-5 * float(expected.abs().max()))
        out = torch.empty_like(expected)
        assert view(x, out) is out and torch.equal(out, session.run(name, x))
    assert not pack.stale()
    assert (
        0
        < pack.bytes
        == sum(each["bytes"] for each in pack.entries)
        < 1.01 * (file_of(kind).stat().st_size)
    )
    assert "tensor 0" in str(pack)
    with pytest.raises(ValueError, match="mapped from a file, so there is nothing to pack anew"):
        pack.refresh()
    with pytest.raises(ValueError, match="'none' is not in this pack, which has 'base'"):
        pack.view("none")
    with pytest.raises(ValueError, match=r"expected input of shape \(B, "):
        pack.view("base")(x.flatten()[:3])
    with pytest.raises(ValueError, match="'/nowhere' cannot be opened"):
        nsn.Pack.map("/nowhere")


@pytest.mark.parametrize("threads", [1, 2])
def test_sessions_of_several_threads(threads: int) -> None:
    net, x = network("cnn"), inputs("cnn", 64)
    session = runtime.Session(runtime.Model(file_of("cnn")), 64, threads)
    for name in net.subnetworks:
        for batch in (64, 1, 7):
            expected = net.view(name)(x[:batch])
            assert torch.allclose(session.run(name, x[:batch]), expected, atol=1e-5)


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be opened: No such file"):
        runtime.Model(tmp_path / "none")
    (tmp_path / "text").write_text("this is no network")
    with pytest.raises(OSError, match=r"its first bytes are others. Write it with `nsn export"):
        runtime.Model(tmp_path / "text")
    model = runtime.Model(file_of("mlp"))
    with pytest.raises(ValueError, match="has no sub-network 'none'. It has base"):
        model.load("none")
    with pytest.raises(ValueError, match="max_batch must be a whole number, at least 1, but is 0"):
        runtime.Session(model, 0)
    with pytest.raises(ValueError, match="threads must be a whole number, at least 1, but is 0"):
        runtime.Session(model, 1, 0)
    session = runtime.Session(model, 2)
    x = inputs("mlp", 3)
    for wrong, message in {
        x: "more samples than the session's max_batch",
        x[:2].double(): r"takes a batch of shape \(B, 784,\) and torch.float32 on the CPU",
        x[:2, 1:]: "takes a batch of shape",
    }.items():
        with pytest.raises(ValueError, match=message):
            session.run("base", wrong)
    with pytest.raises(ValueError, match="has no sub-network 'none'"):
        session.run("none", x)
    numbers = runtime.Session(runtime.Model(file_of("transformer")))
    tokens = inputs("transformer", 1)
    with pytest.raises(ValueError, match="no row of the table"):
        numbers.run("base", tokens - 1000)


def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    """Blocks of one's own are C++'s: tests/cpp/test_runtime_file.cpp."""
    net = nsn.Network(input=(6,), blocks={"output": nsn.Dense(6, 3)}).double()
    with pytest.raises(
        ValueError, match=r"'output.weight' is of float64, but a runtime file holds"
    ):
        nsn.export(net, tmp_path / "double", "runtime")
    assert not (tmp_path / "double").exists()


def test_needs_neither_nsn_nor_torch(tmp_path: Path) -> None:
    """The library alone, in a process that imports nothing else."""
    library = next((Path(nsn.__file__).parent / "lib").glob("libnsn_runtime.so.*"))
    shutil.copy(library, tmp_path / "runtime.so")
    needed = subprocess.run(
        ["readelf", "-d", tmp_path / "runtime.so"], capture_output=True, text=True, check=True
    ).stdout
    libraries = {line.split("[")[1].rstrip("]") for line in needed.splitlines() if "NEEDED" in line}
    assert libraries <= {
        *("libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"),
        "ld-linux-x86-64.so.2",
    }
    script = f"""
import ctypes, sys
library = ctypes.CDLL({str(tmp_path / "runtime.so")!r})
library.nsn_message.restype = ctypes.c_char_p
model, session = ctypes.c_void_p(), ctypes.c_void_p()
status = library.nsn_model_open({str(file_of("mlp"))!r}.encode(), ctypes.byref(model))
assert status == 0, library.nsn_message()
assert library.nsn_session_open(model, ctypes.c_int64(1), 1, ctypes.byref(session)) == 0
x, y = (ctypes.c_float * 784)(*[0.25] * 784), (ctypes.c_float * 10)()
assert library.nsn_session_run(session, ctypes.c_size_t(0), x, y, ctypes.c_int64(1)) == 0
assert "torch" not in sys.modules
print(*y)
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor([float(each) for each in done.stdout.split()])
    assert torch.allclose(
        found, network("mlp").view("base")(torch.full((1, 784), 0.25))[0], atol=1e-5
    )


# ---- nsn-run -------------------------------------------------------------------------------------


def nsn_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(nsn.__file__).parent / "bin" / "nsn-run"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


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
    timed = nsn_run("bench", file_of("cnn"), "shallow", "--batch", 2, "--threads", 2)
    assert timed.returncode == 0 and "shallow      batch 2: median " in timed.stdout, timed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing.\n\nUsage: nsn-run COMMAND"),
        (["fly", "FILE"], "there is no command fly"),
        (["describe"], "'describe' has other arguments"),
        (["describe", "FILE", "--speed", "3"], "there is no option --speed"),
        (
            ["bench", "FILE", "--batch", "none"],
            "--batch must be a number above 0 and below 1e9, but is 'none'",
        ),
        (["describe", "/nowhere"], "'/nowhere' cannot be opened"),
        (["bench", "FILE", "none"], "has no sub-network 'none'. It has 'base'"),
        (["run", "FILE", "base", "/nowhere", "y"], "cannot open '/nowhere'"),
        (
            ["run", "FILE", "base", "SHORT", "y"],
            "must hold samples of (B, 784) float32, 3136 bytes",
        ),
        (["run", "FILE", "base", "DOUBLE", "y"], "holds '<f8', and must hold '<f4' or '<i8'"),
        (["run", "FILE", "base", "OTHER", "y"], "3136 bytes of another shape or dtype"),
    ],
)
def test_the_program_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234")
    numpy.save(tmp_path / "double.npy", numpy.zeros((1, 784)))
    numpy.save(tmp_path / "other.npy", numpy.zeros((784, 1), numpy.float32))
    stands_for = {
        "FILE": file_of("mlp"),
        "SHORT": tmp_path / "short",
        "DOUBLE": tmp_path / "double.npy",
        "OTHER": tmp_path / "other.npy",
    }
    done = nsn_run(*(stands_for.get(each, each) for each in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("nsn-run: ") and message in done.stderr, done.stderr
