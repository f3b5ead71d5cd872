"""The runtime by its C interface: files that networks are written to, sessions, and what they say.

That what comes out is right is in test_cases.py, test_pack.py and test_export.py too; what runs cost,
and files that would do harm, in tests/runtime; nsn-run in test_runtime_program.py.
"""

import array
import copy
import math
import mmap
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

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
            with pytest.raises(ValueError, match=f"ends before the weights of '{one.name}'"):
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
        has = (
            "weights that are not finite" if math.isnan(number) else f"a weight of size {number:g}"
        )
        with pytest.raises(
            ValueError, match=f"'hidden1.weight' has {re.escape(has)}.* be finite and"
        ):
            nsn.export(net, tmp_path / "none", "runtime", weights=torch.float16)
        assert not (tmp_path / "none").exists()
        if math.isfinite(number):
            continue
        with pytest.raises(ValueError, match=r"'hidden1.weight' has weights that are not finite"):
            nsn.export(net, tmp_path / "none", "runtime", weights=torch.int8)
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
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        nsn.Pack.map("/nowhere")
    with pytest.raises(ValueError, match="has no NUL byte"):
        nsn.Pack.map(f"{file_of(kind)}\0junk")
    with pytest.raises(ValueError, match="is no file that the runtime can read"):
        nsn.Pack.map(__file__)


@pytest.mark.parametrize("threads", [1, 2])
def test_sessions_of_several_threads(threads: int) -> None:
    net, x = network("cnn"), inputs("cnn", 64)
    session = runtime.Session(runtime.Model(file_of("cnn")), 64, threads)
    for name in net.subnetworks:
        for batch in (64, 1, 7):
            expected = net.view(name)(x[:batch])
            assert torch.allclose(session.run(name, x[:batch]), expected, atol=1e-5)


@pytest.mark.parametrize(
    "held",
    [
        bytes,
        bytearray,
        memoryview,
        lambda content: array.array("f", content),
        lambda content: numpy.frombuffer(content, numpy.uint8),
        lambda content: torch.frombuffer(bytearray(content), dtype=torch.uint8),
    ],
)
def test_a_file_in_memory(held: Callable[[bytes], Any]) -> None:
    content, x = file_of("mlp").read_bytes(), inputs("mlp", 3)
    model = runtime.Model.in_memory(held(content))  # which alone keeps it
    mapped = runtime.Model(file_of("mlp"))
    assert model.subnetworks == mapped.subnetworks
    of_mapped, session = runtime.Session(mapped, 3), runtime.Session(model, 3)
    del model
    for name in network("mlp").subnetworks:
        assert torch.equal(session.run(name, x), of_mapped.run(name, x))


def test_a_file_in_memory_that_arrives_in_parts(tmp_path: Path) -> None:
    content, x = file_of("mlp").read_bytes(), inputs("mlp", 3)
    mapped = runtime.Model(file_of("mlp"))
    small, large = sorted(mapped.subnetworks.values(), key=lambda each: each.file_bytes)[:2]
    buffer = bytearray(len(content))
    buffer[: small.file_bytes] = content[: small.file_bytes]
    model = runtime.Model.in_memory(buffer, small.file_bytes - 1)
    session, expected = runtime.Session(model, 3), runtime.Session(mapped, 3)
    assert not model.subnetworks[small.name].is_there
    model.grow_to(small.file_bytes)
    assert torch.equal(session.run(small.name, x), expected.run(small.name, x))
    with pytest.raises(ValueError, match="append the rest, and call the model's grow, or grow_to"):
        session.run(large.name, x)
    buffer[:] = content
    model.grow_to(len(buffer))
    assert torch.equal(session.run(large.name, x), expected.run(large.name, x))
    with pytest.raises(BufferError):
        buffer.append(0)  # which might move it
    with pytest.raises(ValueError, match="Say how many there are from its beginning on"):
        model.grow_to(small.file_bytes)
    for wrong in (len(buffer) + 1, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"at most the buffer's {len(buffer)}, but is {wrong}"):
            model.grow_to(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only its owner knows .*Say it with grow_to"):
        model.grow()
    with pytest.raises(ValueError, match="is mapped. Call grow"):
        mapped.grow_to(len(buffer))
    with file_of("mlp").open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    of_memory = runtime.Session(runtime.Model.in_memory(memory), 3)
    assert torch.equal(of_memory.run("base", x), expected.run("base", x))


def tensors_without_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
    """Fake, zero, seen through a transform, and of storages that were emptied or shortened."""
    with FakeTensorMode():
        fake = torch.zeros(shape, dtype=dtype)
    wrapped = torch._to_functional_tensor(torch.zeros(shape, dtype=dtype))
    emptied, shortened = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    emptied.untyped_storage().resize_(0)
    shortened.untyped_storage().resize_(shortened.nbytes - 1)
    return [torch._efficientzerotensor(shape, dtype=dtype), fake, wrapped, emptied, shortened]


def test_memory_that_cannot_be_used_is_refused() -> None:
    content = file_of("mlp").read_bytes()
    wrong: list[tuple[Any, type[Exception], str]] = [
        (b"", OSError, "ends after 0 bytes, in its header. Append the rest, and open it then"),
        (b"text", OSError, "the file in memory is no file .* its first bytes are others"),
        (content[:12], OSError, "ends after 12 bytes, in its header. Append the rest, and open"),
        (content[:100], OSError, r"ends after 100 bytes, in its header of \d+ bytes. Append the r"),
        (str(file_of("mlp")), TypeError, "must be bytes, .* but is a str. Of a file give the path"),
        (
            memoryview(content)[::2],
            ValueError,
            r"must be contiguous, but has gaps. Copy it: bytes\(",
        ),
        (memoryview(b"x" + content)[1:], ValueError, "but begins 1 behind one. Align it, or copy"),
        (torch.zeros(9), ValueError, "of torch.uint8 on the CPU, but is of torch.float32 on cpu"),
        (torch.zeros(9, dtype=torch.uint8)[::2], ValueError, "or has gaps. Convert it"),
        *[
            (without, ValueError, "has no memory, as a fake or zero tensor has none, or less than")
            for without in tensors_without_memory(torch.uint8, (100,))
        ],
    ]
    for buffer, kind, message in wrong:
        with pytest.raises(kind, match=message):
            runtime.Model.in_memory(buffer)
    with pytest.raises(ValueError, match="size must be a whole number of bytes, at most the buf"):
        runtime.Model.in_memory(content, len(content) + 1)


def test_says_what_a_session_takes_before_it_is_made() -> None:
    model = runtime.Model(file_of("cnn"))
    one = runtime.Session.bytes_for(model)
    assert 0 < one < runtime.Session.bytes_for(model, 16) < 1 << 26
    assert one < runtime.Session.bytes_for(model, 16, threads=4)
    with pytest.raises(ValueError, match="Session.bytes_for: threads must be a whole number"):
        runtime.Session.bytes_for(model, 1, 1025)
    with pytest.raises(TypeError, match="bytes_for: model must be a Model, but is a str. Open the"):
        runtime.Session.bytes_for("path")  # type: ignore[arg-type]


def test_options_may_be_numpys_numbers() -> None:
    model = runtime.Model(file_of("mlp"))
    session = runtime.Session(model, numpy.int64(2), threads=numpy.int32(2))
    assert session.run("base", inputs("mlp", 2)).shape == (2, 10)
    content = file_of("mlp").read_bytes()
    assert (
        runtime.Model.in_memory(content, numpy.int64(len(content))).subnetworks == model.subnetworks
    )
    assert model.subnetworks["sub2"].flops == 2 * 784 * 10


def test_what_the_system_does_not_give() -> None:
    """In a process of its own, which may have less memory than the session takes."""
    code = f"""
import resource
from nsn import runtime
model = runtime.Model({str(file_of("mlp"))!r})
takes = runtime.Session.bytes_for(model, 2**30, 1024)
with open("/proc/self/statm") as file:
    least = int(file.read().split()[0]) * resource.getpagesize() + takes // 2
resource.setrlimit(resource.RLIMIT_AS, (least, least))
try:
    runtime.Session(model, 2**30, 1024)
except MemoryError as error:
    said = f"a session of 1073741824 samples and 1024 threads takes {{takes}} bytes, which there"
    assert said in str(error), error
else:
    raise AssertionError("there was memory")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = f"""
import resource
from nsn import runtime
model = runtime.Model({str(file_of("mlp"))!r})
takes = runtime.Session.bytes_for(model, 1, 1024)
with open("/proc/self/statm") as file:
    # A few threads' stacks.
    least = int(file.read().split()[0]) * resource.getpagesize() + takes + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (least, least))
try:
    runtime.Session(model, 1, 1024)
except RuntimeError as error:
    assert " of 1024 threads: " in str(error) and "Ask for fewer" in str(error), error
else:
    raise AssertionError("there were threads")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_session_is_of_one_thread_at_a_time() -> None:
    """Another one would write over what is computed, since a run lets Python's lock go."""
    model = runtime.Model(file_of("cnn"))
    session, x = runtime.Session(model, 256), inputs("cnn", 256)
    expected = session.run("base", x)
    message = (
        "nsn.runtime: another thread runs this session, which is the memory of one run at a time. "
        "Make a session for each thread, over the same model."
    )
    refused = []

    def run(_: int) -> None:
        try:
            assert torch.equal(session.run("base", x), expected)
        except RuntimeError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(40)))
    assert len(refused) < 40 and set(refused) <= {message}
    with session._in_use, pytest.raises(RuntimeError, match=re.escape(message)):
        session.run("base", x)
    # A process forked meanwhile has no such thread.
    with session._in_use:
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(session.run("base", x), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(make: Callable[[object], object]) -> None:
    """Which would close what they do not own."""
    model = runtime.Model(file_of("mlp"))
    with pytest.raises(TypeError, match=r"cannot be copied or pickled. .*nsn.runtime.Model\(path"):
        make(model)
    with pytest.raises(TypeError, match="cannot be copied or pickled. Make another one"):
        make(runtime.Session(model))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="No such file or directory. Check the path"
    ) as none:
        runtime.Model(tmp_path / "none")
    assert none.value.filename == str(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        runtime.Model(tmp_path)
    with pytest.raises(ValueError, match="has no NUL byte"):
        runtime.Model(f"{file_of('mlp')}\0junk")
    (tmp_path / "text").write_text("this is no network")
    with pytest.raises(OSError, match=r"its first bytes are others. Write it with `nsn export"):
        runtime.Model(tmp_path / "text")
    content = bytearray(file_of("mlp").read_bytes())
    content[8] = 99
    (tmp_path / "version").write_bytes(content)
    with pytest.raises(
        OSError, match="version 99, .* reads 5, which its own nsn writes. Write it w"
    ):
        runtime.Model(tmp_path / "version")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """As Python has it with files' names: they can be told apart, given back and shown."""
    content = file_of("mlp").read_bytes()
    assert content.count(b"half\0\0\0\0") == 1
    (tmp_path / "net").write_bytes(content.replace(b"half\0\0\0\0", b"ha\xfff\0\0\0\0"))
    model, x = runtime.Model(tmp_path / "net"), inputs("mlp", 1)
    assert "ha\udcfff" in model.subnetworks and "half" not in model.subnetworks
    expected = runtime.Session(runtime.Model(file_of("mlp"))).run("half", x)
    assert torch.equal(runtime.Session(model).run("ha\udcfff", x), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_wrong_uses_are_refused() -> None:
    model = runtime.Model(file_of("mlp"))
    with pytest.raises(ValueError, match="has no sub-network 'none'. It has base"):
        model.load("none")
    for wrong in (0, 2**31, True, 1.0):
        with pytest.raises(
            ValueError, match=f"at least 1 and at most {2**30}, but is {wrong}"
        ) as refused:
            runtime.Session(model, wrong)  # type: ignore[arg-type]
        assert "max_batch must be a whole number" in str(refused.value)
    for wrong in (0, 1025, True):
        with pytest.raises(
            ValueError, match=f"threads must be .* and at most 1024, but is {wrong}"
        ):
            runtime.Session(model, 1, wrong)
    with pytest.raises(TypeError, match=r"model must be a Model, but is a str. Open the file: nsn"):
        runtime.Session(str(file_of("mlp")))  # type: ignore[arg-type]
    session = runtime.Session(model, 2)
    x = inputs("mlp", 3)
    for given, message in {
        x: "is given 3 samples, but the session was made for at most 2. Make one with max_batch=3",
        x[:2].double(): r"takes a batch of shape \(B, 784\) and torch.float32 on the CPU",
        x[:2, 1:]: "takes a batch of shape",
        torch.tensor(1.0): "takes a batch of shape",
        x[:2].to_sparse(): r"takes a dense batch, but the input is of torch.sparse_coo. .*to_dense",
        torch.nested.nested_tensor(
            [x[0], x[1]], layout=torch.jagged
        ): "is nested. .*to_padded_tensor",
        x[:2].to("meta"): "on the CPU, but the input is .* on meta. Convert it",
    }.items():
        with pytest.raises(ValueError, match=message):
            session.run("base", given)
    for seen_through in (torch.func.vmap, torch.func.grad):
        with pytest.raises(ValueError, match="seen through a transform of torch.func. Run the"):
            seen_through(lambda one: session.run("base", one).sum())(x[None, :2])
    with pytest.raises(ValueError, match="the input is a fake tensor, one with"), FakeTensorMode():
        session.run("base", torch.empty(2, 784))
    two = x[:2]
    with (
        pytest.raises(ValueError, match="the input is a fake tensor, one with"),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        session.run("base", two)
    for no_tensor in (x.numpy(), [1.0], None):
        with pytest.raises(
            TypeError, match=r"expected a batch as a torch.Tensor, but got a? ?\w+. Convert"
        ):
            session.run("base", no_tensor)  # type: ignore[arg-type]
    for no_name in (["base"], 0, None):
        with pytest.raises(TypeError, match="name must be a sub-network's name, a str, but is"):
            session.run(no_name, x)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="name must be a sub-network's name, a str, but is"):
            model.load(no_name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no sub-network 'none'"):
        session.run("none", x)
    with pytest.raises(
        RuntimeError, match="session runs as one C.. operation, which torch.jit.trace"
    ):
        torch.jit.trace(lambda given: session.run("base", given), x[:1])
    numbers = runtime.Session(runtime.Model(file_of("transformer")))
    tokens = inputs("transformer", 1)
    with pytest.raises(ValueError, match="no row of the table"):
        numbers.run("base", tokens - 1000)


def test_an_input_without_memory() -> None:
    session = runtime.Session(runtime.Model(file_of("mlp")), 2)
    zeros, *others = tensors_without_memory(torch.float32, (2, 784))
    assert torch.equal(session.run("base", zeros), session.run("base", torch.zeros(2, 784)))
    assert session.run("base", torch.zeros(0, 784)).shape == (0, 10)
    for other in others:
        with pytest.raises(ValueError, match="'base' reads the memory of its input, "):
            session.run("base", other)


def test_what_torch_differentiates_or_records_is_refused() -> None:
    """Whose tangent would be lost, and whose result would be a constant."""
    session = runtime.Session(runtime.Model(file_of("mlp")), 2)
    x = inputs("mlp", 2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(ValueError, match="one with a tangent, or seen .* Run the session out"):
            session.run("base", dual)
        assert torch.equal(session.run("base", x), session.run("base", x.clone()))
    for mode in ("real", "fake"):
        with pytest.raises(RuntimeError, match="make_fx cannot see: the graph would hold its res"):
            make_fx(lambda given: session.run("base", given), tracing_mode=mode)(x)


def test_a_forked_process_makes_sessions_of_its_own() -> None:
    """It has not the threads of those that were there, and would wait for them."""
    script = f"""
import os, signal, torch
from nsn import runtime
model = runtime.Model({str(file_of("mlp"))!r})
x = torch.ones(64, 784)
several, alone = runtime.Session(model, 64, threads=2), runtime.Session(model, 64)
expected = alone.run("base", x)
child = os.fork()
if child == 0:
    signal.alarm(60)  # which ends it, should it wait
    try:
        several.run("base", x)
    except RuntimeError as error:
        assert "which a forked process has not. Make a session in each process." in str(error)
    else:
        os._exit(2)
    del several
    assert torch.equal(alone.run("base", x), expected)
    assert torch.allclose(runtime.Session(model, 64, threads=2).run("base", x), expected)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.allclose(several.run("base", x), expected)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n", done.stderr


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
