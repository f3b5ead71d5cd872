"""Tables over what users hand in: numbers of other libraries, statistics, saved tensors, autocast."""

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import nsn


def normed(**options: object) -> nsn.Network:
    return nsn.Network(
        input=(4,),
        blocks={"norm": nsn.BatchNorm(4, **options), "out": nsn.Dense(4, 3)},
        subnetworks={"other": ["norm", "out"]},
    )


def test_an_untrained_network_evaluates_as_torchs_do() -> None:
    net = normed(per_subnetwork=["statistics"]).eval()
    x = torch.randn(5, 4)
    expected = net.out.weight @ (x / (1 + 1e-5) ** 0.5).T + net.out.bias[:, None]
    torch.testing.assert_close(net(x, "other"), expected.T)
    torch.testing.assert_close(net.pack().view("other")(x), expected.T)


@pytest.mark.parametrize(
    "norm", [nsn.GroupNorm(4, 16), nsn.GroupNorm(1, 16), nsn.GroupNorm(16, 16)], ids=str
)
@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
def test_a_variance_beside_a_large_mean(norm: Any, mean: float) -> None:
    """Torch's own is lost in what lies channels-last, as convolutions leave it."""
    net = nsn.Network(
        input=(3, 9, 9),
        blocks={"conv": nsn.Conv2d(3, 16, 3), "norm": norm},
        subnetworks={"other": ["conv", "norm"]},
        merge=nsn.merge.sum(),
    )
    with torch.no_grad():
        net.conv.bias += mean
    exact = net.eval().extract("base").double()
    x, weight = torch.randn(4, 3, 9, 9), torch.randn(4, 16, 7, 7)
    expected = exact(x.double())
    expected.backward(weight.double())
    joint = net(x, nsn.ALL)
    (joint["base"] * weight).sum().backward()

    def off(y: torch.Tensor, expected: torch.Tensor) -> float:
        return float((y - expected).abs().max() / expected.abs().max())

    tolerance = 1e-6 * max(mean, 5.0)
    last = x.contiguous(memory_format=torch.channels_last)
    for y in (joint["base"], joint["other"], net.view("base")(last), net.pack().view("base")(x)):
        assert off(y, expected) < tolerance
    assert off(net.conv.weight.grad, exact.get_parameter("conv.weight").grad) < tolerance
    narrow = net.to(torch.bfloat16).pack().view("base")  # step by step
    assert off(narrow(x.bfloat16()), net.view("base")(x.bfloat16())) < 0.05


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 1), lambda x: [x, torch.ones(2)]])
def test_recalibrate_takes_what_loaders_give(wrap: object) -> None:
    net, x = normed(), torch.randn(6, 4)
    net.recalibrate([wrap(x)])
    torch.testing.assert_close(net.norm.running_mean, x.mean(0))


@pytest.mark.parametrize(
    ("bad", "error"), [(torch.randn(6, 5), ValueError), ({"x": 1}, TypeError), ((), TypeError)]
)
def test_recalibrate_leaves_the_old_statistics_where_a_batch_does_not_fit(
    bad: object, error: type[Exception]
) -> None:
    net = normed()
    net.recalibrate([torch.randn(6, 4)])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error):
        net.recalibrate([torch.randn(6, 4), bad])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_recalibrate_touches_no_other_integers() -> None:
    net = normed()
    net(torch.randn(6, 4))
    net.recalibrate([torch.randn(6, 4)] * 3, "base")
    assert net.norm.num_batches_tracked.item() == 3


def test_numbers_of_numpy_are_numbers() -> None:
    description = nsn.Description(
        input=(np.int64(4),),
        blocks={"a": nsn.Dense(np.int32(4), np.int64(6), dropout=np.float32(0.5))},
        subnetworks={"half": nsn.Subnetwork(["a"], width={"a": {"out": np.float64(0.5)}})},
    )
    assert description.output_shape("half") == (3,)


def test_a_blocks_own_dropout_survives_everywhere() -> None:
    inner = {"a": nsn.Dense(4, 4, dropout=0.5), "b": nsn.Dense(4, 4, dropout=0.5)}
    for kind in (nsn.Sequence, nsn.Residual):
        plain, kept = kind(inner), kind(inner, keeps_dropout=["a"])
        assert dataclasses.replace(plain, keeps_dropout=["a"]) == kept
        subnetworks = {"calm": nsn.Subnetwork(["stage"], dropout={"stage": 0.0})}
        one, other = (
            nsn.Description(input=(4,), blocks={"stage": each}, subnetworks=subnetworks)
            for each in (plain, kept)
        )
        assert one != other
        assert nsn.Description.from_json(other.to_json()) == other
        assert '"takes_dropout":false' in other.alone("calm").to_json()
        x = torch.ones(64, 4)
        net = nsn.Network(other)
        assert not torch.equal(net(x, "calm"), net(x, "calm"))  # a still drops
        net = nsn.Network(one)
        assert torch.equal(net(x, "calm"), net(x, "calm"))
    with pytest.raises(ValueError, match="keeps_dropout names 'c'"):
        nsn.Description(input=(4,), blocks={"s": nsn.Sequence(inner, keeps_dropout=["c"])})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_float64_alone(dtype: torch.dtype) -> None:
    net = nsn.Network(
        input=(2, 6, 6),
        blocks={
            "conv": nsn.Conv2d(2, 3, 3, activation="relu"),
            "flat": nsn.Flatten(),
            "gelu": nsn.Dense(48, 8, activation="gelu"),
            "out": nsn.Dense(8, 3),
        },
        dtype=torch.float64,
    )
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    expected = net(x)
    with torch.autocast("cpu", dtype=dtype):
        y = net(x)
    assert y.dtype == torch.float64
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "block",
    [
        nsn.Dense(256, 256, activation="gelu"),
        nsn.Dense(256, 256, activation="relu", dropout=0.5),
        nsn.Dropout(0.5),
        nsn.Activation("relu"),
    ],
    ids=["gelu", "relu", "dropout", "activation"],
)
def test_what_a_pass_saves_is_seen_by_hooks_and_freed_by_backward(block: object) -> None:
    blocks = {"first": nsn.Dense(256, 256), **{f"b{i}": block for i in range(6)}}
    net = nsn.Network(input=(256,), blocks=blocks)
    x = torch.randn(512, 256)
    saved: list[tuple[int, int]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(x).square().mean()
    assert len(saved) == len(set(saved)) or not isinstance(block, nsn.Dense)
    packed = sum(numel for _, numel in saved)
    assert packed >= 6 * 512 * 256 // 64
    expected = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    with torch.autograd.graph.save_on_cpu():
        torch.manual_seed(0)
        offloaded = net(x).square().mean()
    torch.manual_seed(0)
    plain = net(x).square().mean()
    for one, other in zip(
        torch.autograd.grad(offloaded, list(net.parameters())),
        torch.autograd.grad(plain, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert len(expected) == len(list(net.parameters()))
    loss.backward()
    gc.collect()
    with pytest.raises(RuntimeError, match="second time|already been freed"):
        loss.backward()


def test_one_class_is_refused_by_the_default_loss() -> None:
    net = nsn.Network(input=(4,), blocks={"out": nsn.Dense(4, 1)})
    outputs = net(torch.randn(5, 4), nsn.ALL)
    with pytest.raises(ValueError, match="one class.*loss="):
        nsn.joint_loss(outputs, torch.rand(5, 1))
    nsn.joint_loss(outputs, torch.rand(5, 1), nn.functional.mse_loss)


def test_the_default_loss_takes_a_transformers_outputs() -> None:
    net = nsn.Network(
        input=(6,),
        dtype=torch.int64,
        blocks={
            "embedding": nsn.Embedding(11, 8),
            "block": nsn.Transformer(8, 2, 16, causal=True),
            "out": nsn.Dense(8, 11),
        },
        subnetworks={"short": ["embedding", "out"]},
    )
    x = torch.randint(11, (3, 6))
    targets = torch.randint(11, (3, 6))
    targets[0, 2] = -100
    outputs = net(x, nsn.ALL)
    expected = sum(
        nn.functional.cross_entropy(y.flatten(0, 1), targets.flatten()) for y in outputs.values()
    )
    torch.testing.assert_close(nsn.joint_loss(outputs, targets), expected)


def small(**options: object) -> nsn.Network:
    return nsn.Network(
        input=(4,),
        blocks={
            "hidden": nsn.Dense(4, 4, activation="relu"),
            "norm": nsn.BatchNorm(4),
            "drop": nsn.Dropout(0.5),
            "out": nsn.Dense(4, 3),
        },
        subnetworks={"short": ["norm", "out"]},
        **options,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "out", nn.Linear(4, 3)),
        lambda net: setattr(net, "out", nn.Identity()),
        lambda net: setattr(net, "out", None),
        lambda net: setattr(net.out, "bias", None),
        lambda net: net.add_module("out", nn.Linear(4, 3)),
        lambda net: net.out.register_forward_hook(print),
        lambda net: net.out.register_forward_pre_hook(print),
        lambda net: net.out.register_full_backward_hook(print),
        lambda net: net.out.register_full_backward_pre_hook(print),
        nn.SyncBatchNorm.convert_sync_batchnorm,
        lambda net: torch.optim.swa_utils.update_bn([torch.randn(4, 4)], net),
        lambda net: (net.norm.eval(), net(torch.randn(4, 4))),
        lambda net: (net.eval(), net.drop.train(), net(torch.randn(4, 4))),
    ],
)
def test_what_a_network_would_ignore_is_refused_at_once(change: object) -> None:
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"^nsn\.Network: "):
        change(net)
    assert isinstance(net.out.weight, nn.Parameter)
    assert net.out.bias is not None
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "apply",
    [
        lambda m: nn.utils.prune.l1_unstructured(m, "weight", 0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm", "parametrization"],
)
def test_weights_that_are_made_anew_before_each_pass(apply: object) -> None:
    torch.manual_seed(0)
    net = nsn.Network(input=(4,), blocks={"out": nsn.Dense(4, 3)})
    plain = nn.Linear(4, 3)
    plain.load_state_dict(net.out.state_dict())
    x = torch.randn(5, 4)
    for module in (net.out, plain):
        torch.manual_seed(1)
        apply(module)
    for module in (net, plain):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(net(x), plain(x))
    torch.testing.assert_close(net.eval().view("base")(x), plain.eval()(x))


@pytest.mark.parametrize(
    "of",
    [
        lambda net: net,
        lambda net: net.view("short"),
        lambda net: net.pack().view("short"),
        lambda net: net.requires_grad_(False),
    ],
    ids=["network", "view", "pack", "frozen"],
)
def test_tracing_is_refused(of: object) -> None:
    net = small().eval()
    call = of(net)

    class Outer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return call(x) + x.sum()

    with pytest.raises(RuntimeError, match=r"net\.extract"):
        torch.jit.trace(Outer(), torch.randn(2, 4), check_trace=False)
    with pytest.raises(RuntimeError, match=r"net\.extract"):
        torch.export.export(Outer(), (torch.randn(2, 4),), strict=False)
    for mode in ("real", "fake"):
        for pre_dispatch in (False, True):
            record = make_fx(call, tracing_mode=mode, pre_dispatch=pre_dispatch)
            with pytest.raises(RuntimeError, match=r"net\.extract"):
                record(torch.randn(2, 4))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_of_views_and_packs_are_refused(
    duplicate: Callable[[object], object], tmp_path: Path
) -> None:
    net = small()
    nsn.export(net, tmp_path / "out", "runtime")
    mapped = nsn.Pack.map(tmp_path / "out" / "network.nsnrt")
    for held, remedy in (
        (net.view("short"), r"net\.view\(name\)"),
        (net.pack(), "Copy the network, and pack it"),
        (net.pack().view("short"), r"net\.pack\(\)\.view\(name\)"),
        (mapped, "Map its file once more"),
    ):
        with pytest.raises(TypeError, match=f"cannot be copied or pickled. .*{remedy}"):
            duplicate(held)


def test_a_network_loaded_in_part_gives_no_zeros_away(tmp_path: object) -> None:
    net, path = small(), tmp_path / "net.safetensors"
    net(torch.randn(6, 4), nsn.ALL)
    nsn.save(net, path)
    part = nsn.load(path, only="short")
    with pytest.raises(ValueError, match="'base' was not loaded"):
        part.state_dict()
    part.load_state_dict(net.state_dict())
    assert part.loaded == ["base", "short"]
    x = torch.randn(3, 4)
    assert torch.equal(part.eval()(x), net.eval()(x))


def test_devices_and_dtypes_that_are_set_as_defaults() -> None:
    with torch.device("meta"):
        assert small().out.weight.is_meta
    net = small(device="meta")
    assert net.hidden.weight.is_meta
    for call in (net.pack, lambda: nsn.save(net, "never.safetensors")):
        with pytest.raises(TypeError, match=r"'hidden.weight' is a meta tensor"):
            call()
    try:
        torch.set_default_dtype(torch.float64)
        assert small().out.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


class Wrapper(torch.Tensor):
    """A tensor without memory of its own."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Wrapper(args[0].inner)
        raise NotImplementedError(func)


def test_parameters_without_memory_are_named() -> None:
    net = small()
    pack = net.pack()
    net.out.weight = nn.Parameter(Wrapper(torch.ones(3, 4)), requires_grad=False)
    for call in (net.pack, pack.stale, pack.refresh, lambda: nsn.save(net, "never.safetensors")):
        with pytest.raises(TypeError, match=r"'out.weight' is a Wrapper"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nsn.save(small(), "never", {"epoch": 3}), "'epoch' has an int"),
        (lambda: nsn.joint_loss({"a": torch.ones(2, 3)}, {"y": 1}), "but is an int"),
        (lambda: nsn.joint_loss({"a": torch.ones(2, 3)}, np.zeros(2)), "got a ndarray"),
        (
            lambda: nsn.joint_loss({"a": torch.ones(2, 3)}, torch.zeros(2).long(), weights=[1, 1]),
            "a dict of names and numbers, but is a list",
        ),
        (
            lambda: nsn.Network(input=(4,), blocks={"a": nsn.Dense(4, 4, activation=nn.ReLU())}),
            "must be a name, but is a ReLU",
        ),
        (
            lambda: nsn.Network(input=(1, 4, 4), blocks={"a": nsn.Conv2d(1, 2, 3, padding="same")}),
            "but is 'same'",
        ),
        (
            lambda: nsn.Network(input={"image": (4,)}, blocks={"a": nsn.Dense(4, 4)}),
            "but is a dict",
        ),
    ],
)
def test_messages_are_in_pythons_words(call: object, message: str) -> None:
    with pytest.raises(TypeError, match=message) as error:
        call()
    assert "incompatible function arguments" not in str(error.value)


@pytest.mark.parametrize("way", ["half", "autocast"])
@pytest.mark.parametrize("coefficients", [(1.0, 1e-6), (1e-6, 1.0), (1.0, 3e4), (0.0, 1.0)])
def test_weights_of_very_different_size_in_half_precision(
    way: str, coefficients: tuple[float, float]
) -> None:
    """A ratio of coefficients is no number of half precision; the merged gradient is one."""

    def gradients(dtype: torch.dtype, cast: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nsn.Network(
            input=(4,),
            blocks={"a": nsn.Dense(4, 4, activation="relu"), "b": nsn.Dense(4, 3)},
            subnetworks={"s": ["a", "b"]},
            merge=nsn.merge.weighted(dict(zip(("base", "s"), coefficients, strict=True))),
        ).to(dtype)
        x = torch.rand(2, 4).to(dtype)
        with torch.autocast("cpu", torch.float16, enabled=cast):
            outputs = net(x, nsn.ALL)
        sum(output.float().sum() * 1e-2 for output in outputs.values()).backward()
        return [parameter.grad.float() for parameter in net.parameters()]

    cast = way == "autocast"
    found = gradients(torch.float32 if cast else torch.float16, cast)
    expected = gradients(torch.float32, False)
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert torch.allclose(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


SHARDED = """
import sys, torch, nsn
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
net = nsn.Network(input=(4,), blocks={"a": nsn.Dense(4, 4)})
pack = net.pack()
fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
for call in (net.pack, pack.stale, pack.refresh, lambda: nsn.save(net, sys.argv[1] + "/net")):
    try:
        call()
    except TypeError as error:
        assert "parameter 'a.weight' is a DTensor" in str(error), error
    else:
        raise AssertionError(call)
dist.destroy_process_group()
"""


def test_parameters_that_are_sharded_are_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
