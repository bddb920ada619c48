"""Distil from a cache with PyTorch Lightning. Usage: lightning_distill.py CACHE."""

import sys

import dhkd
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from torch.optim import SGD
from torch.utils.data import DataLoader


class Distillation(LightningModule):
    def __init__(self, samples, temperature):
        super().__init__()
        self.samples, self.temperature = samples, temperature
        self.student = dhkd.build_network("resnet8", samples.num_classes)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05, momentum=0.9)

    def on_train_epoch_start(self):
        self.samples.set_epoch(self.current_epoch)  # selects each sample's view

    def training_step(self, batch, _):
        images, labels, teacher = batch
        logits = self.student(images)
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * dhkd.losses.kd(logits, teacher, self.temperature)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        loss, accuracy = (float(self.trainer.callback_metrics[name]) for name in ("loss", "accuracy"))
        self.print(f"epoch {self.current_epoch}: loss {loss:.3f}, accuracy {accuracy:.3f}")


samples = dhkd.DistillationSet.from_cache(sys.argv[1], temperature=4.0)
Trainer(max_epochs=8, logger=False).fit(Distillation(samples, 4.0), DataLoader(samples, batch_size=64, shuffle=True))
