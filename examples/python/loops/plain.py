"""A loop in plain PyTorch: sandwich schedule, base as a teacher, a moving average of the weights.

python plain.py
"""

import torch
from common import accuracies, make_data, make_network, show
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

import nsn


def main() -> dict[str, float]:
    """Trains, and returns what the average of the weights reaches."""
    torch.manual_seed(1)
    net = make_network()
    loader = DataLoader(make_data(), batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(nsn.param_groups(net, 1e-4), lr=0.05, momentum=0.9)
    average = AveragedModel(net, multi_avg_fn=nsn.average_fn(0.98), use_buffers=True)
    schedule = nsn.schedule.sandwich(net, others=1)  # base, the smallest, and one other
    teacher = nsn.teach.base(net, weight=0.3)
    step = 0
    for epoch in range(5):
        for x, y in loader:
            turn = schedule(step, epoch)
            optimizer.zero_grad()
            loss = nsn.joint_loss(net(x, turn.names), y, weights=turn.weights, teach=teacher)
            loss.backward()
            optimizer.step()
            average.update_parameters(net)
            step += 1
    return accuracies(average.module, make_data(seed=2))


if __name__ == "__main__":
    show(main())
