import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nsn

# The worked example of nsn.merge: gradients 6 (base), 3 (sub1), 1 (sub2, the smallest).
EXAMPLE = {"base": 6.0, "sub1": 3.0, "sub2": 1.0}
NAMES = list(EXAMPLE)


def merged(
    rule: nsn.merge.Rule, slices: list[tuple[int, ...]], names: list[str] | None = None
) -> Tensor:
    """The merged gradient where lane l's gradient is the number of EXAMPLE all over its slice."""
    shape = [max(extent) for extent in zip(*slices, strict=True)]
    parameter = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    lanes = nsn.share(parameter, slices, rule, names or NAMES[: len(slices)])
    sum(EXAMPLE[n] * lane.sum() for n, lane in zip(names or NAMES, lanes, strict=False)).backward()
    return parameter.grad


NESTED = [(4,), (3,), (2,)]  # elements 0, 1: all; 2: base and sub1; 3: base alone


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (nsn.merge.sum(), [10, 10, 9, 6]),
        (nsn.merge.mean(), [10 / 3, 10 / 3, 4.5, 6]),
        (nsn.merge.two_smallest_mean(), [2, 2, 4.5, 6]),
        (nsn.merge.owner(), [1, 1, 3, 6]),
        (nsn.merge.weighted({"base": 0.5, "sub1": 1, "sub2": 2}), [8, 8, 6, 3]),
    ],
    ids=lambda value: value.name if isinstance(value, nsn.merge.Rule) else "",
)
def test_worked_example_on_nested_slices(rule: nsn.merge.Rule, expected: list[float]) -> None:
    assert merged(rule, NESTED).tolist() == pytest.approx(expected)


def test_crossing_slices() -> None:
    """base 2 x 2, sub1 1 x 2, sub2 2 x 1: each quarter is covered by other lanes."""
    slices = [(2, 2), (1, 2), (2, 1)]
    assert merged(nsn.merge.mean(), slices).tolist() == [[10 / 3, 4.5], [3.5, 6]]
    assert merged(nsn.merge.owner(), slices).tolist() == [[3, 3], [1, 6]]  # sub1 is given first


def test_an_element_that_no_lane_covers_gets_an_exact_zero() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    nsn.share(parameter, [(2,), (1,)], nsn.merge.mean())[0].sum().backward()
    assert parameter.grad.tolist() == [0.5, 1, 0]


def test_a_function_gets_names_slices_and_gradients() -> None:
    seen: list[nsn.merge.LaneGradient] = []

    def largest(lanes: list[nsn.merge.LaneGradient]) -> Tensor:
        seen.extend(lanes)
        result = torch.zeros(lanes[0].parameter_shape, dtype=torch.float64)
        for lane in lanes:
            part = result[: lane.slice[0]]
            torch.maximum(part, lane.gradient, out=part)
        return result

    assert merged(nsn.merge.function(largest), NESTED).tolist() == [6, 6, 6, 6]
    assert [(lane.name, lane.slice) for lane in seen] == list(zip(NAMES, NESTED, strict=True))
    assert [tuple(lane.gradient.shape) for lane in seen] == NESTED
    assert seen[2].parameter_shape == (4,)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda lanes: lanes[2].gradient,
            ValueError,
            r"gradient of shape \[2\], .* has shape \[4\]",
        ),
        (
            lambda lanes: 3,
            TypeError,
            "the rule returned a int, but must return the merged gradient",
        ),
        (lambda lanes: {}["nothing"], KeyError, "nothing"),
    ],
)
def test_a_function_that_fails(function: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        merged(nsn.merge.function(function, "mine"), NESTED)


def test_lanes_without_a_gradient() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    nsn.share(parameter, [(2,), (2,)], nsn.merge.mean())[0].sum().backward()
    assert parameter.grad.tolist() == [0.5, 0.5]  # the other lane counts as zero
    parameter.grad = None
    lanes = nsn.share(parameter, [(2,), (2,)], nsn.merge.mean())
    (lanes[0].sum().detach() + torch.zeros((), requires_grad=True)).backward()
    assert parameter.grad is None


def test_with_a_convolution() -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    wide, narrow = nsn.share(weight, [(4, 3, 3, 3), (2, 2, 3, 3)], nsn.merge.mean())
    (F.conv2d(x, wide).sin().sum() + F.conv2d(x[:, :2], narrow).sin().sum()).backward()
    a = weight.detach().clone().requires_grad_()
    b = weight.detach().clone().requires_grad_()
    F.conv2d(x, a).sin().sum().backward()
    F.conv2d(x[:, :2], b[:2, :2]).sin().sum().backward()
    expected = a.grad.clone()
    expected[:2, :2] = (a.grad + b.grad)[:2, :2] / 2
    assert torch.allclose(weight.grad, expected, rtol=1e-12)


def test_results_are_views_and_in_place_updates_are_noticed() -> None:
    parameter = torch.randn(3, 2, requires_grad=True)
    whole, part = nsn.share(parameter, [(3, 2), (2, 1)], nsn.merge.sum())
    assert whole.data_ptr() == part.data_ptr() == parameter.data_ptr()
    assert tuple(part.shape) == (2, 1)
    loss = whole.pow(2).sum()
    with torch.no_grad():
        parameter.add_(1)
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        loss.backward()


def test_second_derivative() -> None:
    parameter = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def run(parameter: Tensor) -> Tensor:
        a, b = nsn.share(parameter, [(3, 2), (2, 1)], nsn.merge.sum())
        return a.sin().sum() + b.cos().sum()

    assert torch.autograd.gradcheck(run, parameter)
    assert torch.autograd.gradgradcheck(run, parameter)
    a, b = nsn.share(parameter, [(3, 2), (2, 1)], nsn.merge.mean())
    (first,) = torch.autograd.grad(a.sin().sum() + b.cos().sum(), parameter, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative through merge rule 'mean'"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("slices", "names", "message"),
    [
        ([], None, "at least one slice"),
        ([(3,)], None, r"slice \[3\] does not fit the parameter of shape \[3, 2\]"),
        ([(4, 2)], None, r"slice \[4, 2\] does not fit"),
        ([(0, 2)], None, r"slice \[0, 2\] does not fit"),
        ([(3, 2)], ["a", "b"], "one name for each slice, but got 2 names and 1 slices"),
    ],
)
def test_errors(slices: list[tuple[int, ...]], names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nsn.share(torch.zeros(3, 2), slices, nsn.merge.sum(), names)
