"""Grids: sub-networks by ranges are what the same ones are when they are listed."""

import copy
import itertools
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsn


def mlp() -> dict[str, Any]:
    return {
        "input": (6,),
        "blocks": {
            "hidden1": nsn.Dense(6, 8, activation="relu", dropout=0.3),
            "hidden2": nsn.Residual({"inner": nsn.Dense(8, 8, activation="relu")}),
            "norm": nsn.LayerNorm(8),
            "output": nsn.Dense(8, 3),
        },
    }


def cnn() -> dict[str, Any]:
    return {
        "input": (2, 8, 8),
        "blocks": {
            "conv1": nsn.Conv2d(2, 8, 3, padding=1, activation="relu"),
            "deep": nsn.Residual(
                {"conv": nsn.Conv2d(8, 8, 3, padding=1), "norm": nsn.BatchNorm(8)}
            ),
            "pool": nsn.GlobalAvgPool(),
            "output": nsn.Dense(8, 3),
        },
    }


def transformer() -> dict[str, Any]:
    blocks: dict[str, Any] = {"embedding": nsn.Embedding(7, 8)}
    for i in (1, 2):
        blocks[f"block{i}"] = nsn.Transformer(8, heads=4, ffn=8, causal=True)
    return {
        "input": (5,),
        "dtype": torch.int64,
        "blocks": {**blocks, "norm": nsn.RMSNorm(8), "output": nsn.TiedOutput("embedding", 7, 8)},
    }


AXES: dict[str, dict[str, Any]] = {
    "mlp": {"w": nsn.Widths([0.25, 0.5, 1.0]), "d": nsn.Depths(["hidden2"])},
    "cnn": {"w": nsn.Widths([2, 4, 8], of=["conv1"]), "d": nsn.Depths(["deep"])},
    "transformer": {
        "heads": nsn.Widths([1, 2, 4], of=["block1.heads", "block2.heads"]),
        "ffn": nsn.Widths([0.5, 1.0], of=["block1.ffn", "block2.ffn"]),
        "d": nsn.Depths(["block2", "block1"]),
    },
}
MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
}


def listed_cells(name: str) -> dict[str, nsn.Subnetwork]:
    """The cells of a grid as they would be listed, by hand."""
    axes, blocks = AXES[name], MAKERS[name]()["blocks"]
    result = {}
    for choices in itertools.product(*(range(count_of(axis)) for axis in axes.values())):
        dropped: set[str] = set()
        width: dict[str, Any] = {}
        for axis, choice in zip(axes.values(), choices, strict=True):
            if isinstance(axis, nsn.Depths):
                dropped |= set(axis.drops[: len(axis.drops) - choice])
        for axis, choice in zip(axes.values(), choices, strict=True):
            for target in axis.of if isinstance(axis, nsn.Widths) else ():
                block, _, dimension = target.partition(".")
                if block in dropped:
                    continue
                kept = axis.widths[choice]
                if dimension:
                    width.setdefault(block, {})[dimension] = kept
                else:
                    width[block] = kept
        cell = "_".join(f"{key}{choice}" for key, choice in zip(axes, choices, strict=True))
        result[cell] = nsn.Subnetwork([each for each in blocks if each not in dropped], width=width)
    return result


def count_of(axis: nsn.Widths | nsn.Depths) -> int:
    return len(axis.widths) if isinstance(axis, nsn.Widths) else len(axis.drops) + 1


def both(name: str, rule: Any = None) -> tuple[nsn.Network, nsn.Network, list[str]]:
    """A network with a grid, the same with its cells listed, and their names."""
    arguments = MAKERS[name]()
    if not arguments.get("dtype"):
        arguments["dtype"] = torch.float64
    made = []
    cells = listed_cells(name)
    for own in ({"grid": AXES[name]}, {"subnetworks": cells}):
        torch.manual_seed(3)
        made.append(nsn.Network(**arguments, **own, merge=rule).double())
    return made[0], made[1], list(cells)


def batch(net: nsn.Network) -> Tensor:
    shape = net.description.input_shape
    if len(shape) == 1 and shape[0] == 5:
        return torch.randint(0, 7, (4, 5))
    return torch.randn(4, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "rule", ["sum", "mean", "two_smallest_mean", "owner", "gradient_surgery", "equal_norms"]
)
def test_cells_are_as_if_listed(name: str, rule: str) -> None:
    grid, listed, _cells = both(name, getattr(nsn.merge, rule)())
    assert grid.subnetworks == ["base"]
    x = batch(grid)
    for trial in range(4):
        names = ["base", *nsn.schedule.random(listed, 3, seed=trial)(0).names]
        names = list(dict.fromkeys(names))
        outputs = []
        for net in (grid, listed):
            net.zero_grad()
            torch.manual_seed(trial)
            out = net(x, names)
            outputs.append(out)
            sum(
                ((i + 1) * each.square().mean() for i, each in enumerate(out.values())),
                torch.zeros(()),
            ).backward()
        for key in names:
            assert torch.equal(outputs[0][key], outputs[1][key]), key
        for (key, a), (_, b) in zip(
            grid.named_parameters(), listed.named_parameters(), strict=True
        ):
            assert (a.grad is None) == (b.grad is None), key
            assert a.grad is None or torch.equal(a.grad, b.grad), key


@pytest.mark.parametrize("name", MAKERS)
def test_all_ways_to_run_a_cell(name: str) -> None:
    grid, listed, cells = both(name)
    grid.eval(), listed.eval()
    x = batch(grid)
    with torch.no_grad():
        for cell in cells:
            y = listed(x, cell)
            assert torch.equal(grid.view(cell)(x), y)
            assert torch.allclose(grid.pack([cell]).view(cell)(x), y, atol=1e-12)
            assert torch.allclose(grid.extract(cell)(x), y, atol=1e-12)
            assert (
                grid.description.alone(cell).to_json() == listed.description.alone(cell).to_json()
            )
            for ask in ("parameter_count", "flops", "output_shape", "blocks_of", "program"):
                assert getattr(grid.description, ask)(cell) == getattr(listed.description, ask)(
                    cell
                )
            assert len(grid.view(cell).parameters) == len(listed.view(cell).parameters)
        pack = grid.pack([cells[0], cells[-1]])
        assert {each for entry in pack.entries for each in entry["subnetworks"]} == {
            cells[0],
            cells[-1],
        }


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_lane_by_lane(name: str) -> None:
    grid, listed, cells = both(name, nsn.merge.two_smallest_mean())
    x = batch(grid)
    names = [cells[1], "base", cells[0]]
    for net in (grid, listed):
        torch.manual_seed(1)
        net.backward_by_lane(x, lambda _, y: y.square().mean(), names)
    for (key, a), (_, b) in zip(grid.named_parameters(), listed.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key  # type: ignore[arg-type]


def wide(axes: int) -> nsn.Network:
    blocks: dict[str, Any] = {"first": nsn.Dense(8, 8, activation="relu")}
    for i in range(axes):
        blocks[f"layer{i}"] = nsn.Dense(8, 8, activation="relu")
    return nsn.Network(
        input=(8,),
        blocks={**blocks, "output": nsn.Dense(8, 2)},
        grid={f"w{i}x": nsn.Widths([2, 4, 6, 8], of=[f"layer{i}"]) for i in range(axes)},
        merge=nsn.merge.mean(),
    )


def test_cells_are_made_when_they_run() -> None:
    """A million millions of them cost nothing; a step costs those that it runs."""
    start = time.perf_counter()
    net = wide(20)
    schedule = nsn.schedule.sandwich(net, 2, seed=1)
    for step in range(3):
        turn = schedule(step)
        assert len(set(turn.names)) == 4 and turn.names[0] == "base"
        assert turn.names[1] == net.description.cell(**dict.fromkeys(net.description.grid, 0))
        nsn.joint_loss(net(torch.randn(4, 8), turn.names), torch.tensor([0, 1, 0, 1])).backward()
    assert time.perf_counter() - start < 20  # with 4 ** 20 of them made it would be years


def test_memory_is_of_those_that_ran_last() -> None:
    net = wide(6).eval()
    x = torch.randn(1, 8)
    cells = list(itertools.product(range(4), repeat=6))

    def run(chosen: list[tuple[int, ...]]) -> int:
        with torch.no_grad():
            for choices in chosen:
                axes = dict(zip(net.description.grid, choices, strict=True))
                net(x, net.description.cell(**axes))
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    view = net.view(net.description.cell(**dict.fromkeys(net.description.grid, 1)))
    expected = view(x)
    before = run(cells[:500])
    after = run(cells[500:])
    assert after - before < 8e6  # all 3596 of them would be 40 MB
    assert torch.equal(view(x), expected) and view.name == "_".join(f"w{i}x1" for i in range(6))


def grouped() -> nsn.Network:
    """One whose cells part the head's weight in different ways."""
    return nsn.Network(
        input=(2, 4, 4),
        blocks={
            "c0": nsn.Conv2d(2, 8, 3, padding=1),
            "x": nsn.Conv2d(8, 8, 3, padding=1, groups=2),
            "y": nsn.Conv2d(8, 8, 3, padding=1),
            "pool": nsn.GlobalAvgPool(),
            "head": nsn.Dense(8, 3),
        },
        grid={
            "w": nsn.Widths([4, 8], of=["c0"]),
            "g": nsn.Widths([4, 8], of=["x"]),
            "d": nsn.Depths(["y", "x"]),
        },
        merge=nsn.merge.mean(),
    )


def test_whether_a_cell_runs_depends_on_itself() -> None:
    """Not on those that were made before it."""
    x = torch.randn(2, 2, 4, 4)
    cells = [
        grouped().description.cell(w=w, g=g, d=d)
        for w, g, d in itertools.product(range(2), range(2), range(3))
    ]

    def runs(net: nsn.Network, names: list[str]) -> bool:
        try:
            sum(y.sum() for y in net(x, names).values()).backward()
        except ValueError:
            return False
        return True

    alone = [runs(grouped(), [cell]) for cell in cells]
    for order in (range(len(cells)), reversed(range(len(cells)))):
        net = grouped()
        for i in order:
            assert runs(net, [cells[i]]) == alone[i], cells[i]
    # And those that run by themselves run together.
    net = grouped()
    assert runs(net, [cell for cell, fits in zip(cells, alone, strict=True) if fits])
    assert any(alone)


def test_parts_that_cannot_be_parted_are_refused_when_described() -> None:
    """The leading 6 of 8 are no part of 2 x (2 of 4): whichever runs first."""
    convolutions = {name: nsn.Conv2d(8, 8, 1) for name in ("c0", "z", "y", "head")}
    with pytest.raises(
        ValueError, match="'head.weight': the sub-networks' slices of it do not fit"
    ):
        nsn.Network(
            input=(8, 4, 4),
            blocks={
                "c0": convolutions["c0"],
                "z": convolutions["z"],
                "x": nsn.Conv2d(8, 8, 1, groups=2),
                "y": convolutions["y"],
                "head": convolutions["head"],
                "pool": nsn.GlobalAvgPool(),
                "output": nsn.Dense(8, 2),
            },
            grid={
                "w": nsn.Widths([6, 8], of=["c0"]),
                "g": nsn.Widths([4, 8], of=["x"]),
                "d": nsn.Depths(["y", "x", "z", "c0"]),
            },
        )


def test_schedules_draw_from_all() -> None:
    net = nsn.Network(**mlp(), grid=AXES["mlp"])
    cells = list(listed_cells("mlp"))
    whole = cells[-1]  # the same as base
    seen: set[str] = set()
    for step in range(200):
        names = nsn.schedule.sandwich(net, 2, seed=5)(step).names
        assert names[:2] == ["base", cells[0]]
        seen |= set(names)
    assert seen == {"base", *cells} - {whole}
    seen = {name for step in range(200) for name in nsn.schedule.random(net, 2, seed=5)(step).names}
    assert seen == {"base", *cells} - {whole}
    assert nsn.schedule.all(net)(0).names == ["base"]
    with pytest.raises(
        ValueError, match="5 sub-networks are to be drawn, but only 4 fit and differ"
    ):
        nsn.schedule.sandwich(net, 5)
    own = nsn.schedule.function(net, lambda step, epoch: ["base", cells[step]])
    assert own(1).names == ["base", cells[1]]
    for never in (
        lambda: nsn.schedule.all(net, {cells[0]: 2.0}),
        lambda: nsn.schedule.from_epoch(net, {}, {cells[0]: 2.0}),
        lambda: nsn.schedule.sandwich(net, 1, {whole: 2.0}),
        lambda: nsn.schedule.random(net, 1, {whole: 2.0}),
    ):
        with pytest.raises(ValueError, match="has a weight, but never runs here"):
            never()
    weighed = nsn.schedule.sandwich(net, 1, {cells[0]: 2.0})(0)
    assert weighed.weights == {cells[0]: 2.0}


def test_nobody_runs_under_two_names() -> None:
    """One that is listed and a cell of the grid too."""
    net = nsn.Network(**mlp(), grid=AXES["mlp"], subnetworks={"small": nsn.Subnetwork(width=0.25)})
    twin = "w0_d1"
    x = torch.randn(2, 6)
    assert torch.equal(net.eval()(x, "small"), net(x, twin))
    for schedule in (nsn.schedule.sandwich(net, 3, seed=1), nsn.schedule.random(net, 5, seed=1)):
        for step in range(50):
            names = schedule(step).names
            assert twin not in names and len(set(names)) == 5
    for wrong, message in (
        (lambda: nsn.schedule.sandwich(net, 5), "5 sub-networks are to be drawn, but only 4"),
        (lambda: nsn.schedule.random(net, 7), "7 sub-networks are to be drawn, but only 6"),
        (lambda: nsn.schedule.random(net, 2, {twin: 2.0}), f"'{twin}' has a weight, but never"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_cells_that_are_the_same_run_once() -> None:
    """Where the block is dropped, its widths make no difference."""
    net = nsn.Network(
        input=(8,),
        blocks={
            "hidden1": nsn.Dense(8, 8, activation="relu"),
            "hidden2": nsn.Dense(8, 8, activation="relu"),
            "output": nsn.Dense(8, 3),
        },
        grid={"w": nsn.Widths([2, 4, 8], of=["hidden1"]), "d": nsn.Depths(["hidden1"])},
    )
    for schedule in (nsn.schedule.sandwich(net, 2, seed=1), nsn.schedule.random(net, 4, seed=1)):
        for step in range(50):
            names = schedule(step).names
            assert len({name for name in names if name.endswith("d0")}) <= 1, names


def test_a_view_holds_its_cell() -> None:
    net = wide(6).eval()
    view = net.view(net.description.cell(**dict.fromkeys(net.description.grid, 1)))
    x = torch.randn(3, 8)
    expected = view(x)
    for choices in itertools.product(range(4), repeat=4):  # more than stay
        axes = dict(zip(net.description.grid, (*choices, 0, 0), strict=True))
        net(x, net.description.cell(**axes))
    assert torch.equal(view(x), expected) and torch.equal(net.view(view.name)(x), expected)


def test_teachers_know_cells() -> None:
    grid, listed, cells = both("mlp")
    x, y = batch(grid), torch.tensor([0, 1, 2, 0])
    names = [cells[2], "base", cells[0]]
    for make in (nsn.teach.base, nsn.teach.next_larger, nsn.teach.mutual):
        losses = []
        for net in (grid, listed):
            torch.manual_seed(1)
            losses.append(nsn.joint_loss(net(x, names), y, teach=make(net, weight={cells[0]: 0.3})))
        assert torch.equal(*losses)


def test_files_copies_and_threads(tmp_path: Path) -> None:
    grid, _, cells = both("mlp")
    grid.eval()
    x = batch(grid)
    expected = {cell: grid(x, cell) for cell in cells}
    nsn.save(grid, tmp_path / "net.safetensors")
    for other in (
        nsn.load(tmp_path / "net.safetensors").eval(),
        copy.deepcopy(grid),
        pickle.loads(pickle.dumps(grid)),
    ):
        assert other.description == grid.description
        assert other.description.grid == {
            "w": nsn.Widths([0.25, 0.5, 1.0], ["*"]),
            "d": nsn.Depths(["hidden2"]),
        }
        for cell in cells:
            assert torch.equal(other(x, cell), expected[cell])
    fresh = nsn.load(tmp_path / "net.safetensors").eval()
    wrong: list[str] = []

    def run() -> None:
        for cell in cells:
            if not torch.equal(fresh.view(cell)(x), expected[cell]):
                wrong.append(cell)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_partly_loaded(tmp_path: Path) -> None:
    net = nsn.Network(**mlp(), grid=AXES["mlp"], subnetworks={"half": nsn.Subnetwork(width=0.5)})
    nsn.save(net, tmp_path / "net.safetensors")
    part = nsn.load(tmp_path / "net.safetensors", only="half")
    for use in (
        part.view,
        lambda name: part.pack([name]),
        part.extract,
        lambda name: part(torch.randn(1, 6), name),
    ):
        with pytest.raises(ValueError, match="'w0_d0' was not loaded"):
            use("w0_d0")
    with pytest.raises(ValueError, match="'w0_d0' is a sub-network of the grid"):
        nsn.load(tmp_path / "net.safetensors", only="w0_d0")
    nsn.load_rest(part, tmp_path / "net.safetensors")
    part.eval(), net.eval()
    x = torch.randn(2, 6)
    assert torch.equal(part(x, "w0_d0"), net(x, "w0_d0"))


def test_batch_norms_are_recalibrated_for_a_cell() -> None:
    net = nsn.Network(**cnn(), grid=AXES["cnn"])
    batches = [torch.randn(8, 2, 8, 8) for _ in range(3)]
    net.recalibrate(batches, ["w0_d1"])
    alone = net.extract("w0_d1").train()
    for module in alone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    for each in batches:
        alone(each)
    net.eval(), alone.eval()
    assert torch.allclose(net(batches[0], "w0_d1"), alone(batches[0]), atol=1e-5)


def test_it_is_shown(tmp_path: Path) -> None:
    net = nsn.Network(**mlp(), grid=AXES["mlp"])
    assert "grid: 3 w x 2 d" in repr(net)
    file = tmp_path / "net.json"
    file.write_text(net.description.to_json())
    command = [sys.executable, "-m", "nsn.cli", "describe", str(file)]
    environment = {**os.environ, "COLUMNS": "200"}
    text = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    count = net.description.parameter_count
    assert f"6 of them: w0_d0 ({count('w0_d0')} parameters) to w2_d1" in " ".join(text.split())
    for row in (r"w +.*0.25, 0.5, 1.0 .*\*", "d +.*drops 1 to 0 .*hidden2"):
        assert re.search(row, text), text


def dense(**more: Any) -> dict[str, Any]:
    return {
        "input": (4,),
        "blocks": {"hidden": nsn.Dense(4, 4, **more), "output": nsn.Dense(4, 2)},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"w1": nsn.Widths([1, 2])}}, "axis name 'w1' must be made of letters"),
        ({"grid": {"w": nsn.Widths([])}}, "axis 'w' has no widths"),
        ({"grid": {"w": nsn.Widths([0.5], of=[])}}, "axis 'w' has no widths"),
        ({"grid": {"d": nsn.Depths([])}}, "axis 'd' drops no block"),
        ({"grid": {"d": nsn.Depths(["none"])}}, "drops block 'none', which base does not keep"),
        ({"grid": {"w": nsn.Widths([2, 1], of=["hidden"])}}, "from the smallest to the largest"),
        ({"grid": {"w": nsn.Widths([2, 2], of=["hidden"])}}, "each once"),
        ({"grid": {"w": nsn.Widths([2], of=["hidden."])}}, "'hidden.', which is neither a block"),
        (
            {"grid": {"w": nsn.Widths([0.5], of=["*.out"])}},
            "'\\*' stands for all of their dimensions",
        ),
        ({"grid": {"d": nsn.Depths(["hidden", "hidden"])}}, "drops block 'hidden' twice"),
        (
            {"grid": {"d": nsn.Depths(["output", "hidden"])}},
            "axis 'd', choice 0 \\(the others at their smallest\\): sub-network 'd0' keeps no block",
        ),
        (
            {
                "blocks": {
                    "s": nsn.Sequence({f"b{i}": nsn.Dense(4, 4) for i in range(300)}),
                    "output": nsn.Dense(4, 2),
                },
                "grid": {"w": nsn.Widths([1 - i / 1000 for i in range(200)], of=["output.in"])},
            },
            "keep more than 50000 blocks",
        ),
        ({"grid": {"w": nsn.Widths([9], of=["hidden"])}}, "must be from 1 to 4, but got 9"),
        ({"grid": {"w": nsn.Widths([1], of=["none"])}}, "'none', which it does not keep"),
        ({"grid": {"w": nsn.Widths([0.5, 1.0], of=["output"])}}, "would change the sub-network's"),
        (
            {"grid": {"a": nsn.Widths([0.5]), "b": nsn.Widths([0.5])}},
            "sets the width of all blocks twice",
        ),
        (
            {"grid": {"w": nsn.Widths([0.5])}, "subnetworks": {"w0": ["hidden", "output"]}},
            "sub-network 'w0' has the name of one of the grid's",
        ),
        (
            {"grid": {"w": nsn.Widths([0.5])}, "merge": nsn.merge.weighted({"base": 1.0})},
            "merge rule 'weighted' of block 'hidden' names each sub-network",
        ),
        (
            {"grid": {"w": nsn.Widths([0.5])}, **dense(per_subnetwork=["bias"])},
            "'hidden.bias' is each sub-network's own, but those of a grid have none",
        ),
        (
            {"grid": {f"a{'b' * i}": nsn.Widths([1.0] * 1000, of=["hidden"]) for i in range(5)}},
            r"more than 2\^40",
        ),
        ({"grid": {"w": nsn.Widths([1.0] * 1025)}}, "has 1025 choices"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nsn.Network(**{**dense(), **arguments})


def test_refused_names() -> None:
    net = nsn.Network(**dense(), grid={"w": nsn.Widths([0.5, 1.0])})
    x = torch.randn(2, 4)
    assert net.description.cell(w=1) == "w1"
    for name in ("w2", "w", "w01", "w1_", "_w1", "w1_d0", "W1", "w00001", "w-1"):
        with pytest.raises(ValueError, match="those of the grid 'w0' to 'w1'"):
            net(x, name)
    for choices, message in (
        ({}, "a choice for each axis of the grid, 'w', but got none"),
        ({"w": 2}, "the choice of 'w' must be from 0 to 1, but is 2"),
        ({"w": -1}, "must be from 0 to 1, but is -1"),
        ({"d": 1}, "but got 'd'"),
    ):
        with pytest.raises(ValueError, match=message):
            net.description.cell(**choices)
    with pytest.raises(ValueError, match="the network has no grid"):
        nsn.Network(**dense()).description.cell()
    averaged = nsn.Network(**dense(), grid={"w": nsn.Widths([0.5, 1.0])}, merge=nsn.merge.mean())
    for name in ("base", "w0"):
        nsn.param_groups(net, 1e-4, of=name)  # under `sum` every coefficient is 1
        with pytest.raises(ValueError, match=f"beside a grid others run with '{name}'"):
            nsn.param_groups(averaged, 1e-4, of=name)
    for grid in ([1], {"w": [0.5]}):
        with pytest.raises(TypeError, match="must be"):
            nsn.Network(**dense(), grid=grid)  # type: ignore[arg-type]


def test_an_exported_cell_is_verified(tmp_path: Path) -> None:
    from nsn.verifying import verify

    net = nsn.Network(**mlp(), grid=AXES["mlp"]).eval()
    nsn.save(net, tmp_path / "net.safetensors")
    nsn.export(net, tmp_path / "pt2", "pt2", ["w0_d0"])
    rows = list(verify(tmp_path / "net.safetensors", [tmp_path / "pt2"], torch.randn(3, 6)))
    assert rows and all(row.ok for row in rows)
    assert "w0_d0" in {row.subnetwork for row in rows}


def test_recipes_with_a_grid(tmp_path: Path) -> None:
    from nsn.training.errors import InputError
    from nsn.training.recipe import check_recipe, load_recipe

    values = load_recipe("demo", []).values
    network = {**values["network"], "grid": [{"name": "w", "widths": [0.5, 1.0]}]}
    network["merge"] = {"rule": "mean"}
    for kind in ("all", "from_epoch"):
        with pytest.raises(InputError, match=f"nobody runs with sampling.kind '{kind}'"):
            check_recipe({**values, "network": network, "sampling": {"kind": kind}})
    recipe = check_recipe(
        {**values, "network": network, "sampling": {"kind": "random", "count": 2}}
    )
    norm = {"name": "norm", "type": "BatchNorm", "features": 784}
    blocks = [*network["blocks"][:1], norm, *network["blocks"][1:]]
    with pytest.raises(InputError, match="'norm' keeps running statistics, which a grid's"):
        check_recipe(
            {
                **values,
                "network": {**network, "blocks": blocks, "subnetworks": []},
                "sampling": {"kind": "random", "count": 2},
            }
        )
    schedule = recipe.sampling(nsn.Network(recipe.description))
    assert "w0" in {name for step in range(50) for name in schedule(step).names}
