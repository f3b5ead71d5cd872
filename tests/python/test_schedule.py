"""Which sub-networks run in which step."""

import copy
import json
import pickle
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing

import nsn
from nsn.schedule import Turn


def network() -> nsn.Network:
    names = list("abcde")
    blocks = {name: nsn.Dense(4, 4) for name in names}
    return nsn.Network(
        input=(4,),
        blocks=blocks,
        subnetworks={f"from_{name}": names[i + 1 :] for i, name in enumerate(names[:-1])},
    )


NET = network()
SMALLEST = "from_d"


def test_all_run_in_every_step() -> None:
    turn = nsn.schedule.all(NET, {"base": 0.5})(7, 3)
    assert list(turn.names) == NET.subnetworks and turn.weights == {"base": 0.5}


def test_the_sandwich_has_both_ends_and_each_of_the_rest_as_often() -> None:
    schedule = nsn.schedule.sandwich(NET, 1, seed=3)
    seen: Counter[str] = Counter()
    for step in range(3000):
        first, last, *others = schedule(step).names
        assert (first, last) == ("base", SMALLEST) and len(others) == 1
        seen.update(others)
    assert set(seen) == {"from_a", "from_b", "from_c"}
    assert all(abs(count - 1000) < 120 for count in seen.values())  # 4.6 standard deviations


def test_each_set_is_as_likely_as_any_other() -> None:
    schedule = nsn.schedule.random(NET, 2, seed=5)
    sets = Counter(tuple(schedule(step).names) for step in range(5000))
    assert len(sets) == 10
    assert all(abs(count - 500) < 100 for count in sets.values())
    order = NET.subnetworks
    assert all(order.index(a) < order.index(b) for a, b in sets)


def test_choices_are_a_function_of_seed_and_step() -> None:
    torch.manual_seed(1)
    first = nsn.schedule.random(NET, 2)
    torch.manual_seed(1)
    again = nsn.schedule.random(NET, 2)
    assert first.seed == again.seed is not None
    turns = [first(step).names for step in range(50)]
    assert [again(step).names for step in reversed(range(50))] == turns[::-1]
    resumed = nsn.schedule.random(NET, 2, seed=first.seed)
    assert resumed(49).names == turns[49]
    torch.manual_seed(2)
    other = nsn.schedule.random(NET, 2)
    assert [other(step).names for step in range(50)] != turns
    assert nsn.schedule.all(NET).seed is None


def test_from_an_epoch_on() -> None:
    schedule = nsn.schedule.from_epoch(NET, {"from_a": 2, "from_b": 1}, {"from_a": 3.0})
    assert list(schedule(0, 0).names) == ["base", "from_c", "from_d"]
    assert list(schedule(9, 1).names) == ["base", "from_b", "from_c", "from_d"]
    assert list(schedule(9, 2).names) == NET.subnetworks
    assert schedule(9, 1).weights == {} and schedule(9, 2).weights == {"from_a": 3.0}


def test_by_a_function() -> None:
    by_names = nsn.schedule.function(NET, lambda step, epoch: ["base"] if step else ["from_a"])
    assert list(by_names(0).names) == ["from_a"] and list(by_names(1).names) == ["base"]
    by_turn = nsn.schedule.function(NET, lambda step, epoch: Turn(["base"], {"base": step / 2}))
    assert by_turn(3).weights == {"base": 1.5}


def test_who_does_not_run_gets_no_gradient() -> None:
    net = network()
    turn = nsn.schedule.random(net, 1, seed=0)(0)
    outputs = net(torch.randn(3, 4), turn.names)
    nsn.joint_loss(outputs, torch.zeros(3, dtype=torch.long), weights=turn.weights).backward()
    kept = net.description.blocks_of(turn.names[0])
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (name.split(".")[0] in kept)


def worker(rank: int, port: int, results: Any) -> None:
    torch.manual_seed(rank)  # of its own, as for its part of the data
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    schedule = nsn.schedule.sandwich(network(), 2)
    results[rank] = json.dumps([schedule(step).names for step in range(20)])
    torch.distributed.destroy_process_group()


def test_all_ranks_run_the_same() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").Manager().dict()
    torch.multiprocessing.spawn(worker, (port, results), nprocs=2)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nsn.schedule.sandwich(NET, 4), "4 sub-networks are to be drawn, but only 3 fit"),
        (lambda: nsn.schedule.random(NET, 0), "count must be at least 1, but is 0"),
        (lambda: nsn.schedule.random(NET, 2, seed=-1), "the seed must be at least 0"),
        (lambda: nsn.schedule.all(NET, {"bas": 1.0}), "no sub-network 'bas'. They are 'base'"),
        (
            lambda: nsn.schedule.from_epoch(NET, dict.fromkeys(NET.subnetworks, 1)),
            "nobody runs in step 0 of epoch 0",
        ),
        (lambda: nsn.schedule.from_epoch(NET, {"base": -1}), "counts from 0, but is -1"),
        (lambda: nsn.schedule.function(NET, lambda s, e: [])(4, 2), "nobody runs in step 4"),
        (lambda: nsn.schedule.function(NET, lambda s, e: ["b"])(0), "no sub-network 'b'"),
        (
            lambda: nsn.schedule.function(NET, lambda s, e: ["base", "base"])(0),
            "'base' is to run twice",
        ),
        (
            lambda: nsn.schedule.function(NET, lambda s, e: Turn(["base"], {"from_a": 1.0}))(0),
            "'from_a' has a weight in step 0, but does not run in it",
        ),
        (lambda: nsn.schedule.all(NET)(-1), "count from 0, but got -1"),
        (lambda: nsn.schedule.all(NET)(2**64), r"step must be below 2 \*\* 63, but is 18446"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_copies_and_pickles_choose_alike() -> None:
    net = network()
    for schedule in (
        nsn.schedule.all(net, {"base": 2.0}),
        nsn.schedule.sandwich(net, 1),
        nsn.schedule.random(net, 2, {"base": 0.5}),
        nsn.schedule.from_epoch(net, {"base": 1}),
        nsn.schedule.function(net, alternating),
    ):
        for again in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
            assert [again(step, 1) for step in range(20)] == [
                schedule(step, 1) for step in range(20)
            ]
            assert again.seed == schedule.seed
            assert repr(again) == repr(schedule)
    assert repr(nsn.schedule.sandwich(net, 0, seed=3)) == "nsn.schedule.sandwich(others=0, seed=3)"
    weights = {"base": 2.0}
    schedule = nsn.schedule.all(net, weights)
    weights["base"] = 3.0
    assert copy.deepcopy(schedule)(0).weights == schedule(0).weights == {"base": 2.0}
    assert nsn.schedule.function(net, lambda step, epoch: ("base", "from_d"))(0).names == [
        "base",
        "from_d",
    ]
    assert repr(nsn.schedule.sandwich(net, 1, seed=3)) == "nsn.schedule.sandwich(others=1, seed=3)"


def alternating(step: int, epoch: int) -> list[str]:
    return [network().subnetworks[step % 2]]


@pytest.mark.parametrize(
    "returned", [{"base": 1.0}, (["base"], {"base": 1.0})], ids=["dict", "tuple"]
)
def test_weights_of_a_function_are_a_turns(returned: Any) -> None:
    schedule = nsn.schedule.function(network(), lambda step, epoch: returned)
    with pytest.raises(TypeError, match=r"return names, or nsn.schedule.Turn\(names, weights\)"):
        schedule(0)
    with pytest.raises(TypeError, match="Give its names: turn.names"):
        network()(torch.randn(2, 4), nsn.schedule.Turn(["base"]))
