"""Lightning: a module that trains all sub-networks, and a callback that logs and recalibrates.

python lightning_loop.py
"""

from typing import Any

import lightning
import torch
from common import make_data, make_network, show
from torch import Tensor
from torch.utils.data import DataLoader

import nsn


class JointModule(lightning.LightningModule):
    """Any network of nsn as a LightningModule; the schedule says who runs in which step."""

    def __init__(self, net: nsn.Network, lr: float = 0.05, others: int = 1) -> None:
        super().__init__()
        self.net = net
        self.lr = lr
        self.others = others

    def setup(self, stage: str) -> None:
        """Makes the schedule here, where processes know each other: all ranks run the same.

        With several of them also set strategy="ddp_find_unused_parameters_true".
        """
        self.schedule = nsn.schedule.sandwich(self.net, self.others)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Sum of the losses of those who run."""
        x, y = batch
        turn = self.schedule(self.global_step, self.current_epoch)
        return nsn.joint_loss(self.net(x, turn.names), y, weights=turn.weights)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> dict[str, Any]:
        """All outputs, for callbacks."""
        x, y = batch
        return {"outputs": self.net(x, nsn.ALL), "y": y}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(nsn.param_groups(self.net, 1e-4), lr=self.lr, momentum=0.9)


class EachSubnetwork(lightning.Callback):
    """Logs `accuracy/NAME` of each sub-network, by running statistics that are made anew.

    Args:
        batches: of the training data, from which batch norms' statistics are made before each
            validation; those who ran seldom have them from long ago otherwise.
    """

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def on_validation_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            module.net.recalibrate(self.batches)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any
    ) -> None:
        for name, output in outputs["outputs"].items():
            right = (output.argmax(1) == outputs["y"]).float().mean()
            module.log(f"accuracy/{name}", right, on_epoch=True, batch_size=len(output))


def main(folder: str | None = None) -> dict[str, float]:
    """Trains; logs are written to `folder`, if it is given."""
    lightning.seed_everything(1, verbose=False)
    module = JointModule(make_network())
    data = make_data()
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[EachSubnetwork([x for x, _ in DataLoader(data, batch_size=256)])],
        logger=False if folder is None else lightning.pytorch.loggers.CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        DataLoader(data, batch_size=64, shuffle=True),
        DataLoader(make_data(seed=2), batch_size=512),
    )
    metrics = trainer.callback_metrics
    return {name: metrics[f"accuracy/{name}"].item() for name in module.net.subnetworks}


if __name__ == "__main__":
    show(main())
