"""Batch norm by the batch's statistics: the kernels for float32, against torch in float64."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nsn

SEEDS = st.integers(0, 2**32 - 1)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest of what is expected."""
    return float((found.double() - expected).abs().max() / (expected.abs().max() + 1e-30))


class Case:
    """A random batch, in some layout, with its gradient."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed)
        torch.manual_seed(seed)
        self.features = pick.choice([1, 2, 3, 5, 8, 12, 16, 24, 48, 70])
        self.spatial = pick.choice([(), (1, 1), (2, 3), (5, 5), (9, 4)])
        batch = pick.choice([2, 3, 7, 40, 130])
        shape = (batch, self.features, *self.spatial)
        offset, spread = pick.choice([0.0, 3.0, -50.0]), pick.choice([0.1, 1.0, 4.0])
        x, dy = torch.randn(shape) * spread + offset, torch.randn(shape)
        if self.spatial and pick.random() < 0.8:
            x = x.contiguous(memory_format=torch.channels_last)
            dy = dy.contiguous(memory_format=torch.channels_last) if pick.random() < 0.5 else dy
        self.x, self.dy = x.requires_grad_(), dy
        self.affine = pick.random() < 0.7
        self.net = nsn.Network(
            input=shape[1:], blocks={"norm": nsn.BatchNorm(self.features, affine=self.affine)}
        )
        if self.affine:
            with torch.no_grad():
                self.net.norm.weight.normal_()
                self.net.norm.bias.normal_()

    def exact(self) -> tuple[torch.nn.Module, Tensor]:
        """torch's module and input in float64."""
        module = (torch.nn.BatchNorm2d if self.spatial else torch.nn.BatchNorm1d)(
            self.features, affine=self.affine
        ).double()
        state = {key.removeprefix("norm."): each for key, each in self.net.state_dict().items()}
        module.load_state_dict(state)
        return module, self.x.detach().double().requires_grad_()


@settings(max_examples=300)
@given(SEEDS)
def test_agrees_with_float64(seed: int) -> None:
    case = Case(seed)
    module, x = case.exact()
    y, expected = case.net(case.x), module(x)
    y.backward(case.dy)
    expected.backward(case.dy.double())
    # float32 resolves a feature's x to 6e-8 of its size, which may be large beside its spread.
    variances = x.detach().transpose(0, 1).flatten(1).var(1, unbiased=False)
    size = float(x.detach().abs().max())
    tolerance = 1e-6 * max(1.0, size / float((variances.min() + 1e-5).sqrt()))
    assert off(y.detach(), expected.detach()) < 4 * tolerance
    # The gradient of x is what is left of terms of this size.
    inverse = (variances + 1e-5).rsqrt()
    weight = module.weight.detach().abs() if case.affine else 1.0
    terms = float((weight * inverse).max() * case.dy.abs().max())
    assert float((case.x.grad - x.grad).abs().max()) < 4 * tolerance * terms
    for (name, own), each in zip(case.net.named_parameters(), module.parameters(), strict=True):
        assert float((own.grad - each.grad).abs().max()) < tolerance * 4 * y.numel() ** 0.5, name
    mean_off = (case.net.norm.running_mean - module.running_mean).abs().max()
    assert float(mean_off) < 1e-7 * size  # of which momentum takes a tenth
    assert off(case.net.norm.running_var, module.running_var) < 4 * tolerance


@settings(max_examples=100)
@given(SEEDS)
def test_second_derivatives(seed: int) -> None:
    case = Case(seed)
    module, x = case.exact()
    deviations = x.detach().transpose(0, 1).flatten(1).std(1)
    if float(deviations.min()) < 0.3 or float(x.detach().abs().max()) > 20:
        return  # second derivatives grow with the third power of what float32 has lost
    results = []
    for forward, batch in ((case.net, case.x), (module, x)):
        loss = forward(batch).sin().sum()
        (first,) = torch.autograd.grad(loss, batch, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), batch)[0])
    scale = float(results[1].abs().max())
    assert float((results[0] - results[1]).abs().max()) <= 1e-2 * scale + 1e-3


def test_sums_over_many_positions_are_exact() -> None:
    x = (torch.randn(128, 16, 14, 14) * 0.3 + 1).contiguous(memory_format=torch.channels_last)
    net = nsn.Network(input=(16, 14, 14), blocks={"norm": nsn.BatchNorm(16)})
    expected = torch.nn.functional.batch_norm(x.double(), None, None, training=True)
    assert float((net(x).detach() - expected).norm() / expected.norm()) < 3e-7


def test_threads_do_not_change_a_bit() -> None:
    x = torch.randn(64, 24, 14, 14).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            net = nsn.Network(input=(24, 14, 14), blocks={"norm": nsn.BatchNorm(24)})
            given = x.clone(memory_format=torch.channels_last).requires_grad_()
            y = net(given)
            y.sin().sum().backward()
            results.append((y.detach(), given.grad, net.norm.weight.grad))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    x = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    x[3, 2, 1, 1] = value
    net = nsn.Network(input=(4, 3, 3), blocks={"norm": nsn.BatchNorm(4)})
    y = net(x)
    assert y[:, 2].isnan().all()
    assert y[:, :2].isfinite().all() and y[:, 3].isfinite().all()
