"""Whatever a public function is given, its error is in the caller's words."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nsn

#: What belongs to another language, or to nobody.
FORBIDDEN = re.compile(
    r"incompatible (function|constructor) arguments|\w::\w|dtype (Float|Double|Long)\b|Supplied\{|"
    r"object at 0x|pybind|has no attribute|not subscriptable|not callable|tensor\(|array\("
)

WRONG: list[Any] = [
    None,
    True,
    3,
    1.5,
    1j,
    "no such",
    b"bytes",
    (),
    [1, 2],
    ["a", 1],
    {},
    {"y": 1},
    {3: "x"},
    {"epoch": torch.ones(2)},
    object(),
    np.ones((2, 4), np.float32),
    np.int64(2),
    torch.ones(2, 4),
    torch.ones(2, 4, dtype=torch.int64),
    torch.ones(3, 5),
    torch.float32,
    torch.nn.ReLU(),
    torch.nn.ReLU,
    io.BytesIO(),
    nsn.Dense(4, 2),
    nsn.Dense,
    nsn.merge.mean(),
    nsn.ALL,
    lambda *given: None,
]


def network(**options: Any) -> nsn.Network:
    return nsn.Network(
        input=(4,),
        blocks={"a": nsn.Dense(4, 4, activation="relu"), "b": nsn.Dense(4, 2)},
        subnetworks={"small": ["b"]},
        **options,
    )


def calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that are right."""
    net = network()
    x = torch.ones(2, 4)
    pack = net.pack()
    description = net.description
    path = folder / "net.safetensors"
    nsn.save(net, path)
    outputs = net(x, nsn.ALL)
    blocks = {"a": nsn.Dense(4, 4)}
    targets = torch.tensor([0, 1])
    result: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "Network": (
            lambda **given: nsn.Network(**given),
            {
                "input": (4,),
                "blocks": blocks,
                "subnetworks": {"s": ["a"]},
                "grid": {"w": nsn.Widths([1, 4], of=["a.out"])},
                "merge": nsn.merge.sum(),
                "block_merge": {"a": nsn.merge.mean()},
                "dtype": torch.float32,
                "device": "cpu",
            },
        ),
        "Subnetwork": (
            lambda **given: nsn.Network(
                input=(4,), blocks=blocks, subnetworks={"s": nsn.Subnetwork(**given)}
            ),
            {"blocks": ["a"], "dropout": {"a": 0.5}, "width": {"a": {"out": 2}}},
        ),
        "Widths": (
            lambda **given: nsn.Network(input=(4,), blocks=blocks, grid={"w": nsn.Widths(**given)}),
            {"widths": [0.5, 1.0], "of": ["a.out"]},
        ),
        "Depths": (
            lambda **given: nsn.Network(
                input=(4,),
                blocks={**blocks, "b": nsn.Dense(4, 4)},
                grid={"d": nsn.Depths(**given)},
            ),
            {"drops": ["b"]},
        ),
        "cell": (
            nsn.Network(
                input=(4,), blocks=blocks, grid={"w": nsn.Widths([2, 4], of=["a.out"])}
            ).description.cell,
            {"w": 1},
        ),
        "forward": (net, {"x": x, "names": ["base"]}),
        "backward_by_lane": (
            net.backward_by_lane,
            {"x": x, "loss": lambda name, y: y.sum(), "names": ["base"]},
        ),
        "view": (net.view, {"name": "small"}),
        "a view": (lambda x: net.view("small")(x), {"x": x}),
        "net.pack": (net.pack, {"subnetworks": ["small"]}),
        "pack.view": (pack.view, {"name": "small"}),
        "a packed view": (lambda x: pack.view("small")(x), {"x": x}),
        "extract": (net.extract, {"name": "small"}),
        "recalibrate": (network().recalibrate, {"batches": [x]}),
        "joint_loss": (
            nsn.joint_loss,
            {
                "outputs": outputs,
                "targets": targets,
                "loss": torch.nn.functional.cross_entropy,
                "weights": {"base": 0.5},
                "teach": nsn.teach.base(net, by="cross_entropy"),
                "label_smoothing": 0.1,
            },
        ),
        "teach.base": (
            nsn.teach.base,
            {"network": net, "weight": {"small": 0.5}, "temperature": 2.0, "by": "cross_entropy"},
        ),
        "teach.outside": (
            nsn.teach.outside,
            {"network": description, "teacher": net.view("base"), "x": x, "weight": 0.5},
        ),
        "share": (
            nsn.share,
            {
                "parameter": x.clone().requires_grad_(),
                "slices": [(2, 4), (1, 2)],
                "rule": nsn.merge.mean(),
                "names": ["a", "b"],
            },
        ),
        "weighted": (nsn.merge.weighted, {"coefficients": {"base": 1.0}}),
        "function": (nsn.merge.function, {"function": lambda lanes: lanes[0], "name": "first"}),
        "bound_row_norms": (nsn.bound_row_norms, {"network": net, "most": 2.5, "blocks": ["a"]}),
        "param_groups": (nsn.param_groups, {"network": net, "weight_decay": 0.1, "of": "base"}),
        "save": (
            nsn.save,
            {"network": net, "path": folder / "again", "metadata": {"epoch": "3"}},
        ),
        "load": (nsn.load, {"path": path, "rules": {}, "only": "small"}),
        "load_rest": (
            lambda **given: nsn.load_rest(**{"network": nsn.load(path, only="small"), **given}),
            {"path": path, "only": "base"},
        ),
        "load_rest of": (nsn.load_rest, {"network": nsn.load(path, only="small"), "path": path}),
        "load_metadata": (nsn.load_metadata, {"path": path}),
        "export": (
            nsn.export,
            {"network": net, "folder": path, "format": "pt2", "subnetworks": ["small"]},
        ),
        "from_json": (
            nsn.Description.from_json,
            {"text": description.to_json(), "rules": {"first": lambda lanes: lanes[0]}},
        ),
        "to_json": (description.to_json, {"indent": 2}),
        "load_state_dict": (net.load_state_dict, {"state_dict": net.state_dict()}),
    }
    for name in ("alone", "index_of", "blocks_of", "output_shape", "flops", "parameter_count"):
        result[f"description.{name}"] = (getattr(description, name), {"name": "small"})
    options = {
        "Dense": {
            "in_features": 4,
            "out_features": 4,
            "activation": "relu",
            "dropout": 0.5,
            "bias": True,
            "per_subnetwork": ["bias"],
            "init": "xavier_uniform",
        },
        "Conv2d": {
            "in_channels": 1,
            "out_channels": 4,
            "kernel_size": 3,
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 1,
            "activation": "relu",
        },
        "BatchNorm": {
            "features": 4,
            "eps": 1e-5,
            "momentum": 0.1,
            "affine": True,
            "track": True,
            "per_subnetwork": ["affine"],
        },
        "Embedding": {"num_embeddings": 4, "features": 4},
        "Transformer": {"features": 4, "heads": 2, "ffn": 8, "causal": True, "dropout": 0.1},
        "MaxPool2d": {"kernel_size": 2, "stride": 2, "padding": 0},
        "Sequence": {"blocks": {"a": nsn.Dense(4, 4)}, "keeps_dropout": ["a"]},
        "Residual": {"blocks": {"a": nsn.Dense(4, 4)}, "keeps_dropout": ["a"]},
        "Activation": {"activation": "relu"},
        "Dropout": {"p": 0.5},
    }
    for kind, given in options.items():
        block = getattr(nsn, kind)
        result[kind] = (
            lambda block=block, **given: nsn.Network(input=(4,), blocks={"a": block(**given)}),
            given,
        )
    return result


def test_errors_are_in_the_callers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some wrong values are good names of files
    problems = []
    for name, (function, right) in calls(tmp_path).items():
        for argument in right:
            for wrong in WRONG:
                try:
                    function(**{**right, argument: wrong})
                except (
                    TypeError,
                    ValueError,
                    OSError,
                    KeyError,
                    RuntimeError,
                    ImportError,
                ) as error:
                    if FORBIDDEN.search(str(error)):
                        problems.append(f"{name}({argument}={type(wrong).__name__}): {error}"[:300])
                except Exception as error:  # none of the kinds that the interface has
                    problems.append(f"{name}({argument}={wrong!r:.40}): {error!r}"[:300])
    assert not problems, f"{len(problems)}:\n" + "\n".join(problems)


def test_what_wrappers_hold_is_found(tmp_path: Path) -> None:
    """As in training with averaged weights, or compiled."""
    net = network()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        net.a.weight.add_(1)
    nsn.save(averaged, tmp_path / "averaged")
    assert nsn.load(tmp_path / "averaged").a.weight.equal(averaged.module.a.weight)
    nsn.save(torch.compile(net, backend="eager"), tmp_path / "compiled")
    assert nsn.load(tmp_path / "compiled").a.weight.equal(net.a.weight)
    groups = nsn.param_groups(averaged, 0.1)
    assert groups[0]["params"][0] is averaged.module.a.weight
    with pytest.raises(TypeError, match="must be an nsn.Network, but is a Linear"):
        nsn.save(torch.nn.Linear(2, 2), tmp_path / "linear")


def test_messages_from_within_backward() -> None:
    def wrong(lanes: list[nsn.merge.LaneGradient]) -> torch.Tensor:
        return torch.ones(7)

    net = network(merge=nsn.merge.function(wrong))
    with pytest.raises(ValueError, match="rule 'wrong' returned a gradient of shape") as error:
        sum(each.sum() for each in net(torch.ones(2, 4), nsn.ALL).values()).backward()
    assert not FORBIDDEN.search(str(error.value)), error.value
    net = network(merge=nsn.merge.mean())
    x = torch.ones(2, 4, requires_grad=True)
    loss = sum(each.pow(2).sum() for each in net(x, nsn.ALL).values())
    with pytest.raises(RuntimeError, match="second derivative") as refused:
        torch.autograd.grad(
            torch.autograd.grad(loss, net.b.weight, create_graph=True)[0].sum(), net.b.weight
        )
    assert not FORBIDDEN.search(str(refused.value)), refused.value


def test_an_input_of_another_shape_gets_the_advice_that_fits() -> None:
    net = nsn.Network(input=(1, 8, 8), blocks={"conv": nsn.Conv2d(1, 2, 3)})
    for shape, advice in (
        ((2, 1, 9, 9), "Bring the samples to that size"),
        ((2, 3, 8, 8), "Bring the samples to that size"),
        ((1, 8, 8), r"unsqueeze\(0\)"),
        ((2, 64), r"Reshape the batch to \(-1, 1, 8, 8\)"),
        ((2, 8, 8), r"Reshape the batch to \(-1, 1, 8, 8\)"),
        ((5,), "Give samples of that shape"),
    ):
        with pytest.raises(ValueError, match=advice) as error:
            net(torch.ones(shape))
        assert "flatten" not in str(error.value)
    with pytest.raises(ValueError, match=r"flatten\(1\)"):
        network()(torch.ones(2, 2, 2))


def test_what_is_printed_says_what_it_is() -> None:
    printed = {
        nsn.merge.mean(): "nsn.merge.mean()",
        nsn.merge.weighted({"base": 1.0, "s": 0.5}): "nsn.merge.weighted({'base': 1, 's': 0.5})",
        nsn.merge.function(lambda lanes: lanes, "mine"): "nsn.merge.function(name='mine')",
    }
    for rule, text in printed.items():
        assert repr(rule) == text
    with pytest.raises(TypeError, match="nsn.Dense describes a block"):
        nsn.Dense(20, 64)()
