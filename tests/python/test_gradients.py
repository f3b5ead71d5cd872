"""The heart: merged gradients equal the rule applied to plain autograd's, one sub-network at a time."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import nsn
import reference
from conftest import paper_network
from nsn import _C
from nsn._C import merge as _merge

LINEAR = [name for name, _, _, is_linear in _merge.rules() if is_linear]
#: All of the library's, and functions of the tests.
RULES = [*(name for name, *_ in _merge.rules() if name != "function"), "median", "difference"]
TOLERANCE = 1e-10


def make_rule(name: str, weights: dict[str, float]) -> nsn.merge.Rule:
    if name == "weighted":
        return nsn.merge.weighted(weights)
    if name in ("median", "difference"):
        # Lanes come in the pass's order, as reference.merge gets them.
        return nsn.merge.function(
            lambda lanes: reference.merge(name, {each.name: each.gradient for each in lanes}, []),
            name,
        )
    return getattr(nsn.merge, name)()


class Case:
    """A random network, a random pass over it, and a random loss."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        pick = self.random
        width = pick.choice([1, 2, 5])
        last = pick.choice([width, 3])
        count = pick.randint(1, 5)
        self.activations = {f"b{i}": pick.choice(list(reference.ACTIVATIONS)) for i in range(count)}
        self.dropout = {name: pick.choice([0.0, 0.0, 0.3, 1.0]) for name in self.activations}
        names = list(self.activations)
        blocks = {
            name: nsn.Dense(
                width,
                last if name == names[-1] else width,
                bias=pick.random() < 0.7,
                activation=self.activations[name],
                dropout=self.dropout[name],
            )
            for name in names
        }
        self.kept = {"base": names}
        self.own_dropout: dict[str, dict[str, float]] = {"base": {}}
        for i in range(pick.randint(0, 4)):
            kept = [name for name in names if pick.random() < 0.6]
            if kept:
                self.kept[f"s{i}"] = kept
                self.own_dropout[f"s{i}"] = {kept[0]: 0.5} if pick.random() < 0.4 else {}
        self.weights = {name: pick.choice([0.0, 1.0, -0.5, 2.0]) for name in self.kept}
        self.rule = pick.choice(RULES)
        self.block_rules = {name: pick.choice(RULES) for name in names if pick.random() < 0.3}

        def rule_of(rule: str, block: str | None) -> nsn.merge.Rule:
            users = {
                name: weight
                for name, weight in self.weights.items()
                if block is None or block in self.kept[name]
            }
            return make_rule(rule, users)

        # Function rules of one name must be one function.
        made = {rule: make_rule(rule, self.weights) for rule in ("median", "difference")}
        self.net = nsn.Network(
            input=(width,),
            blocks=blocks,
            subnetworks={
                name: nsn.Subnetwork(kept, dropout=self.own_dropout[name])
                for name, kept in self.kept.items()
                if name != "base"
            },
            merge=made.get(self.rule) or rule_of(self.rule, None),
            block_merge={
                block: made.get(rule) or rule_of(rule, block)
                for block, rule in self.block_rules.items()
            },
            dtype=torch.float64,
        )
        for parameter in self.net.parameters():
            parameter.requires_grad_(pick.random() > 0.1)
        self.lanes = pick.sample(list(self.kept), pick.randint(1, len(self.kept)))
        self.in_loss = [name for name in self.lanes if pick.random() < 0.8]
        self.loss_weights = {name: pick.choice([1.0, 0.3, -2.0]) for name in self.lanes}
        self.x = torch.randn(pick.choice([0, 1, 4]), width, dtype=torch.float64)
        self.targets = {
            name: torch.randn(len(self.x), self.net.description.output_shape(name)[0]).double()
            for name in self.lanes
        }
        self.net.train(pick.random() < 0.5)

    def loss(self, outputs: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name in self.in_loss:
            difference = outputs[name] - self.targets[name]
            total = total + self.loss_weights[name] * difference.pow(2).sum()
        return total

    def masks(self, name: str, pass_seed: int) -> dict[str, tuple[Tensor, float]]:
        if not self.net.training:
            return {}
        result = {}
        for block in self.kept[name]:
            p = self.own_dropout[name].get(block, self.dropout[block])
            width = self.net.get_parameter(f"{block}.weight").shape[0]
            shape = [len(self.x), width]
            result[block] = (self.net._core.dropout_mask(pass_seed, name, block, p, shape), p)
        return result

    def expected(self, pass_seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Outputs, merged gradients, and the unmerged gradient of the input."""
        outputs, lanes = {}, {}
        input_gradient = torch.zeros_like(self.x)
        for name in self.lanes:
            leaves = {
                key: value.detach().clone().requires_grad_()
                for key, value in self.net.named_parameters()
            }
            x = self.x.clone().requires_grad_()
            masks = self.masks(name, pass_seed)
            outputs[name] = reference.forward(self.activations, self.kept[name], leaves, x, masks)
            if name in self.in_loss:
                difference = outputs[name] - self.targets[name]
                (self.loss_weights[name] * difference.pow(2).sum()).backward()
                input_gradient += x.grad
            lanes[name] = leaves
        by_size = sorted(
            self.kept, key=lambda name: sum(self._size(block) for block in self.kept[name])
        )
        merged = {}
        for key, parameter in self.net.named_parameters():
            block = key.split(".")[0]
            users = [name for name in self.lanes if block in self.kept[name]]
            gradients = {name: lanes[name][key].grad for name in users}
            if parameter.requires_grad and any(each is not None for each in gradients.values()):
                filled = {
                    name: torch.zeros_like(parameter) if each is None else each
                    for name, each in gradients.items()
                }
                rule = self.block_rules.get(block, self.rule)
                merged[key] = reference.merge(rule, filled, by_size, self.weights)
        return outputs, merged, input_gradient

    def _size(self, block: str) -> int:
        return sum(each.numel() for each in self.net.get_submodule(block).parameters())


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@settings(max_examples=400)
@given(st.integers(0, 2**32 - 1))
def test_random_networks(seed: int) -> None:
    case = Case(seed)
    torch.manual_seed(seed)
    pass_seed = _C.draw_seed()
    torch.manual_seed(seed)
    x = case.x.clone().requires_grad_()
    outputs = case.net(x, case.lanes)
    assert list(outputs) == case.lanes
    expected_outputs, expected, input_gradient = case.expected(pass_seed)
    for name in case.lanes:
        assert close(outputs[name], expected_outputs[name]), name
    loss = case.loss(outputs)
    if not loss.requires_grad:
        return
    loss.backward()
    for key, parameter in case.net.named_parameters():
        if key in expected:
            assert parameter.grad is not None, key
            assert close(parameter.grad, expected[key]), (key, case.rule, case.block_rules)
        else:
            assert parameter.grad is None, key
    if x.grad is not None:
        assert close(x.grad, input_gradient)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_permuting_lanes_changes_nothing(seed: int) -> None:
    case = Case(seed)
    # Functions see the order, and sums of many lanes round by it.
    if case.rule not in LINEAR or any(rule not in LINEAR for rule in case.block_rules.values()):
        return
    results = []
    for lanes in (case.lanes, case.lanes[::-1]):
        torch.manual_seed(seed)
        case.net.zero_grad()
        outputs = case.net(case.x, lanes)
        loss = case.loss(outputs)
        if loss.requires_grad:
            loss.backward()
        results.append((outputs, {k: v.grad for k, v in case.net.named_parameters()}))
    for name in case.lanes:
        # Not the same bits: a row's place in a matrix product may decide how its sum is rounded.
        assert torch.allclose(results[0][0][name], results[1][0][name], rtol=1e-12, atol=1e-12)
    for key, gradient in results[0][1].items():
        other = results[1][1][key]
        assert (gradient is None) == (other is None)
        assert gradient is None or close(gradient, other)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_joint_equals_each_alone(seed: int) -> None:
    case = Case(seed)
    case.net.eval()
    outputs = case.net(case.x, nsn.ALL)
    for name in case.kept:
        alone = case.net(case.x, name)
        assert torch.allclose(outputs[name], alone, rtol=1e-12, atol=1e-12)
        assert torch.allclose(case.net.view(name)(case.x), alone, rtol=1e-12, atol=1e-12)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_description_round_trip(seed: int) -> None:
    description = Case(seed).net.description
    again = nsn.Description.from_json(description.to_json(), description.functions())
    assert again == description
    assert again.names == description.names


def small(rule: nsn.merge.Rule, **options: Any) -> nsn.Network:
    return nsn.Network(
        input=(3,),
        blocks={
            "a": nsn.Dense(3, 3, activation="tanh"),
            "b": nsn.Dense(3, 3, activation="sigmoid"),
            "c": nsn.Dense(3, 2),
        },
        subnetworks={"front": ["a", "c"], "back": ["b", "c"], "exit": ["a", "b"]},
        merge=rule,
        dtype=torch.float64,
        **options,
    )


def as_function(net: nsn.Network, names: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The network as a function of its input and parameters, for gradcheck."""
    keys = [key for key, _ in net.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(keys, parameters, strict=True))
        outputs = torch.func.functional_call(net, given, (x, names))
        return tuple(outputs.values())

    return run, (x, *values)


def test_sum_passes_gradcheck() -> None:
    run, inputs = as_function(small(nsn.merge.sum()), nsn.ALL)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("rule", ["sum", "mean", "two_smallest_mean", "owner"])
def test_single_lane_passes_gradgradcheck(rule: str) -> None:
    net = small(make_rule(rule, {}))
    run, inputs = as_function(net, ["base"])
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_relu_dropout_passes_gradgradcheck() -> None:
    net = nsn.Network(
        input=(3,),
        blocks={"a": nsn.Dense(3, 4, activation="relu", dropout=0.5)},
        dtype=torch.float64,
    )
    run, inputs = as_function(net, ["base"])

    def repeatable(*given: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return run(*given)

    assert gradcheck(repeatable, inputs)
    assert gradgradcheck(repeatable, inputs)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sum"])
def test_rules_against_finite_differences(rule: str) -> None:
    """Each lane's loss by central differences, then the rule."""
    weights = {"base": 0.5, "front": -1.0, "back": 2.0, "exit": 1.0}
    net = small(make_rule(rule, weights))
    x = torch.randn(2, 3, dtype=torch.float64)
    sum(output.sin().sum() for output in net(x, nsn.ALL).values()).backward()
    step = 1e-6
    lanes: dict[str, dict[str, Tensor]] = {key: {} for key, _ in net.named_parameters()}
    with torch.no_grad():
        for name in net.subnetworks:
            for key, parameter in net.named_parameters():
                if key.split(".")[0] not in net.description.blocks_of(name):
                    continue
                gradient = torch.zeros_like(parameter)
                for i in range(parameter.numel()):
                    flat = parameter.view(-1)
                    before = flat[i].item()
                    values = []
                    for change in (step, -step):
                        flat[i] = before + change
                        values.append(net(x, name).sin().sum())
                    flat[i] = before
                    gradient.view(-1)[i] = (values[0] - values[1]) / (2 * step)
                lanes[key][name] = gradient
    by_size = sorted(net.subnetworks, key=net.description.parameter_count)
    for key, parameter in net.named_parameters():
        expected = reference.merge(rule, lanes[key], by_size, weights)
        assert torch.allclose(parameter.grad, expected, atol=1e-7), key


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sum"])
def test_second_derivative_is_refused(rule: str) -> None:
    net = small(make_rule(rule, dict.fromkeys(["base", "front", "back", "exit"], 0.5)))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    loss = sum(output.sin().sum() for output in net(x, nsn.ALL).values())
    parameters = list(net.parameters())
    first = torch.autograd.grad(loss, [x, *parameters], create_graph=True)
    plain = small(make_rule(rule, dict.fromkeys(["base", "front", "back", "exit"], 0.5)))
    plain.load_state_dict(net.state_dict())
    sum(output.sin().sum() for output in plain(x, nsn.ALL).values()).backward()
    for gradient, parameter in zip(first[1:], plain.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-12)
    name = net.description.merge.name
    with pytest.raises(RuntimeError, match=f"second derivative through merge rule '{name}'"):
        torch.autograd.grad(sum(each.pow(2).sum() for each in first), parameters)


def test_backward_twice() -> None:
    net = small(nsn.merge.mean())
    x = torch.randn(2, 3, dtype=torch.float64)
    loss = sum(output.sum() for output in net(x, nsn.ALL).values())
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in net.parameters()]
    loss.backward()
    for parameter, gradient in zip(net.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_accumulation_over_joint_passes() -> None:
    net = small(nsn.merge.two_smallest_mean())
    batches = torch.randn(3, 2, 3, dtype=torch.float64)
    total = [torch.zeros_like(p) for p in net.parameters()]
    for batch in batches:
        net.zero_grad()
        sum(output.sin().sum() for output in net(batch, nsn.ALL).values()).backward()
        for sum_, parameter in zip(total, net.parameters(), strict=True):
            sum_ += parameter.grad
    net.zero_grad()
    for batch in batches:
        sum(output.sin().sum() for output in net(batch, nsn.ALL).values()).backward()
    for sum_, parameter in zip(total, net.parameters(), strict=True):
        assert torch.allclose(parameter.grad, sum_, rtol=1e-12)


def test_unused_parameter_has_no_gradient_and_zero_coefficient_has_zero() -> None:
    net = small(nsn.merge.weighted({"base": 1.0, "front": 0.0, "back": 1.0, "exit": 1.0}))
    net(torch.randn(2, 3).double(), ["front"])["front"].sum().backward()
    assert net.b.weight.grad is None
    assert net.a.weight.grad is not None and not net.a.weight.grad.any()


def test_non_contiguous_input_and_input_changed_in_place() -> None:
    net = small(nsn.merge.sum())
    wide = torch.randn(2, 6, dtype=torch.float64)
    x = wide[:, ::2]
    assert torch.allclose(net(x), net(x.contiguous()))
    outputs = net(wide[:, :3], ["base"])
    wide.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs["base"].sum().backward()


def test_one_subnetwork_equals_sequential() -> None:
    net = nsn.Network(
        input=(5,),
        blocks={"a": nsn.Dense(5, 4, activation="relu"), "b": nsn.Dense(4, 2)},
        dtype=torch.float64,
    )
    plain = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    plain.double().load_state_dict(
        dict(zip(plain.state_dict(), net.state_dict().values(), strict=True))
    )
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    assert torch.allclose(net(x), plain(y), rtol=1e-14)
    net(x).pow(2).sum().backward()
    plain(y).pow(2).sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-12)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-12)


def test_same_seed_same_bits() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        net = paper_network(width=32)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.rand(16, 32), torch.randint(10, (16,))
        for _ in range(5):
            optimizer.zero_grad()
            nsn.joint_loss(net(x, nsn.ALL), y).backward()
            optimizer.step()
        results.append([parameter.detach() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_outputs_share_no_storage() -> None:
    net = small(nsn.merge.mean())
    outputs = net(torch.randn(2, 3).double(), nsn.ALL)
    storages = {output.untyped_storage().data_ptr() for output in outputs.values()}
    assert len(storages) == len(outputs)
    assert all(output._base is None for output in outputs.values())
    for output in outputs.values():
        output.mul_(2)  # allowed, since nobody else reads it
    sum(output.sum() for output in outputs.values()).backward()
