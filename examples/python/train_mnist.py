"""Trains a network and the two smaller networks that live inside it on MNIST.

    python train_mnist.py DIRECTORY [EPOCHS] [SEED] [STEPS] [CHECKPOINT]

DIRECTORY holds the four idx files of MNIST. STEPS, if not 0, ends training early. The same program
as examples/cpp/train_mnist.cpp; ends with the same weights.
"""

import sys
from pathlib import Path

import torch

import nsn
from nsn.training.images import Images

BATCH = 128


def make_network() -> nsn.Network:
    """The paper's network: 784-784-784-10."""
    init = {"weight_init": "xavier_uniform", "bias_init": 0.01}
    return nsn.Network(
        input=(784,),
        blocks={
            "hidden1": nsn.Dense(784, 784, activation="relu", dropout=0.2, **init),
            "hidden2": nsn.Dense(784, 784, activation="relu", dropout=0.5, **init),
            "output": nsn.Dense(784, 10, **init),
        },
        subnetworks={
            "sub1": nsn.Subnetwork(["hidden2", "output"], dropout={"hidden2": 0.2}),
            "sub2": ["output"],
        },
        merge=nsn.merge.two_smallest_mean(),
    )


def main(directory: str, epochs: int = 3, seed: int = 1, most: int = 0, path: str = "") -> None:
    """Trains, evaluates all three from the same weights, saves."""
    torch.manual_seed(seed)
    train, test = (Images.read(Path(directory), half, (784,)) for half in ("train", "t10k"))
    images, labels = train.batch(train.ordered())
    test_images, test_labels = test.batch(test.ordered())

    net = make_network()
    groups = nsn.param_groups(net, weight_decay=9e-5, of="base")
    optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9)

    steps = 0
    for epoch in range(1, epochs + 1):
        net.train()
        losses = []
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = nsn.joint_loss(net(images[batch], nsn.ALL), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            steps += 1
            if steps == most:
                break
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}")
        if steps == most:
            break

    for name in net.subnetworks:
        correct = net.view(name)(test_images).argmax(1).eq(test_labels).sum().item()
        count = net.description.parameter_count(name)
        print(f"{name:5} accuracy {correct / len(test_labels):.4f}, {count} parameters")
    if path:
        nsn.save(net, path)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:6])
