"""Packed views: the same numbers as views, from one shared copy of the weights, at that moment."""

import copy
import gc
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nsn
from conftest import paper_network
from nsn import _C
from test_elastic import Case

SEEDS = st.integers(0, 2**32 - 1)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Within `tolerance` of the largest element: sums of other orders differ by rounding alone."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


def opened(net: nsn.Network, batch: int, threads: int) -> nsn.runtime.Session:
    """A network as a runtime file, mapped; its name is gone already."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nsnrt"
        parameters = net._plain_parameters("test")
        _C.write_runtime(net._core, parameters, bytes(path), net.subnetworks, torch.float32)
        return nsn.runtime.Session(nsn.runtime.Model(path), batch, threads)


@given(SEEDS)
@settings(max_examples=150)
def test_packed_views_give_what_views_give(seed: int) -> None:
    case = Case(seed)
    pack = case.net.pack()
    for name in case.names:
        expected = case.net.view(name)(case.x)
        assert close(pack.view(name)(case.x), expected, 1e-12), (seed, name)


@given(SEEDS)
@settings(max_examples=150)
def test_packed_views_give_what_views_give_in_float32(seed: int) -> None:
    case = Case(seed)
    net = case.net.float()
    x = case.x.float() if case.x.is_floating_point() else case.x
    double = copy.deepcopy(net).double()
    pack, session = net.pack(), opened(net, max(1, len(x)), 1 + seed % 2)
    primitives = {
        step["primitive"]
        for name in case.names
        for step in json.loads(net.description.program(name))["steps"]
    }
    if "product" in primitives:  # plans read panels
        assert "product" in {entry["form"] for entry in pack.entries}, seed
    for name in case.names:
        exact = double.view(name)(case.x)
        view = net.view(name)(x)
        # As near to the exact result as the view is, but for a small factor.
        error = float((view.double() - exact).abs().max())
        packed = pack.view(name)(x)
        assert packed.dtype == torch.float32 and packed.shape == view.shape
        for way, found in {"packed": packed, "runtime": session.run(name, x)}.items():
            own = float((found.double() - exact).abs().max())
            most = 20 * error + 1e-5 * float(1 + exact.abs().max())
            assert own <= most, (seed, name, way, own, error)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("features", [(1, 1), (5, 16), (33, 17), (784, 10), (70, 48), (3, 100)])
def test_products_of_all_sizes(features: tuple[int, int], threads: int) -> None:
    inside, out = features
    net = nsn.Network(
        input=(inside,),
        blocks={"a": nsn.Dense(inside, out, activation="relu"), "b": nsn.Dense(out, out)},
        subnetworks={"half": nsn.Subnetwork(["a", "b"], width={"a": 0.5})},
    )
    pack = net.pack()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in [*range(1, 20), 127, 128, 200]:
            x = torch.randn(batch, inside)
            for name in net.subnetworks:
                assert close(pack.view(name)(x), net.view(name)(x), 1e-5), (batch, name)
        # Rows that do not lie together, and none at all.
        x = torch.randn(inside, 9).t()
        assert close(pack.view("base")(x), net.view("base")(x), 1e-5)
        assert pack.view("base")(torch.randn(0, inside)).shape == (0, out)
    finally:
        torch.set_num_threads(before)


def test_nan_and_infinity_pass_as_through_a_view() -> None:
    net = paper_network(width=20)
    x = torch.randn(3, 20)
    x[0, 3], x[1, 4] = torch.nan, torch.inf
    expected, packed = net.view("base")(x), net.pack().view("base")(x)
    assert torch.equal(packed.isnan(), expected.isnan())
    assert packed[0].isnan().all() and not packed[2].isnan().any()


def test_one_copy_serves_all_subnetworks() -> None:
    net = paper_network()
    pack = net.pack()
    products = {e["parameter"]: e for e in pack.entries if e["form"] == "product"}
    assert {name: e["subnetworks"] for name, e in products.items()} == {
        "hidden1.weight": ["base"],
        "hidden2.weight": ["base", "sub1"],
        "output.weight": ["base", "sub1", "sub2"],
    }
    assert all(e["shape"] == tuple(net.get_parameter(n).shape) for n, e in products.items())
    own = sum(p.nbytes for p in net.parameters())
    # Panels are filled up to 16 output features: 10 of "output" become 16.
    assert pack.bytes == own + 6 * 784 * 4
    assert pack.bytes == sum(e["bytes"] for e in pack.entries)
    assert net.pack(["sub2"]).bytes < pack.bytes / 50
    assert "hidden2.weight" in str(pack) and "base, sub1" in str(pack)


def test_leading_slices_share_a_pack_and_others_have_their_own() -> None:
    net = nsn.Network(
        input=(32,),
        blocks={
            "a": nsn.Dense(32, 64),
            "b": nsn.Dense(64, 40, activation="swiglu"),
            "c": nsn.Dense(40, 5),
        },
        subnetworks={
            "half": nsn.Subnetwork(["a", "b", "c"], width={"a": 0.5, "b": 0.5}),
            "thin": nsn.Subnetwork(["a", "b", "c"], width={"a": 3, "b": 0.5}),
        },
    )
    pack = net.pack()
    shapes = [
        (e["parameter"], e["shape"], e["subnetworks"])
        for e in pack.entries
        if e["form"] == "product"
    ]
    assert sorted(shapes) == [
        ("a.weight", (64, 32), ["base", "half", "thin"]),
        # The leading halves of value and gate do not lie together.
        ("b.weight", (40, 3), ["thin"]),
        ("b.weight", (40, 32), ["half"]),
        ("b.weight", (80, 64), ["base"]),
        ("c.weight", (5, 40), ["base", "half", "thin"]),
    ]
    x = torch.randn(9, 32)
    for name in net.subnetworks:
        assert close(pack.view(name)(x), net.view(name)(x), 1e-5), name
    narrow = net.pack(["thin"])
    assert {e["shape"] for e in narrow.entries if e["parameter"] == "a.weight"} == {(3, 32)}
    assert close(narrow.view("thin")(x), net.view("thin")(x), 1e-5)


def _sgd(net: nsn.Network, **options: bool) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, **options)
    nsn.joint_loss(net(torch.randn(4, 20), nsn.ALL), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        _sgd,
        lambda net: _sgd(net, fused=True),  # counts no version
        lambda net: net.output.bias.data.add_(1),
        lambda net: net.load_state_dict(paper_network(width=20).state_dict()),
        lambda net: net.load_state_dict(paper_network(width=20).state_dict(), assign=True),
        lambda net: net.double(),
    ],
    ids=["sgd", "fused", "data", "load", "assign", "double"],
)
def test_a_pack_is_a_snapshot(change: Callable[[nsn.Network], object]) -> None:
    net = paper_network(dropout=False, width=20)
    pack = net.pack()
    views = {name: pack.view(name) for name in net.subnetworks}
    x = torch.randn(3, 20)
    before = {name: view(x) for name, view in views.items()}
    assert not pack.stale()
    change(net)
    assert pack.stale() and views["sub1"].stale()
    assert all(torch.equal(view(x), before[name]) for name, view in views.items())
    pack.refresh()
    assert not pack.stale()
    x = x.to(net.output.bias.dtype)
    for name, view in views.items():
        assert not torch.equal(view(x), before[name].to(x.dtype))
        assert close(view(x), net.view(name)(x), 1e-6)


def test_running_statistics_belong_to_the_snapshot() -> None:
    net = nsn.Network(
        input=(3, 8, 8),
        blocks={
            "conv": nsn.Conv2d(3, 8, 3, bias=False),
            "norm": nsn.BatchNorm(8, per_subnetwork=["statistics", "affine"]),
            "flat": nsn.Flatten(),
            "output": nsn.Dense(8 * 36, 4),
        },
        subnetworks={
            "half": nsn.Subnetwork(["conv", "norm", "flat", "output"], width={"conv": 0.5})
        },
    )
    x = torch.randn(6, 3, 8, 8)
    net(x, "half")
    with pytest.raises(ValueError, match=r"never made for sub-network 'base'"):
        net.pack()
    net(x, nsn.ALL)
    pack = net.pack()
    before = pack.view("half")(x)
    assert close(before, net.view("half")(x), 1e-5)
    net(5 + x, nsn.ALL)
    assert pack.stale() and torch.equal(pack.view("half")(x), before)


def test_a_pack_outlives_its_network() -> None:
    net = paper_network(width=20)
    x = torch.randn(3, 20)
    pack, expected = net.pack(), net.view("sub1")(x)
    view = pack.view("sub1")
    del net
    gc.collect()
    assert close(view(x), expected, 1e-6) and not pack.stale()
    with pytest.raises(ValueError, match=r"the network .* is gone.*Keep the network"):
        pack.refresh()


def test_it_evaluates_and_records_nothing() -> None:
    net = paper_network(width=20).train()
    view = net.pack().view("base")
    x = torch.randn(3, 20, requires_grad=True)
    assert view.name == "base" and not view(x).requires_grad
    assert torch.equal(view(x), view(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert view(x).dtype == torch.float32


def test_threads_may_call_it_while_it_is_refreshed() -> None:
    net = paper_network(dropout=False, width=32)
    pack = net.pack()
    x = torch.randn(4, 32)
    allowed = {name: [pack.view(name)(x)] for name in net.subnetworks}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    fresh = net.pack()
    for name in allowed:
        allowed[name].append(fresh.view(name)(x))
    wrong: list[str] = []

    def call(name: str) -> None:
        view = pack.view(name)
        for _ in range(300):
            y = view(x)
            if not any(torch.equal(y, each) for each in allowed[name]):
                wrong.append(name)

    threads = [
        threading.Thread(target=call, args=(name,)) for name in net.subnetworks for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):
        pack.refresh()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("activation", ["relu", "silu", "linear"])
def test_convolutions_take_any_batch_in_any_format(groups: int, activation: str) -> None:
    net = nsn.Network(
        input=(8, 9, 9),
        blocks={
            "a": nsn.Conv2d(8, 24, 3, groups=groups, stride=(1, 2), padding=1, dilation=(2, 1)),
            "b": nsn.Conv2d(24, 16, 3, activation=activation),
        },
        subnetworks={"half": nsn.Subnetwork(["a", "b"], width={"a": 0.5, "b": {"out": 0.25}})},
    )
    pack = net.pack()
    for batch in (1, 2, 3, 8):
        x = torch.randn(batch, 8, 9, 9)
        for name in net.subnetworks:
            expected = net.view(name)(x)
            assert close(pack.view(name)(x), expected, 1e-5)
            last = x.contiguous(memory_format=torch.channels_last)
            assert close(pack.view(name)(last), expected, 1e-5)
    forms = {e["parameter"]: e["form"] for e in pack.entries}
    assert forms["a.weight"] == ("convolution" if groups == 1 else "taps")
    assert forms["b.weight"] == "convolution"


def test_wrong_use_is_refused() -> None:
    net = paper_network(width=20)
    with pytest.raises(ValueError, match=r"no sub-network 'sub3'.*'sub1'"):
        net.pack(["sub3"])
    for pack_none in (lambda: net.pack([]), lambda: nsn.Pack(net, ())):
        with pytest.raises(ValueError, match="must name at least one, but is empty. Leave it out"):
            pack_none()
    pack = net.pack(["sub1", "sub2"])
    with pytest.raises(ValueError, match=r"'base' is not in this pack.*'sub1', 'sub2'"):
        pack.view("base")
    with pytest.raises(ValueError, match=r"expected input of shape \(B, 20\)"):
        pack.view("sub1")(torch.randn(3, 21))
    with pytest.raises(ValueError, match=r"input has dtype float64.*'hidden2.weight' has float32"):
        pack.view("sub1")(torch.randn(3, 20).double())
    with pytest.raises(ValueError, match=r"input is a nested tensor.*to_padded_tensor\(\)"):
        pack.view("sub1")(torch.nested.nested_tensor([torch.randn(20), torch.randn(20)]))
    with pytest.raises(ValueError, match=r"'sub1' is asked for twice. Name it once"):
        net.pack(["sub1", "sub2", "sub1"])


def test_an_output_that_is_the_inputs_memory_is_refused() -> None:
    """By the same storage, or by another one at the same place; apart in one storage is fine."""
    net = nsn.Network(input=(6,), blocks={"a": nsn.Dense(6, 6), "b": nsn.Dense(6, 6)})
    view = net.pack().view("base")
    memory = torch.randn(8, 6)
    x, expected = memory[:4], view(memory[:4])
    other = torch.from_numpy(memory.numpy())
    for out in (memory[:4], memory[3:7], other[:4], other[3:7]):
        with pytest.raises(ValueError, match="none of the input's. Make an empty one"):
            view(x, out)
    for out in (memory[4:], other[4:], torch.empty(4, 6)):
        assert torch.equal(view(x, out), expected)
    # Whose elements lie between and around those of the output, in any order.
    wide = torch.randn(4, 20)
    for batch in (wide[:, :6], wide.t()[:6].t(), wide[:, ::3][:, :6]):
        with pytest.raises(ValueError, match="none of the input's"):
            view(batch, wide.flatten()[20:44].view(4, 6))
    assert torch.equal(view(x, torch.empty(4, 6)), expected)


def test_it_agrees_with_plain_modules() -> None:
    net = paper_network(dropout=False)
    plain = nn.Sequential(
        nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 10)
    )
    with torch.no_grad():
        for own, other in zip(net.parameters(), plain.parameters(), strict=True):
            other.copy_(own)
        x = torch.rand(65, 784)
        assert close(net.pack().view("base")(x), plain(x), 1e-6)
