"""DistributedDataParallel with sampled sub-networks: two processes on one machine.

    torchrun --nproc-per-node 2 ddp.py

- A schedule's seed is the first rank's, so that all ranks run the same sub-networks: make it after
  `init_process_group`. Ranks that ran others would wait for each other's gradients forever.
- Parameters that none of a step's sub-networks uses get no gradient: `find_unused_parameters=True`
  lets DDP look for them in each step. Where all run in every step it can be left out.
- Running statistics are each process's own; those of the first rank are saved.
"""

import torch
import torch.distributed as dist
from common import accuracies, make_data, make_network, show
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import nsn


def main() -> dict[str, float]:
    """Trains; torchrun's environment says who this process is."""
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    torch.set_num_threads(1)
    data = make_data()
    sampler = DistributedSampler(data, seed=1)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    net = make_network()
    model = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(nsn.param_groups(net, 1e-4), lr=0.05, momentum=0.9)
    schedule = nsn.schedule.random(net, count=2)
    step = 0
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for x, y in loader:
            turn = schedule(step, epoch)
            optimizer.zero_grad()
            nsn.joint_loss(model(x, turn.names), y, weights=turn.weights).backward()
            optimizer.step()
            step += 1
    scores = accuracies(net, make_data(seed=2))
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    for weight in weights:
        dist.broadcast(weight, src=0)
    same = torch.tensor(all(map(torch.equal, weights, net.parameters())), dtype=torch.int32)
    dist.all_reduce(same, dist.ReduceOp.MIN)
    if dist.get_rank() == 0:  # alone, since the lines of two processes may run into each other
        show(scores)
        print("the same weights on both" if same else "different weights")
    dist.destroy_process_group()
    return scores


if __name__ == "__main__":
    main()
