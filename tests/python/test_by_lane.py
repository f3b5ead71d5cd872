"""Joint steps that run one sub-network after the other: the same gradients in less memory."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import nsn
import reference
import test_gradients
from nsn import _C
from test_elastic import SEEDS, Case, Expected, close, largest

REFUSALS = ("merge rule", "running statistics")


def by_lane(case: Case, x: Tensor) -> bool:
    """Runs a case's step; False where it is refused, which leaves nothing behind."""

    def loss(name: str, output: Tensor) -> Tensor:
        if name in case.in_loss:
            return case.loss_of(name, output)
        return torch.zeros((), dtype=torch.float64)

    try:
        losses = case.net.backward_by_lane(x, loss, case.lanes)
    except ValueError as error:
        assert any(each in str(error) for each in REFUSALS), error
        return False
    assert list(losses) == case.lanes
    assert not any(each.requires_grad for each in losses.values())
    return True


@settings(max_examples=500)
@given(SEEDS)
def test_random_networks(seed: int) -> None:
    case = Case(seed)
    torch.manual_seed(case.seed)
    expected = Expected(case, _C.draw_seed())
    x = case.x.clone()
    if x.is_floating_point():
        x.requires_grad_()
    trains = any(
        parameter.requires_grad
        for key, parameter in case.net.named_parameters()
        if any(key in expected.lanes[name].uses for name in case.in_loss)
    )
    if not trains:
        return
    torch.manual_seed(case.seed)
    if not by_lane(case, x):
        return
    for name, buffer in case.net.named_buffers():
        assert close(buffer.double(), expected.buffers[name].double()), name
    scale = largest(each for each in expected.gradients.values() if each is not None)
    for key, parameter in case.net.named_parameters():
        gradient = expected.gradients[key]
        if gradient is None:
            assert parameter.grad is None, key
            continue
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        rule = reference.rule_of(case.document, key)
        assert close(found, gradient, scale), (key, rule)
    if expected.input_gradient is not None and case.in_loss:
        assert x.grad is not None and close(x.grad, expected.input_gradient, scale)


@settings(max_examples=200)
@given(SEEDS)
def test_random_mlps_with_dropout(seed: int) -> None:
    case = test_gradients.Case(seed)
    if not case.net.description.merge.is_linear or case.block_rules:
        return
    twin = copy.deepcopy(case.net)

    def term(name: str, output: Tensor) -> Tensor:
        difference = output - case.targets[name]
        return case.loss_weights[name] * difference.pow(2).sum()

    torch.manual_seed(seed)
    outputs = twin(case.x, case.lanes)
    total = torch.stack([term(name, output) for name, output in outputs.items()]).sum()
    if not total.requires_grad:
        return
    total.backward()
    torch.manual_seed(seed)
    losses = case.net.backward_by_lane(case.x, term, case.lanes)
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), total.detach())
    for (key, own), joint in zip(case.net.named_parameters(), twin.parameters(), strict=True):
        if joint.grad is None:
            assert own.grad is None or not own.grad.any(), key
        else:
            torch.testing.assert_close(own.grad, joint.grad, rtol=1e-9, atol=1e-9, msg=key)


def cnn(widths: tuple[float, ...] = (0.75, 0.5, 0.25), **norm: object) -> nsn.Network:
    options = {"per_subnetwork": ["affine", "statistics"], **norm}
    stages = {
        f"stage{i}": nsn.Sequence(
            {
                "conv": nsn.Conv2d(given, 16, 3, padding=1, bias=False),
                "norm": nsn.BatchNorm(16, **options),  # type: ignore[arg-type]
                "relu": nsn.Activation("relu"),
            }
        )
        for i, given in enumerate((1, 16, 16, 16))
    }
    blocks = {**stages, "pool": nsn.GlobalAvgPool(), "output": nsn.Dense(16, 10)}
    return nsn.Network(
        input=(1, 16, 16),
        blocks=blocks,
        subnetworks={
            f"w{place}": nsn.Subnetwork(
                list(blocks), width={name: {"conv.out": width} for name in stages}
            )
            for place, width in enumerate(widths)
        },
        merge=nsn.merge.mean(),
    )


def peak(step: object) -> int:
    """The most bytes that a step has allocated at once."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()  # type: ignore[operator]
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(
        (e for e in events if e.name() == "[memory]"), key=lambda each: each.start_ns()
    ):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_memory_is_that_of_one_network() -> None:
    net, x, y = cnn(), torch.rand(32, 1, 16, 16), torch.randint(10, (32,))

    def loss(_: str, output: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, y)

    def alone() -> None:
        loss("base", net(x, "base")).backward()

    def joint() -> None:
        nsn.joint_loss(net(x, nsn.ALL), y).backward()

    peaks = {}
    for name, step in (
        ("alone", alone),
        ("joint", joint),
        ("by lane", lambda: net.backward_by_lane(x, loss)),
    ):
        step()
        net.zero_grad()
        peaks[name] = peak(step)
        net.zero_grad()
    assert peaks["by lane"] <= 1.1 * peaks["alone"], peaks
    assert peaks["joint"] >= 1.7 * peaks["alone"], peaks


def test_adds_to_gradients_that_are_there() -> None:
    net, x = cnn().double(), torch.rand(4, 1, 16, 16).double()
    net.backward_by_lane(x, lambda _, output: output.sum())
    once = {key: each.grad.clone() for key, each in net.named_parameters()}
    net.backward_by_lane(x, lambda _, output: output.sum())
    for key, each in net.named_parameters():
        torch.testing.assert_close(each.grad, 2 * once[key])


def test_what_cannot_be_is_refused() -> None:
    x = torch.rand(4, 1, 16, 16)
    shared = cnn(per_subnetwork=["affine"])
    with pytest.raises(
        ValueError,
        match="in training the running statistics 'stage0.norm.running_mean' are updated once for "
        "all sub-networks that share them, but these run one after the other. Give each its own "
        'with per_subnetwork={"statistics"}',
    ):
        shared.backward_by_lane(x, lambda _, output: output.sum())
    with pytest.raises(
        ValueError, match=r"must return a scalar tensor, but returned shape \(4, 10"
    ):
        cnn().backward_by_lane(x, lambda _, output: output)
    with pytest.raises(ValueError, match="must return a scalar tensor, but returned 1.0"):
        cnn().backward_by_lane(x, lambda _, output: 1.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="asked for twice"):
        cnn().backward_by_lane(x, lambda _, output: output.sum(), ["base", "base"])
    rule = nsn.merge.function(lambda lanes: lanes[0].gradient, "first")
    net = nsn.Network(
        input=(3,),
        blocks={"a": nsn.Dense(3, 3), "b": nsn.Dense(3, 3)},
        subnetworks={"small": ["b"]},
        merge=rule,
    )
    with pytest.raises(
        ValueError,
        match="parameter 'b.weight' has the merge rule 'first', a function of all gradients at "
        "once, but these come one after the other. Use a linear rule, or a joint pass",
    ):
        net.backward_by_lane(torch.rand(2, 3), lambda _, output: output.sum(), ["small"])


def test_frozen_networks_say_what_torch_says() -> None:
    net = cnn().requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        net.backward_by_lane(torch.rand(2, 1, 16, 16), lambda _, output: output.sum())
