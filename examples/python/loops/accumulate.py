"""Gradient accumulation and clipping: a large batch in parts, its gradient bounded in norm.

python accumulate.py
"""

from collections.abc import Sequence

import torch
from common import accuracies, make_data, make_network, show
from torch import Tensor
from torch.utils.data import DataLoader

import nsn


def step(
    net: nsn.Network,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[tuple[Tensor, Tensor]],
    turn: nsn.schedule.Turn,
    most: float,
) -> Tensor:
    """One step over all `parts`, with the gradient of their mean loss.

    All parts run the same sub-networks: a schedule is asked once a step. Each backward merges its
    own part's gradients, which for linear rules adds up to those of the whole batch. What is
    clipped is the merged gradient, which is what the optimizer sees. Batch norms normalise by
    part, as in torch.

    Returns:
        The norm before clipping.
    """
    optimizer.zero_grad()
    for x, y in parts:
        loss = nsn.joint_loss(net(x, turn.names), y, weights=turn.weights)
        (loss / len(parts)).backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), most)
    optimizer.step()
    return norm


def main() -> dict[str, float]:
    """Trains with batches of 4 x 32."""
    torch.manual_seed(1)
    net = make_network()
    loader = DataLoader(make_data(), batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = nsn.schedule.sandwich(net, others=1)
    steps = 0
    for epoch in range(8):
        batches = list(loader)
        for first in range(0, len(batches), 4):
            turn = schedule(steps, epoch)
            step(net, optimizer, batches[first : first + 4], turn, most=1.0)
            steps += 1
    return accuracies(net, make_data(seed=2))


if __name__ == "__main__":
    show(main())
