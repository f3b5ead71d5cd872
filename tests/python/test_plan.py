"""Plans: what is fused, where values lie, and packs that run them; numbers are in test_pack.py."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import nsn
from random_networks import KINDS
from test_describe import run
from test_extract import difference, random_cases


def network(
    blocks: Mapping[str, Any], shape: Sequence[int] = (4, 6, 6), **arguments: Any
) -> nsn.Network:
    return nsn.Network(input=tuple(shape), blocks=blocks, subnetworks={}, **arguments).eval()


def kernels(net: nsn.Network, name: str = "base") -> list[str]:
    return [step["kernel"] for step in json.loads(net.description.plan(name))["steps"]]


def test_what_stands_behind_a_convolution_is_its_epilogue() -> None:
    net = network(
        {
            "stem": nsn.Conv2d(4, 8, 3, padding=1),
            "body": nsn.Residual(
                {
                    "conv": nsn.Conv2d(8, 8, 3, padding=1, scale=True),
                    "norm": nsn.BatchNorm(8),
                    "drop": nsn.Dropout(0.5),
                }
            ),
            "relu": nsn.Activation("relu"),
            "pool": nsn.GlobalAvgPool(),
            "out": nsn.Dense(8, 3, activation="gelu"),
        }
    )
    assert net.description.plan_text("base").splitlines() == [
        "%0: (4, 6, 6)",
        "%1 = transpose(%0) -> (6, 6, 4) at 1152",
        "%2 = convolve(%1, kernel 3x3, padding 1x1, shifted) -> (6, 6, 8) at 0  # stem",
        "%3 = convolve(%2, kernel 3x3, padding 1x1, scaled, shifted, + %2, relu) -> (6, 6, 8) at "
        "1152  # body.conv",
        "%4 = global_average(%3) -> (8) at 0  # pool",
        "%5 = multiply(%4, shifted, gelu) -> (3) the output  # out",
        "arena: 2304 bytes a sample; 62256 FLOPs a sample",
    ]
    # What is folded is one scale and shift.
    forms = [entry["form"] for entry in net.pack().entries]
    assert forms.count("folded") == 1


def test_a_network_without_parameters_has_a_plan() -> None:
    net = network({"flatten": nsn.Flatten()})
    assert net.description.plan_text("base").startswith("%0: (4, 6, 6)\n%1 = copy(%0)")


def relu() -> nsn.Activation:
    return nsn.Activation("relu")


@pytest.mark.parametrize(
    ("blocks", "shape", "found"),
    [
        # A norm behind an activation.
        (
            {"a": nsn.Dense(6, 6, activation="relu"), "b": nsn.BatchNorm(6)},
            (6,),
            ["multiply", "scale_and_shift"],
        ),
        # A norm along positions, not features.
        ({"a": nsn.Dense(6, 6), "b": nsn.BatchNorm(5)}, (5, 6), ["multiply", "scale_and_shift"]),
        # A second activation has no sum in front of it.
        (
            {"a": nsn.Dense(6, 6), "b": relu(), "c": nsn.Activation("tanh")},
            (6,),
            ["multiply", "apply"],
        ),
        # What two read stays as it is.
        (
            {
                "a": nsn.Dense(6, 6),
                "b": nsn.Residual({"c": relu(), "d": nsn.Dense(6, 6)}),
            },
            (6,),
            ["multiply", "apply", "multiply"],
        ),
    ],
)
def test_what_is_no_epilogue(
    blocks: dict[str, Any], shape: tuple[int, ...], found: list[str]
) -> None:
    net = network(blocks, shape)
    assert kernels(net) == found
    x = torch.randn(3, *shape)
    assert difference(net.pack().view("base")(x), net.view("base")(x)) < 1e-5


CONVOLVED = {"a": nsn.Conv2d(4, 40, 1, activation="relu")}


@pytest.mark.parametrize(
    ("blocks", "shape", "found"),
    [
        ({**CONVOLVED, "b": nsn.MaxPool2d(2)}, (4, 6, 6), ["convolve"]),
        # What is left over at the ends is in no pool.
        ({**CONVOLVED, "b": nsn.MaxPool2d((2, 4))}, (4, 7, 11), ["convolve"]),
        # A norm, and what only training drops, in between.
        (
            {
                "a": nsn.Conv2d(4, 5, 3, padding=1),
                "b": nsn.BatchNorm(5),
                "c": nsn.Dropout(0.5),
                "d": nsn.MaxPool2d(2),
                "e": nsn.Conv2d(5, 6, 3, padding=1),
            },
            (4, 7, 7),
            ["convolve", "convolve"],
        ),
        ({"a": nsn.Conv1d(4, 5, 3), "b": nsn.MaxPool1d(3)}, (4, 20), ["convolve"]),
        ({**CONVOLVED, "b": nsn.MaxPool2d((16, 16))}, (4, 16, 17), ["convolve"]),
        # A mean; pools that overlap, are padded, or are too large.
        ({**CONVOLVED, "b": nsn.AvgPool2d(2)}, (4, 6, 6), ["convolve", "pool"]),
        ({**CONVOLVED, "b": nsn.MaxPool2d(3, stride=2)}, (4, 7, 7), ["convolve", "pool"]),
        ({**CONVOLVED, "b": nsn.MaxPool2d(2, padding=1)}, (4, 6, 6), ["convolve", "pool"]),
        ({**CONVOLVED, "b": nsn.MaxPool2d(17)}, (4, 18, 17), ["convolve", "pool"]),
        # Passes that come behind the product.
        (
            {"a": nsn.Conv2d(4, 5, 1, activation="gelu"), "b": nsn.MaxPool2d(2)},
            (4, 6, 6),
            ["convolve", "pool"],
        ),
        (
            {
                "a": nsn.Conv2d(4, 5, 1),
                "b": nsn.Residual({"c": nsn.Conv2d(5, 5, 1)}),
                "d": nsn.MaxPool2d(2),
            },
            (4, 6, 6),
            ["convolve", "convolve", "pool"],
        ),
        # Groups have a kernel of their own.
        (
            {"a": nsn.Conv2d(4, 8, 1, groups=4), "b": nsn.MaxPool2d(2)},
            (4, 6, 6),
            ["convolve", "pool"],
        ),
        # What two read is kept.
        (
            {
                "a": nsn.Conv2d(4, 4, 1),
                "b": nsn.Residual({"c": nsn.MaxPool2d(1), "d": nsn.Activation("tanh")}),
            },
            (4, 6, 6),
            ["convolve", "pool", "apply", "add"],
        ),
    ],
)
def test_a_max_pool_is_the_end_of_its_convolution(
    blocks: dict[str, Any], shape: tuple[int, ...], found: list[str]
) -> None:
    net = network(blocks, shape)
    assert [kernel for kernel in kernels(net) if kernel != "transpose"] == found
    x = torch.randn(9, *shape)
    view = net.pack().view("base")
    assert difference(view(x), net.view("base")(x)) < 1e-5
    # Where a kernel has one tap, in one of a pool's rows alone.
    for i, sample in enumerate(x):
        sample[2].view(-1)[2 * i] = torch.nan
    assert torch.equal(view(x).isnan(), net.view("base")(x).isnan())


@pytest.mark.parametrize("block", [nsn.Dropout(0.5), nsn.Flatten()])
def test_nothing_to_do_but_to_hand_over(block: Any) -> None:
    net = nsn.Network(
        input=(2, 3),
        blocks={"a": nsn.Dense(3, 3), "b": block},
        subnetworks={"small": ["b"]},
    ).eval()
    assert kernels(net, "small") == ["copy"]
    x = torch.randn(4, 2, 3)
    assert torch.equal(net.pack().view("small")(x), net.view("small")(x))


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str) -> None:
    for seed, net, _ in random_cases(kind):
        description = net.float().description
        for name in description.names:
            plan = json.loads(description.plan(name))
            made, outputs = {0}, []
            lines = description.plan_text(name).splitlines()[1:-1]
            for step, line in zip(plan["steps"], lines, strict=True):
                inside = re.fullmatch(rf"%{step['value']} = {step['kernel']}\((.*)\) -> .*", line)
                assert inside, (seed, name)
                words = inside[1].split(", ")
                assert [each for each in words if each[0] != "%"] == step["attributes"]
                assert made.issuperset(step["inputs"]), (seed, name)
                made.add(step["value"])
                if step["offset"] is None:
                    outputs.append(step["value"])
                else:
                    assert step["offset"] % 64 == 0
                    assert (
                        step["offset"] + 4 * torch.Size(step["shape"]).numel()
                        <= plan["arena_bytes"]
                    )
            assert len(outputs) == 1, (seed, name)
            program = json.loads(description.program(name))["steps"]
            assert len(plan["steps"]) <= 2 * len(program) + 1, (seed, name)


def test_a_large_batch_is_run_in_parts() -> None:
    net = network(
        {"conv": nsn.Conv2d(3, 40, 3, padding=1), "pool": nsn.GlobalAvgPool()}, (3, 32, 32)
    )
    arena = json.loads(net.description.plan("base"))["arena_bytes"]
    x = torch.randn(19, 3, 32, 32)
    assert arena * len(x) > 3 * 2**20
    whole = net.pack().view("base")(x)
    assert difference(whole, net.view("base")(x)) < 1e-5
    assert difference(whole[7:8], net.pack().view("base")(x[7:8])) < 1e-6
    assert net.pack().view("base")(x[:0]).shape == (0, 40)


@pytest.fixture(params=[2, 3])
def several_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_threads_have_parts_of_their_own() -> None:
    net = network(
        {"conv": nsn.Conv2d(3, 20, 3, padding=1, activation="relu"), "pool": nsn.GlobalAvgPool()},
        (3, 16, 16),
    )
    view = net.pack().view("base")
    for batch in (1, 2, 3, 4, 5, 31, 200):
        x = torch.randn(batch, 3, 16, 16)
        assert difference(view(x), net.view("base")(x)) < 1e-5, batch
    # What is wrong in one thread's part is said by the call.
    words = nsn.Network(
        input=(64,),
        dtype=torch.int64,
        blocks={"embedding": nsn.Embedding(9, 64), "out": nsn.Dense(64, 64)},
        subnetworks={},
    ).eval()
    x = torch.randint(0, 9, (40, 64))
    x[39, 63] = 9
    with pytest.raises(ValueError, match="the input holds 9"):
        words.pack().view("base")(x)


def without_memory(like: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of the same shape that no kernel may write to."""
    emptied, shortened = like.clone(), like.clone()
    emptied.untyped_storage().resize_(0)
    shortened.untyped_storage().resize_(shortened.nbytes - 1)
    return [
        emptied,
        shortened,
        FakeTensorMode().from_tensor(like),
        torch._efficientzerotensor(like.shape, dtype=like.dtype),
        like.to_sparse(),
        *([like.to_mkldnn()] if like.dtype == torch.float32 else []),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_may_be_the_callers(dtype: torch.dtype) -> None:
    net = network({"a": nsn.Dense(4, 3), "b": nsn.Dense(3, 4)}, (4,)).to(dtype)
    view = net.pack().view("base")
    x = torch.randn(5, 4, dtype=dtype)
    out = torch.empty(5, 4, dtype=dtype)
    version = out._version
    assert view(x, out=out) is out and torch.equal(out, view(x)) and out._version > version
    name = str(dtype).removeprefix("torch.")
    for wrong, message in (
        (torch.empty(5, 3, dtype=dtype), rf"shape \(5, 4\) and dtype {name}.* has \(5, 3\)"),
        (torch.empty(5, 4, dtype=torch.float16), "but has .*float16"),
        (torch.empty(4, 5, dtype=dtype).t(), "must be a dense, contiguous tensor"),
        (torch.empty(5, 4, dtype=dtype, requires_grad=True), "without gradient"),
        (x, "none of the input's"),
        *(
            (each, "whose memory is its own")
            for each in without_memory(torch.empty(5, 4, dtype=dtype))
        ),
    ):
        with pytest.raises(ValueError, match=message):
            view(x, out=wrong)
    with pytest.raises(TypeError, match="nsn.PackedView: out must be a tensor, but is"):
        view(x, out=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`out` must be a dense, contiguous tensor"):
        torch.func.vmap(lambda each: view(x, out=each))(torch.empty(2, 5, 4, dtype=dtype))
    with pytest.raises(ValueError, match="a batch has to be dense. Convert it with to_dense"):
        view(torch.randn(5, 4, dtype=dtype).to_sparse(), out=out)
    # However the input lies, as long as it is elsewhere.
    memory = torch.randn(10, 8, dtype=dtype)
    for x in (memory[::2, ::2], memory[:5, 2:6], memory[:1, :4].expand(5, 4)):
        assert torch.equal(view(x, out=out), view(x.contiguous()))
    shared = torch.randn(100, dtype=dtype)
    x, apart = shared[20:40].view(5, 4), shared[60:80].view(5, 4)
    assert torch.equal(view(x, out=apart), view(x))
    with pytest.raises(ValueError, match="none of the input's"):
        view(shared[20:60:2].view(5, 4), out=shared[21:41].view(5, 4))


def test_numbers_that_are_embedded() -> None:
    net = nsn.Network(
        input=(4,),
        dtype=torch.int64,
        blocks={"embedding": nsn.Embedding(7, 6), "out": nsn.Dense(6, 3)},
        subnetworks={},
    ).eval()
    view = net.pack().view("base")
    x = torch.randint(0, 7, (5, 4))
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert difference(view(x.to(dtype)), net.view("base")(x)) < 1e-6
    for wrong in (7, -1):
        x[3, 2] = wrong
        with pytest.raises(ValueError, match=rf"nsn.Pack: the input holds {wrong}, but .* 0 to 6"):
            view(x)


def test_the_tensors_say_whether_there_is_a_plan() -> None:
    def forms(net: nsn.Network) -> list[str]:
        return [entry["form"] for entry in net.pack().entries]

    net = nsn.Network(
        input=(6,), blocks={"a": nsn.Dense(6, 6)}, subnetworks={}, dtype=torch.float64
    ).eval()
    assert forms(net) == ["copy", "copy"]
    assert forms(net.float()) == ["product", "copy"]
    net.double()
    assert net.description.to_json()
    assert forms(net.float()) == ["product", "copy"]


def test_the_input_has_the_dtype_that_is_computed_in() -> None:
    # Whose only tensors are buffers.
    net = network({"norm": nsn.BatchNorm(4, affine=False)}, (4,))
    x = torch.randn(3, 4)
    view = net.pack().view("base")
    assert difference(view(x), net.view("base")(x)) < 1e-6
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=r"nsn.Pack: the input has dtype .* to\(\)"):
            view(x.to(dtype))


def test_an_input_without_memory_is_refused() -> None:
    view = network({"a": nsn.Dense(4, 3)}, (4,)).pack().view("base")
    x = torch.randn(3, 4)
    with (
        FakeTensorMode() as mode,
        pytest.raises(ValueError, match="nsn.Pack: the input has no memory"),
    ):
        view(mode.from_tensor(x))
    with pytest.raises(ValueError, match="nsn.Pack: the input has no memory"):
        view(torch._efficientzerotensor((3, 4)))
    for transform in (torch.func.functionalize, torch.func.vmap):
        with pytest.raises(ValueError, match=r"nsn.Pack: .* of torch.func.* or use net.extract"):
            transform(view)(x if transform is torch.func.functionalize else x[None])
    with pytest.raises(ValueError, match="of layout Sparse, and a batch has to be dense"):
        view(x.to_sparse())
    for shortened in (x.clone(), torch.randn(4, 3).t()):
        shortened.untyped_storage().resize_(shortened.nbytes - 4)
        with pytest.raises(ValueError, match="the input's storage ends before its elements do"):
            view(shortened)
    with pytest.raises(ValueError, match="the input is on meta"):
        view(x.to("meta"))


def test_nothing_is_enlarged_by_one() -> None:
    net = network({"up": nsn.Upsample(1, mode="bilinear"), "conv": nsn.Conv2d(2, 2, 1)}, (2, 3, 3))
    assert "upsample" not in kernels(net)
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1] = torch.inf
    assert torch.equal(net.pack().view("base")(x).isfinite(), net.view("base")(x).isfinite())


def test_describe_shows_plans() -> None:
    shown = run("describe", "demo", "--plan").stdout
    assert shown.startswith("base:\n%0: (784)\n%1 = multiply(%0, shifted, relu) -> (784) at 0")
    assert re.search(
        r"sub2:\n%0: \(784\)\n%1 = multiply\(%0, shifted\) -> \(10\) the output", shown
    )
    plans = json.loads(run("describe", "demo", "--plan", "--json").stdout)
    assert [step["kernel"] for step in plans["sub1"]["steps"]] == ["multiply", "multiply"]
    both = run("describe", "demo", "--plan", "--program")
    assert both.returncode == 2 and "Give one of them" in both.stderr


def test_other_dtypes_have_no_plan() -> None:
    net = network({"a": nsn.Dense(6, 6)}, (6,)).double()
    with pytest.raises(ValueError, match=r"plans have parameters of float32.*of float64 .*program"):
        net.description.plan_text("base")
    with pytest.raises(ValueError, match="no sub-network 'x'"):
        net.description.plan("x")
    with pytest.raises(TypeError, match=r"nsn.Description.plan: name must be"):
        net.description.plan(1)  # type: ignore[arg-type]
