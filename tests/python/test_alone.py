"""The smallest exactly as if alone: the rule `owner` gives it all that it covers.

By lane, since a joint pass lays the lanes' products together, whose sums may be rounded otherwise.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nsn


def network(drops: float) -> nsn.Network:
    torch.manual_seed(4)
    return nsn.Network(
        input=(24,),
        blocks={
            "hidden1": nsn.Dense(24, 24, activation="relu", dropout=drops),
            "hidden2": nsn.Dense(24, 24, activation="relu", dropout=drops),
            "output": nsn.Dense(24, 10),
        },
        subnetworks={
            "shallow": ["hidden2", "output"],
            "small": nsn.Subnetwork(["hidden2", "output"], width={"hidden2": 8}),
        },
        merge=nsn.merge.owner(),
    )


def trained(drops: float, lanes: list[str], by: str, steps: int = 12) -> dict[str, Tensor]:
    """The weights after some steps of the same draws."""
    net = network(drops)
    options: dict[str, object] = {"lr": 0.1}
    if by == "SGD":
        options |= {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    optimizer = getattr(torch.optim, by)(net.parameters(), **options)
    for step in range(steps):
        torch.manual_seed(step)  # of the batch, and of what dropout drops
        x, y = torch.randn(32, 24), torch.randint(10, (32,))
        optimizer.zero_grad()
        net.backward_by_lane(x, lambda name, output, y=y: F.cross_entropy(output, y), lanes)
        optimizer.step()
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.parametrize("by", ["SGD", "AdamW"])
@pytest.mark.parametrize("drops", [0.0, 0.5])
def test_the_smallest_is_bit_for_bit_as_if_alone(drops: float, by: str) -> None:
    together = trained(drops, ["base", "shallow", "small"], by)
    alone = trained(drops, ["small"], by)
    assert torch.equal(together["hidden2.weight"][:8], alone["hidden2.weight"][:8])
    assert torch.equal(together["hidden2.bias"][:8], alone["hidden2.bias"][:8])
    assert torch.equal(together["output.weight"][:, :8], alone["output.weight"][:, :8])
    assert torch.equal(together["output.bias"], alone["output.bias"])
    # The others train what it leaves.
    start = network(drops)
    assert not torch.equal(together["hidden1.weight"], start.get_parameter("hidden1.weight"))
    assert not torch.equal(together["hidden2.weight"][8:], alone["hidden2.weight"][8:])


def test_so_is_the_smallest_of_the_papers_network() -> None:
    def weights(lanes: list[str]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        net = nsn.Network(
            input=(784,),
            blocks={
                "hidden1": nsn.Dense(784, 784, activation="relu", dropout=0.2),
                "hidden2": nsn.Dense(784, 784, activation="relu", dropout=0.5),
                "output": nsn.Dense(784, 10),
            },
            subnetworks={"sub1": ["hidden2", "output"], "sub2": ["output"]},
            merge=nsn.merge.owner(),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for step in range(4):
            torch.manual_seed(step)
            x, y = torch.rand(128, 784), torch.randint(10, (128,))
            optimizer.zero_grad()
            net.backward_by_lane(x, lambda name, output, y=y: F.cross_entropy(output, y), lanes)
            optimizer.step()
        return net.get_parameter("output.weight"), net.get_parameter("output.bias")

    for together, alone in zip(weights(["base", "sub1", "sub2"]), weights(["sub2"]), strict=True):
        assert torch.equal(together, alone)
