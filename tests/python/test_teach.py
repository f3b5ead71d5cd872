"""Teachers, label smoothing, targets and losses by name: the joint loss against torch's own."""

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nsn

CLASSES = 5


def network(dtype: torch.dtype = torch.float64) -> nsn.Network:
    net = nsn.Network(
        input=(6,),
        blocks={
            "a": nsn.Dense(6, 6, activation="tanh"),
            "b": nsn.Dense(6, 6, activation="tanh"),
            "c": nsn.Dense(6, CLASSES),
        },
        subnetworks={"sub1": ["b", "c"], "sub2": ["c"]},
        merge=nsn.merge.mean(),
    )
    return net.to(dtype)


#: By kind of teacher, what it says to a learner, of what all say.
SAID: dict[str, Callable[[str, dict[str, Tensor], Tensor], Tensor | None]] = {
    "base": lambda name, said, outside: None if name == "base" else said["base"],
    "next_larger": lambda name, said, outside: {"base": None, "sub1": said["base"]}.get(
        name, said["sub1"]
    ),
    "mutual": lambda name, said, outside: torch.stack(
        [said[each] for each in said if each != name]
    ).mean(0),
    "outside": lambda name, said, outside: outside,
}


def teacher(kind: str, net: nsn.Network, outside: Tensor, **options: object) -> nsn.teach.Teacher:
    if kind == "outside":
        return nsn.teach.outside(net, outside, **options)  # type: ignore[arg-type]
    return getattr(nsn.teach, kind)(net, **options)


def expected_loss(
    kind: str,
    outputs: dict[str, Tensor],
    targets: Tensor,
    outside: Tensor,
    share: float,
    t: float,
    smoothing: float | dict[str, float],
) -> Tensor:
    """By the formula, one sub-network after the other."""
    said = {name: (output.detach() / t).softmax(1) for name, output in outputs.items()}
    total = torch.zeros((), dtype=torch.float64)
    counts = targets != -100
    for name, output in outputs.items():
        own = smoothing.get(name, 0.0) if isinstance(smoothing, dict) else smoothing
        hard = F.cross_entropy(output, targets, label_smoothing=own)
        taught = SAID[kind](name, said, (outside / t).softmax(1))
        if taught is None:
            total = total + hard
            continue
        soft = F.cross_entropy(output / t, taught, reduction="none")[counts].mean()
        total = total + (1 - share) * hard + share * t**2 * soft
    return total


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize(
    ("share", "t", "smoothing"),
    [*itertools.product([0.25, 1.0], [1.0, 3.0], [0.0, 0.2, {"base": 0.3}])],
)
def test_gradients_are_the_formulas(
    kind: str, share: float, t: float, smoothing: float | dict[str, float]
) -> None:
    """Of the network's parameters, merged, and of the input."""
    net, x = network(), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    targets, outside = torch.randint(CLASSES, (7,)), torch.randn(7, CLASSES).double()
    targets[3] = -100
    teach = teacher(kind, net, outside, weight=share, temperature=t)
    found = nsn.joint_loss(net(x, nsn.ALL), targets, teach=teach, label_smoothing=smoothing)
    found.backward()
    gradients = [x.grad, *(each.grad for each in net.parameters())]
    net.zero_grad()
    x.grad = None
    wanted = expected_loss(kind, net(x, nsn.ALL), targets, outside, share, t, smoothing)
    wanted.backward()
    assert torch.allclose(found, wanted, rtol=1e-12)
    for a, b in zip(gradients, [x.grad, *(each.grad for each in net.parameters())], strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SAID)
def test_float32_is_float64_rounded(kind: str) -> None:
    net, x, targets = network(torch.float32), torch.randn(33, 6), torch.randint(CLASSES, (33,))
    outside = torch.randn(33, CLASSES)
    exact = copy.deepcopy(net).double()
    for each, inputs, logits in ((net, x, outside), (exact, x.double(), outside.double())):
        teach = teacher(kind, each, logits, temperature=2.0)
        nsn.joint_loss(each(inputs, nsn.ALL), targets, teach=teach).backward()
    for a, b in zip(net.parameters(), exact.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad.double(), b.grad, rtol=1e-4, atol=1e-6)


def test_the_worked_example() -> None:
    """That of the module's docstring."""
    net = network()
    base = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log().requires_grad_()
    sub = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teach = nsn.teach.base(net, weight=0.25)
    loss = nsn.joint_loss({"base": base, "sub1": sub}, torch.tensor([0]), teach=teach)
    assert loss.item() == pytest.approx(-torch.tensor(0.8).log().item() + 0.693147, abs=1e-6)
    loss.backward()
    assert sub.grad is not None
    assert torch.allclose(sub.grad, torch.tensor([[-0.45, 0.45]], dtype=torch.float64))


def test_transformers_outputs_have_classes_last() -> None:
    net = network()
    outputs = {
        name: torch.randn(2, 3, CLASSES, dtype=torch.float64, requires_grad=True)
        for name in net.subnetworks
    }
    targets, outside = torch.randint(CLASSES, (2, 3)), torch.randn(2, 3, CLASSES).double()
    targets[1, 2] = -100
    flat = {name: each.flatten(0, 1)[:5] for name, each in outputs.items()}
    second = {name: each.movedim(-1, 1) for name, each in outputs.items()}
    for kind in SAID:
        wanted = expected_loss(
            kind, flat, targets.flatten()[:5], outside.flatten(0, 1)[:5], 0.5, 2.0, 0.0
        )
        gradients = torch.autograd.grad(wanted, list(outputs.values()), retain_graph=True)
        for all_outputs, logits in ((outputs, outside), (second, outside.movedim(-1, 1))):
            taught = teacher(kind, net, logits, temperature=2.0)
            found = nsn.joint_loss(all_outputs, targets, teach=taught)
            assert torch.allclose(found, wanted, rtol=1e-12)
            own = torch.autograd.grad(found, list(outputs.values()))
            for a, b in zip(own, gradients, strict=True):
                assert torch.allclose(a, b, atol=1e-14)


def test_numbers_are_taught_by_squared_error() -> None:
    net = network()
    outputs = {name: torch.randn(4, 3, requires_grad=True) for name in net.subnetworks}
    targets = torch.randn(4, 3)
    teach = nsn.teach.next_larger(net, weight={"sub1": 0.5, "sub2": 0.1}, by="squared_error")
    found = nsn.joint_loss(outputs, targets, F.l1_loss, teach=teach)
    base, one, two = outputs.values()
    expected = F.l1_loss(base, targets) + 0.5 * F.l1_loss(one, targets)
    expected = expected + 0.5 * F.mse_loss(one, base.detach()) + 0.9 * F.l1_loss(two, targets)
    assert torch.allclose(found, expected + 0.1 * F.mse_loss(two, one.detach()))


def test_what_is_left_out_is_not_taught_by_squared_error() -> None:
    net = network()
    base, sub = torch.randn(4, 3), torch.randn(4, 3)
    targets = torch.tensor([0, -100, 2, 1])
    teach = nsn.teach.base(net, weight=0.5, by="squared_error")
    found = nsn.joint_loss({"base": base, "sub1": sub}, targets, teach=teach)
    kept = targets != -100
    expected = F.cross_entropy(base, targets) + 0.5 * F.cross_entropy(sub, targets)
    assert torch.allclose(found, expected + 0.5 * F.mse_loss(sub[kept], base[kept]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [5, 20, 300])
def test_a_class_that_is_ruled_out_may_have_any_logit(classes: int, dtype: torch.dtype) -> None:
    """In the one pass, and with more classes by plain operations."""
    net, targets = network(), torch.zeros(4).long()
    logits = torch.randn(4, classes, dtype=dtype)
    logits[:, 2::5] = -torch.inf
    outputs = {"base": logits, "sub1": logits + torch.randn(4, 1)}
    for each in outputs.values():
        each.requires_grad_()
    loss = nsn.joint_loss(outputs, targets, teach=nsn.teach.base(net))
    kept = {name: each.detach()[:, logits[0].isfinite()] for name, each in outputs.items()}
    wanted = nsn.joint_loss(kept, targets, teach=nsn.teach.base(net))
    assert torch.allclose(loss, wanted, rtol=1e-5)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in outputs.values())


@pytest.mark.parametrize("by", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("form", ["one", "each", "narrow", "many"])
@pytest.mark.parametrize("junk", [torch.nan, -torch.inf])
def test_what_is_left_out_may_be_anything(by: str, form: str, junk: float) -> None:
    """Padding, by all paths: the one pass, targets by name, a narrow dtype, many classes."""
    net, classes = network(), 300 if form == "many" else 5
    dtype = torch.bfloat16 if form == "narrow" else torch.float32
    targets = torch.tensor([-100, 1, 2, 3])
    outputs = {name: torch.randn(4, classes).to(dtype) for name in ("base", "sub1")}
    for each in outputs.values():
        each[0] = junk
        each.requires_grad_()
    given = dict.fromkeys(outputs, targets.clone()) if form == "each" else targets
    teach = nsn.teach.base(net, by=by)
    loss = nsn.joint_loss(outputs, given, teach=teach)
    kept = {name: each.detach()[1:] for name, each in outputs.items()}
    wanted = nsn.joint_loss(kept, targets[1:], teach=teach)
    assert torch.allclose(loss, wanted, rtol=1e-2 if form == "narrow" else 1e-5)
    loss.backward()
    assert all(each.grad[1:].isfinite().all() for each in outputs.values())


@pytest.mark.parametrize("by", ["cross_entropy", "squared_error"])
def test_narrow_dtypes_do_not_overflow(by: str) -> None:
    """Of a sum over many rows."""
    net = network()
    outputs = {name: 3 * torch.randn(70_000, 5) for name in ("base", "sub1")}
    targets = torch.randint(5, (70_000,))
    teach = nsn.teach.base(net, by=by)
    wanted = nsn.joint_loss(outputs, targets, teach=teach)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = {name: each.to(dtype) for name, each in outputs.items()}
        found = nsn.joint_loss(narrow, targets, teach=teach)
        assert found.dtype == dtype and torch.allclose(found.float(), wanted, rtol=2e-2)


def test_a_teacher_under_autocast_is_computed_as_the_loss_is() -> None:
    net, logits = network(), 4 * torch.randn(64, 50)
    outputs = {"base": logits.bfloat16(), "sub1": (logits + torch.randn(64, 50)).bfloat16()}
    targets = torch.randint(50, (64,))
    teach = nsn.teach.base(net, weight=1.0)
    wanted = nsn.joint_loss({k: v.double() for k, v in outputs.items()}, targets, teach=teach)
    with torch.autocast("cpu", torch.bfloat16):
        found = nsn.joint_loss(outputs, targets, teach=teach)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), wanted, rtol=1e-5)


@pytest.mark.parametrize("classes", [5, 300])
def test_an_outside_output_that_was_inferred_teaches(classes: int) -> None:
    net, targets = network(), torch.randint(classes, (4,))
    with torch.inference_mode():
        said = torch.randn(4, classes)
    losses = []
    for outside in (said, torch.empty(4, classes).copy_(said)):
        output = torch.ones(4, classes, requires_grad=True)
        loss = nsn.joint_loss({"base": output}, targets, teach=nsn.teach.outside(net, outside))
        loss.backward()
        losses.append((loss, output.grad))
    assert torch.equal(losses[0][0], losses[1][0]) and torch.equal(losses[0][1], losses[1][1])


def test_targets_of_bytes_leave_nothing_out() -> None:
    """Among which -100 would be 156."""
    net, targets = network(), torch.tensor([156, 3], dtype=torch.uint8)
    outputs = {name: torch.randn(2, 200, dtype=torch.float64) for name in ("base", "sub1")}
    for teach in (None, nsn.teach.base(net)):
        found = nsn.joint_loss(outputs, targets, teach=teach)
        assert torch.allclose(found, nsn.joint_loss(outputs, targets.long(), teach=teach))
    by_name = nsn.joint_loss(outputs, dict.fromkeys(outputs, targets))
    plain = sum(F.cross_entropy(each, targets) for each in outputs.values())
    assert torch.allclose(by_name, plain)


def test_a_single_sample_is_taught_by_squared_error() -> None:
    net, target = network(), torch.tensor(2)
    outputs = {name: torch.randn(5) for name in ("base", "sub1")}
    teach = nsn.teach.base(net, by="squared_error")
    batch = {name: each[None] for name, each in outputs.items()}
    wanted = nsn.joint_loss(batch, target[None], teach=teach)
    assert torch.allclose(nsn.joint_loss(outputs, target, teach=teach), wanted)


def test_of_nothing_that_counts_there_is_no_gradient() -> None:
    net, targets = network(), torch.full((4,), -100)
    for classes in (5, 300):
        for by in ("cross_entropy", "squared_error"):
            outputs = {
                name: torch.randn(4, classes, dtype=torch.float64, requires_grad=True)
                for name in net.subnetworks
            }
            loss = nsn.joint_loss(outputs, targets, teach=nsn.teach.base(net, by=by))
            loss.backward()
            assert loss.isnan()
            assert all(each.grad is not None and not each.grad.any() for each in outputs.values())


def test_copies_and_pickles_teach_alike() -> None:
    net, targets = network(), torch.randint(CLASSES, (4,))
    outputs = {name: torch.randn(4, CLASSES) for name in net.subnetworks}
    for kind in SAID:
        weight, said = {"sub1": 0.25, "sub2": 0.75}, torch.randn(4, CLASSES, requires_grad=True)
        made = teacher(kind, net, 2 * said, temperature=2.0, weight=weight)
        weight["sub1"] = 0.9
        wanted = nsn.joint_loss(outputs, targets, teach=made)
        again = pickle.loads(pickle.dumps(made))
        for each in (copy.copy(made), copy.deepcopy(made), again):
            assert torch.equal(nsn.joint_loss(outputs, targets, teach=each), wanted)


def test_targets_and_losses_by_name() -> None:
    outputs = {"base": torch.randn(4, 3), "sub1": torch.randn(4, 2)}
    targets = {"base": torch.randint(3, (4,)), "sub1": torch.randn(4, 2)}
    found = nsn.joint_loss(outputs, targets, {"sub1": F.mse_loss}, {"sub1": 2.0})
    expected = F.cross_entropy(outputs["base"], targets["base"])
    assert torch.allclose(found, expected + 2.0 * F.mse_loss(outputs["sub1"], targets["sub1"]))


def test_an_outside_module_is_called_without_a_record() -> None:
    net, module, x = network(), nn.Linear(6, CLASSES).double().eval(), torch.randn(3, 6).double()
    targets = torch.randint(CLASSES, (3,))
    outputs = net(x, nsn.ALL)
    called = nsn.joint_loss(outputs, targets, teach=nsn.teach.outside(net, module, x))
    given = nsn.joint_loss(outputs, targets, teach=nsn.teach.outside(net, module(x)))
    assert torch.equal(called, given)
    called.backward()
    assert module.weight.grad is None
    module.train()
    with pytest.raises(ValueError, match=r"in train\(\) mode.*Call its eval\(\) first"):
        nsn.teach.outside(net, module, x)
    with pytest.raises(ValueError, match="no batch to call it with"):
        nsn.teach.outside(net, module.eval())
    with pytest.raises(ValueError, match="Leave x out"):
        nsn.teach.outside(net, module(x), x)


NET = network()
LOGITS = {"base": torch.zeros(2, 3), "sub1": torch.zeros(2, 3)}
LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nsn.teach.base(NET, 1.5), "from 0 to 1, but is 1.5"),
        (lambda: nsn.teach.base(NET, {"base": 1.0}), "'base' has a weight, but teaches"),
        (lambda: nsn.teach.base(NET, {"sub": 1.0}), "nsn.teach.base: .* no sub-network 'sub'"),
        (lambda: nsn.teach.mutual(NET, temperature=-1), "must be positive and finite, but is -1"),
        (lambda: nsn.teach.mutual(NET, by="l2"), "'cross_entropy' or 'squared_error'"),
        (
            lambda: nsn.joint_loss({"sub1": LOGITS["sub1"]}, LABELS, teach=nsn.teach.base(NET)),
            "base is the teacher, but this pass has no output of it",
        ),
        (
            lambda: nsn.joint_loss(LOGITS, LABELS, F.cross_entropy, teach=nsn.teach.base(NET)),
            "by what distance was not said",
        ),
        (
            lambda: nsn.joint_loss(
                {name: torch.zeros(2, 3, 4) for name in LOGITS},
                torch.zeros(2, 3).long(),
                {"sub1": lambda y, t: y.sum()},
                teach=nsn.teach.base(NET, by="cross_entropy"),
            ),
            r"'sub1' gives \(2, 3, 4\) and has a loss that was given.*Flatten all outputs",
        ),
        (
            lambda: nsn.joint_loss(
                {name: torch.zeros(2, 1) for name in LOGITS},
                torch.zeros(2, 1),
                F.binary_cross_entropy_with_logits,
                teach=nsn.teach.base(NET, by="cross_entropy"),
            ),
            r"'base' gives \(2, 1\), which is one class.*Learn by squared error",
        ),
        (
            lambda: nsn.joint_loss(LOGITS, LABELS, weights={"sub1": float("nan")}),
            "the weight of 'sub1' must be finite, but is nan",
        ),
        (
            lambda: nsn.joint_loss(LOGITS, LABELS, F.cross_entropy, label_smoothing=0.1),
            "label_smoothing is of the default cross entropy",
        ),
        (
            lambda: nsn.joint_loss(LOGITS, LABELS, teach=nsn.teach.outside(NET, torch.zeros(2, 4))),
            r"gives \(2, 3\), but is to learn from the outside teacher, which gives \(2, 4\)",
        ),
        (lambda: nsn.joint_loss(LOGITS, {}), "targets is an empty dict"),
        (lambda: nsn.joint_loss(LOGITS, {"base": LABELS}), "no targets for 'sub1'"),
        (lambda: nsn.joint_loss(LOGITS, LABELS, {"sub": F.mse_loss}), "a loss names 'sub'"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_has_to_return_a_tensor() -> None:
    for returned in (1.0, None):
        with pytest.raises(TypeError, match="what a loss returns must be a torch.Tensor"):
            nsn.joint_loss(LOGITS, LABELS, lambda y, t, returned=returned: returned)  # type: ignore


def test_a_target_that_is_no_class() -> None:
    with pytest.raises(IndexError, match="target 3 is out of bounds: .* classes 0 to 2"):
        nsn.joint_loss(LOGITS, LABELS + 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_smoothing_by_name_without_a_teacher(dtype: torch.dtype) -> None:
    """In one pass over all logits, and where there is none."""
    logits = {name: torch.randn(6, 4).to(dtype).requires_grad_() for name in ("base", "small")}
    targets = torch.tensor([0, 1, 2, 3, -100, 1])
    loss = nsn.joint_loss(logits, targets, label_smoothing={"small": 0.2})
    wide = {
        name: each.to(torch.promote_types(dtype, torch.float32)) for name, each in logits.items()
    }
    wanted = F.cross_entropy(wide["base"], targets) + F.cross_entropy(
        wide["small"], targets, label_smoothing=0.2
    )
    wanted = wanted.to(dtype)  # rounded once
    assert loss.dtype == dtype and torch.allclose(loss, wanted)
    for a, b in zip(
        torch.autograd.grad(loss, logits.values()),
        torch.autograd.grad(wanted, logits.values()),
        strict=True,
    ):
        assert torch.allclose(a, b)


def test_smoothing_of_a_recipe_is_by_name_too() -> None:
    from nsn.training.errors import InputError
    from nsn.training.recipe import check_recipe, load_recipe

    values = {**load_recipe("mnist", []).values, "label_smoothing": {"base": 0.1}}
    recipe = check_recipe(values)
    assert recipe.label_smoothing == {"base": 0.1}
    assert recipe.alone("base").label_smoothing == 0.1
    assert recipe.alone("sub2").label_smoothing == 0.0
    for wrong, message in (
        ({"none": 0.1}, "label_smoothing names 'none'"),
        ({"base": 2.0}, "label_smoothing.base must be a number between 0 and 1"),
        ("0.1", "'label_smoothing' must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            check_recipe({**values, "label_smoothing": wrong})
