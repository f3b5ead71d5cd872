"""What is done to weights between steps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import nsn


def network() -> nsn.Network:
    return nsn.Network(
        input=(4,),
        blocks={
            "hidden": nsn.Sequence({"in": nsn.Dense(4, 6), "norm": nsn.BatchNorm(6)}),
            "out": nsn.Dense(6, 3),
        },
        subnetworks={"half": nsn.Subnetwork(["hidden", "out"], width={"hidden": {"in.out": 3}})},
    )


def test_rows_are_bounded_as_renorm_does() -> None:
    net = network()
    weight = net.get_parameter("hidden.in.weight")
    with torch.no_grad():
        weight.normal_(0, 2)
    before, out = weight.detach().clone(), net.get_parameter("out.weight").detach().clone()
    nsn.bound_row_norms(net, 2.5, ["hidden"])
    assert torch.allclose(weight, torch.renorm(before, 2, 0, 2.5))
    assert float(weight.detach().norm(dim=1).max()) <= 2.5 + 1e-5
    assert torch.equal(net.get_parameter("out.weight"), out)


def test_the_worked_example() -> None:
    net = nsn.Network(input=(2,), blocks={"a": nsn.Dense(2, 1, bias=False)})
    with torch.no_grad():
        net.get_parameter("a.weight").copy_(torch.tensor([[3.0, 4.0]]))
    nsn.bound_row_norms(net, 2.5, ["a"])
    assert torch.allclose(net.get_parameter("a.weight"), torch.tensor([[1.5, 2.0]]), atol=1e-5)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_cannot_be_bounded_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="must be positive and finite, but is -1"):
        nsn.bound_row_norms(net, -1, ["out"])
    with pytest.raises(ValueError, match="no block 'hiden'. It has 'hidden', 'out'"):
        nsn.bound_row_norms(net, 1, ["hiden"])
    with pytest.raises(TypeError, match="must be a list of blocks' names, but is a str"):
        nsn.bound_row_norms(net, 1, "out")
    parametrize.register_parametrization(net.out, "weight", Doubled())
    for mode in (torch.enable_grad, torch.no_grad):
        with (
            mode(),
            pytest.raises(ValueError, match=r"'out.weight' is computed from another tensor"),
        ):
            nsn.bound_row_norms(net, 1, ["out"])


def test_rows_of_transposed_convolutions_feed_outputs() -> None:
    net = nsn.Network(
        input=(3, 4, 4),
        blocks={"up": nsn.Sequence({"t": nsn.ConvTranspose2d(3, 5, 2, stride=2)})},
    )
    weight = net.get_parameter("up.t.weight")
    with torch.no_grad():
        weight.normal_(0, 3)
    before = weight.detach().clone()
    nsn.bound_row_norms(net, 1.5, ["up"])
    assert torch.allclose(weight, torch.renorm(before, 2, 1, 1.5))


def test_torchs_average_takes_networks_and_their_statistics() -> None:
    """As docs/training.md says: evaluated, saved and loaded."""
    net = network()
    average = AveragedModel(net, multi_avg_fn=nsn.average_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected: dict[str, Tensor] = {}
    for step in range(3):
        optimizer.zero_grad()
        nsn.joint_loss(net(torch.randn(8, 4), nsn.ALL), torch.randint(3, (8,))).backward()
        optimizer.step()
        average.update_parameters(net)
        for name, value in net.state_dict().items():
            now = value.double()
            expected[name] = now if step == 0 else 0.9 * expected[name] + 0.1 * now
    made = average.module
    assert isinstance(made, nsn.Network)
    for name, value in made.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
        else:
            assert torch.equal(value, net.state_dict()[name]), name
    assert not torch.equal(made.get_parameter("out.weight"), net.get_parameter("out.weight"))
    assert torch.isfinite(made.eval().view("half")(torch.randn(2, 4))).all()
