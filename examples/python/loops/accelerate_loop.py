"""Accelerate: the same loop on whatever `accelerate launch` gives, accumulation included.

python accelerate_loop.py
accelerate launch accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from common import accuracies, make_data, make_network, show
from torch.utils.data import DataLoader

import nsn


def main() -> dict[str, float]:
    """Trains with a schedule; all batches of one step run the same sub-networks."""
    torch.manual_seed(1)
    # Sub-networks that do not run leave parameters unused, for which DDP has to look.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[unused])
    net = make_network()
    optimizer = torch.optim.SGD(nsn.param_groups(net, 1e-4), lr=0.1, momentum=0.9)
    loader = DataLoader(make_data(), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    schedule = nsn.schedule.sandwich(net, others=1)
    step = 0
    for epoch in range(5):
        for x, y in loader:
            turn = schedule(step, epoch)
            with accelerator.accumulate(model):
                accelerator.backward(nsn.joint_loss(model(x, turn.names), y, weights=turn.weights))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                    step += 1
                optimizer.step()
                optimizer.zero_grad()
    return accuracies(accelerator.unwrap_model(model), make_data(seed=2))


if __name__ == "__main__":
    show(main())
