"""Views, loss, optimizer groups, and what each part of the interface refuses."""

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nsn
from conftest import ROOT, paper_network
from nsn import _C

DENSE = nsn.Dense(4, 4)


def small(**options: Any) -> nsn.Network:
    arguments = {
        "input": (4,),
        "blocks": {"a": DENSE, "b": nsn.Dense(4, 4, dropout=0.5), "c": nsn.Dense(4, 2)},
        "subnetworks": {"s": ["c"]},
        **options,
    }
    return nsn.Network(**arguments)


# ---- views ------------------------------------------------------------------------------------


def test_view_shares_storage_evaluates_and_records_nothing() -> None:
    net = paper_network(width=12)
    view = net.view("sub1")
    x = torch.rand(3, 12, requires_grad=True)
    assert net.training and torch.is_grad_enabled()
    assert [each.data_ptr() for each in view.parameters] == [
        each.data_ptr() for name, each in net.named_parameters() if "hidden1" not in name
    ]
    output = view(x)
    assert not output.requires_grad and torch.equal(output, view(x))
    net.eval()
    assert torch.equal(output, net(x, "sub1"))
    assert view.name == "sub1" and repr(view) == "nsn.View('sub1')"


def test_view_sees_updates_in_place_and_knows_when_it_is_stale() -> None:
    net = paper_network(width=12).eval()
    x = torch.rand(3, 12)
    view = net.view("base")
    with torch.no_grad():
        net.output.bias += 1
    assert torch.equal(view(x), net(x)) and not view.stale()
    net.load_state_dict({key: value * 2 for key, value in net.state_dict().items()})
    assert torch.equal(view(x), net(x)) and not view.stale()
    before = view(x)
    net.double()
    assert view.stale() and torch.equal(view(x), before)


def test_view_outlives_its_network() -> None:
    net = paper_network(width=12).eval()
    x = torch.rand(3, 12)
    expected, view = net(x, "sub2"), net.view("sub2")
    del net
    assert torch.equal(view(x), expected) and not view.stale()


def test_views_in_threads() -> None:
    net = paper_network(width=64).eval()
    x = torch.rand(5, 64)
    expected = net(x, nsn.ALL)
    views = {name: net.view(name) for name in net.subnetworks}

    def work(number: int) -> bool:
        names = [net.subnetworks[(number + i) % 3] for i in range(100)]
        return all(torch.allclose(views[name](x), expected[name], atol=1e-6) for name in names)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# ---- loss -------------------------------------------------------------------------------------


def test_joint_loss_is_the_weighted_sum() -> None:
    outputs = {name: torch.randn(5, 3, dtype=torch.float64) for name in ("base", "sub")}
    y = torch.tensor([0, 2, 1, -100, 1])
    each = {name: F.cross_entropy(output, y) for name, output in outputs.items()}
    assert torch.allclose(nsn.joint_loss(outputs, y), each["base"] + each["sub"])
    weighted = nsn.joint_loss(outputs, y, weights={"sub": 0.25})
    assert torch.allclose(weighted, each["base"] + 0.25 * each["sub"])
    probabilities = torch.rand(5, 3, dtype=torch.float64)
    expected = sum(F.cross_entropy(output, probabilities) for output in outputs.values())
    assert torch.allclose(nsn.joint_loss(outputs, probabilities), expected)
    target = torch.randn(5, 3, dtype=torch.float64)
    expected = sum(F.mse_loss(output, target) for output in outputs.values())
    assert torch.allclose(nsn.joint_loss(outputs, target, F.mse_loss), expected)


def test_joint_loss_of_other_shapes() -> None:
    wide = {"base": torch.randn(5, 3, 7), "sub": torch.randn(5, 3, 7)}
    y = torch.randint(3, (5, 7))
    expected = sum(F.cross_entropy(output, y) for output in wide.values())
    assert torch.allclose(nsn.joint_loss(wide, y), expected)
    differing = {"base": torch.randn(5, 3), "sub": torch.randn(5, 9)}
    y = torch.randint(3, (5,))
    expected = sum(F.cross_entropy(output, y) for output in differing.values())
    assert torch.allclose(nsn.joint_loss(differing, y), expected)


def test_joint_loss_gradients() -> None:
    outputs = {
        n: torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for n in ("base", "sub")
    }
    y = torch.randint(3, (5,))
    nsn.joint_loss(outputs, y, weights={"base": 3.0}).backward()
    for name, output in outputs.items():
        own = output.detach().requires_grad_()
        ((3.0 if name == "base" else 1.0) * F.cross_entropy(own, y)).backward()
        assert torch.allclose(output.grad, own.grad)


def test_joint_loss_passes_the_transforms_of_torch_func() -> None:
    other = torch.randn(5, 3, dtype=torch.float64)
    y = torch.tensor([0, 2, 1, -100, 1])
    x = torch.randn(5, 3, dtype=torch.float64)
    for options in ({}, {"weights": {"base": 3.0}}, {"label_smoothing": 0.1}):

        def loss(output: torch.Tensor, options: Any = options) -> torch.Tensor:
            return nsn.joint_loss({"base": output, "sub": other}, y, **options)

        own = x.clone().requires_grad_()
        expected = torch.autograd.grad(loss(own), own)[0]
        assert torch.allclose(torch.func.grad(loss)(x), expected)
        assert torch.allclose(torch.func.jvp(loss, (x,), (x,))[1], (expected * x).sum())
        assert torch.allclose(torch.func.vmap(loss)(x[None])[0], loss(x))


# ---- optimizer groups ---------------------------------------------------------------------------


def test_param_groups_of_the_paper() -> None:
    net = paper_network(width=12)
    decay = {
        id(p): group["weight_decay"]
        for group in nsn.param_groups(net, 9e-5, of="base")
        for p in group["params"]
    }
    assert len(decay) == 6
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "hidden1.weight": 9e-5,
        "hidden1.bias": 0,
        "hidden2.weight": 4.5e-5,
        "hidden2.bias": 0,
        "output.weight": 0,
        "output.bias": 0,
    }
    plain = nsn.param_groups(net, 0.1)
    assert [group["weight_decay"] for group in plain] == [0.1, 0.0]
    assert [len(group["params"]) for group in plain] == [3, 3]


# ---- what is refused ----------------------------------------------------------------------------

X = torch.zeros(2, 4)
REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: small(input=(3,)),
        ValueError,
        r"sub-network 'base': block 'a' \(Dense\) expects \(\*, 4\), its in_features, but gets \(3\) from the network's input",
    ),
    (
        lambda: small(blocks={"a": DENSE, "b": nsn.Dense(5, 4), "c": nsn.Dense(4, 2)}),
        ValueError,
        r"block 'b' .* gets \(4\) from block 'a'\. Change the options",
    ),
    (
        lambda: small(subnetworks={"s": ["c", "a"]}),
        ValueError,
        "keeps block 'a' after 'c', but blocks are kept in the order",
    ),
    (lambda: small(subnetworks={"s": ["c", "c"]}), ValueError, "keeps block 'c' after 'c'"),
    (lambda: small(subnetworks={"s": []}), ValueError, "sub-network 's' keeps no block"),
    (
        lambda: small(subnetworks={"s": ["d"]}),
        ValueError,
        "names a block that does not exist: 'd'. The blocks are 'a', 'b', 'c'",
    ),
    (lambda: small(subnetworks={"base": ["c"]}), ValueError, "no sub-network keeps block 'a'"),
    (lambda: small(subnetworks={"s": "c"}), TypeError, r"is a str\. Write \['c'\]"),
    (
        lambda: small(subnetworks={"s": nsn.Subnetwork(["c"], {"b": 0.1})}),
        ValueError,
        "sets a dropout for block 'b', which it does not keep",
    ),
    (
        lambda: small(subnetworks={"s": nsn.Subnetwork(["c"], {"c": 1.5})}),
        ValueError,
        "the dropout of block 'c' must be a probability from 0 to 1, but got 1.5",
    ),
    (lambda: small(blocks={}), ValueError, "the network has no blocks"),
    (lambda: small(blocks={"a.b": DENSE}), ValueError, "block name 'a.b' must be made of letters"),
    (
        lambda: small(blocks={"forward": DENSE}, subnetworks={}),
        ValueError,
        "block 'forward' has the name of an attribute",
    ),
    (
        lambda: small(blocks={"a": torch.nn.Linear(4, 4)}),
        TypeError,
        "block 'a' must be a block such as nsn.Dense, but is a Linear",
    ),
    (lambda: small(blocks=[DENSE]), TypeError, "blocks must be a dict of names, but is a list"),
    (lambda: small(input=4), TypeError, r"is an int\. Write \(4,\)"),
    (lambda: small(input=()), ValueError, "the network's input has no shape"),
    (lambda: small(input=(4, 0)), ValueError, "the network's input must be at least 1, but got 0"),
    (
        lambda: small(dtype=torch.complex64),
        ValueError,
        "the input's dtype must be a floating or integral one",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(0, 4)}),
        ValueError,
        "in_features must be at least 1, but got 0",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, -1)}),
        ValueError,
        "out_features must be at least 1, but got -1",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(2**63, 4)}),
        ValueError,
        "'in_features' must be an integer below 2\\^63, but is 9223372036854775808",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(2**62, 2**62)}),
        ValueError,
        r"'in_features' must be at most 2\^30, but is 4611686018427387904",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, 4, dropout=float("nan"))}),
        ValueError,
        "neither a finite number",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, 4, dropout=2)}),
        ValueError,
        "dropout must be a probability from 0 to 1, but got 2",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, 4, activation="swish")}),
        ValueError,
        "unknown activation 'swish'. Use one of linear, relu",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, 4, weight_init="ones")}),
        ValueError,
        "unknown weight_init 'ones'",
    ),
    (
        lambda: small(blocks={"a": nsn.Dense(4, 4, bias=False, bias_init=0.1)}),
        ValueError,
        "bias_init is 0.1, but bias is false",
    ),
    (lambda: small(merge="mean"), TypeError, "a merge rule must come from nsn.merge"),
    (
        lambda: small(merge=nsn.merge.weighted({"base": 1})),
        ValueError,
        "no coefficient for sub-network 's'",
    ),
    (
        lambda: small(merge=nsn.merge.weighted({"base": 1, "s": 1, "t": 1})),
        ValueError,
        "names a sub-network that does not exist: 't'. The sub-networks are 'base', 's'",
    ),
    (
        lambda: small(block_merge={"d": nsn.merge.mean()}),
        ValueError,
        "block_merge names a block that does not exist: 'd'",
    ),
    (lambda: nsn.merge.weighted({}), ValueError, "expected a coefficient for each sub-network"),
    (
        lambda: nsn.Network(input=(4,)),
        TypeError,
        "give a Description, or at least input= and blocks=",
    ),
    (
        lambda: nsn.Network({"input": (4,)}),
        TypeError,
        "expected an nsn.Description, but got a dict",
    ),
    (
        lambda: nsn.Network(small().description, input=(4,)),
        TypeError,
        "either a Description or its arguments",
    ),
    (
        lambda: small()(torch.zeros(2, 5)),
        ValueError,
        r"expected input of shape \(B, 4\), a batch of samples, but got \(2, 5\)",
    ),
    (
        lambda: small()(torch.zeros(4)),
        ValueError,
        r"but got \(4\)\. For a single sample use unsqueeze\(0\)",
    ),
    (
        lambda: small()(torch.zeros(2, 4, dtype=torch.long)),
        ValueError,
        "expected input of dtype float32, but got int64",
    ),
    (
        lambda: small()(torch.zeros(2, 4, dtype=torch.float64)),
        ValueError,
        "the input has dtype float64, but parameter 'a.weight' has float32. Convert",
    ),
    (
        lambda: small(dtype=torch.int64),
        ValueError,
        r"block 'a' \(Dense\) expects floating input, but gets integral \(4\) from the network's input, "
        "of dtype int64",
    ),
    (lambda: small()([[0.0] * 4]), TypeError, "expected a batch as a torch.Tensor, but got a list"),
    (
        lambda: small()(X, "t"),
        ValueError,
        "there is no sub-network 't'. The sub-networks are 'base', 's'",
    ),
    (lambda: small()(X, ["s", "s"]), ValueError, "'s' is asked for twice. Name it once"),
    (lambda: small()(X, []), ValueError, "needs at least one sub-network"),
    (lambda: small().a(X), TypeError, "a block of a network is not called by itself"),
    (lambda: small().view("t"), ValueError, "there is no sub-network 't'"),
    (lambda: nsn.joint_loss({}, X), ValueError, "there are no outputs"),
    (lambda: nsn.joint_loss([X], X), TypeError, "expected a dict of outputs, but got a list"),
    (
        lambda: nsn.joint_loss({"base": X}, X, weights={"s": 1}),
        ValueError,
        "a weight names 's', which is not among the outputs. They are 'base'",
    ),
    (
        lambda: nsn.joint_loss({"base": X}, X, lambda a, b: a - b),
        ValueError,
        r"must return a scalar, but returned a tensor of shape \[2, 4\]",
    ),
    (
        lambda: nsn.param_groups(small(), -1),
        ValueError,
        "weight_decay must be at least 0, but got -1",
    ),
    (lambda: nsn.param_groups(small(), 0.1, "t"), ValueError, "there is no sub-network 't'"),
    (
        lambda: nsn.param_groups(small(merge=nsn.merge.function(max, "max")), 0.1, "s"),
        ValueError,
        "rule 'max' is a function of the gradients and has no coefficients",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


DOCUMENT = small().description.to_json()
DOCUMENTS = [
    ("", "the text is no JSON"),
    ("[]", "the description must be a JSON object, but is array"),
    (DOCUMENT.replace('"nsn":1', '"nsn":2'), "reads version 1 of the schema, .* has version 2"),
    (DOCUMENT.replace('"nsn":1,', ""), "lacks the field 'nsn'"),
    (DOCUMENT.replace('"nsn":1,', '"nsn":1,"color":3,'), "unknown field 'color'. The fields are"),
    (
        DOCUMENT.replace('"bias":true', '"bias":true,"bias":false'),
        "the text has the field 'bias' twice in one object",
    ),
    (
        DOCUMENT.replace('"bias":true', '"bias":"yes"'),
        "block 'a': 'bias' must be true or false, but is \"yes\"",
    ),
    (DOCUMENT.replace('"in_features":4', '"in_features":4.5'), "'in_features' must be an integer"),
    (
        DOCUMENT.replace('"Dense"', '"Conv9"'),
        r"unknown type 'Conv9'\. The types are 'Activation', .*'Dense'.* supply its factory",
    ),
    (DOCUMENT.replace('"name":"b"', '"name":"a"'), "two blocks are named 'a'"),
    (DOCUMENT.replace('"name":"s"', '"name":"base"'), "two sub-networks are named 'base'"),
    (DOCUMENT.replace('"sum"', '"median"'), "unknown merge rule 'median'. Use one of sum, mean"),
    (DOCUMENT.replace('"float32"', '"float3"'), "unknown dtype 'float3'"),
    ("[" * 100_000, "nested deeper than 32 levels|is no JSON"),
]


@pytest.mark.parametrize(("text", "message"), DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_refused_documents(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nsn.Description.from_json(text)


def test_a_thousand_blocks() -> None:
    blocks = {f"b{i}": nsn.Dense(4, 4, activation="tanh") for i in range(1000)}
    net = nsn.Network(
        input=(4,), blocks=blocks, subnetworks={"odd": [f"b{i}" for i in range(1, 1000, 2)]}
    )
    outputs = net(X, nsn.ALL)
    sum(output.sum() for output in outputs.values()).backward()
    assert net.b0.weight.grad is not None and len(outputs) == 2
    assert nsn.Description.from_json(net.description.to_json()) == net.description


def test_stubs_name_what_the_binding_has() -> None:
    for module, stub in ((_C, "__init__.pyi"), (_C.merge, "merge.pyi")):
        text = (ROOT / "python/nsn/_C" / stub).read_text()
        named = set(re.findall(r"^(?:class|def) (\w+)", text, re.MULTILINE))
        public = {name for name in dir(module) if not name.startswith("_")} - {"merge"}
        assert named == public
        for cls in re.findall(r"^class (\w+)", text, re.MULTILINE):
            body = re.search(rf"^class {cls}:\n((?:    .*\n|\n)*)", text, re.MULTILINE)
            assert body is not None
            methods = set(re.findall(r"    def (\w+)", body[1]))
            found = {n for n in vars(getattr(module, cls)) if not n.startswith("_")}
            assert found == {name for name in methods if not name.startswith("_")}, cls


def test_cmake_prefix_path_leads_to_the_installed_library() -> None:
    prefix = Path(nsn.cmake_prefix_path)
    assert (prefix / "lib/cmake/nsn/nsnConfig.cmake").is_file()
    assert (prefix / "include/nsn/nsn.h").is_file()


def test_subnetwork_of_equal_size_is_ordered_by_declaration() -> None:
    rule = nsn.merge.owner()
    net = small(subnetworks={"s": ["b", "c"], "t": ["a", "c"]}, merge=rule).eval()
    outputs = net(X + 1, nsn.ALL)
    (outputs["base"] * 1 + outputs["s"] * 10 + outputs["t"] * 100).sum().backward()

    def gradient_alone(name: str, factor: float) -> Tensor:
        net.zero_grad()
        (net(X + 1, name) * factor).sum().backward()
        return net.c.bias.grad.clone()

    merged = net.c.bias.grad.clone()
    assert torch.allclose(merged, gradient_alone("s", 10))


def test_another_torch_is_refused_on_import() -> None:
    program = "import torch; torch.__version__ = '2.99.1'; import nsn"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"was built against torch 2\.13\.\d+.*, but torch 2\.99\.1", result.stderr)
