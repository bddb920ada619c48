"""Distil with PyTorch Lightning from a cache of the preset 'digits': lightning_distill.py CACHE [KEY=VALUE …]."""

import sys

import torch.nn.functional as F
from dhkd.pipeline.api import DistillationSet
from dhkd.stages.models import build_network
from pytorch_lightning import LightningModule, Trainer
from torch.optim import SGD
from torch.utils.data import DataLoader


class Distillation(LightningModule):
    def __init__(self, samples, temperature):
        super().__init__()
        self.student, self.samples, self.temperature = build_network("resnet8", 10), samples, temperature

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05, momentum=0.9)

    def on_train_epoch_start(self):
        self.samples.set_epoch(self.current_epoch)  # selects each sample's view

    def training_step(self, batch, _):
        images, labels, teacher = batch
        logits = self.student(images)
        p, q = (F.log_softmax(values / self.temperature, dim=1) for values in (teacher, logits))
        kd = self.temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * kd
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        loss, accuracy = (float(self.trainer.callback_metrics[name]) for name in ("loss", "accuracy"))
        self.print(f"epoch {self.current_epoch}: loss {loss:.3f}, accuracy {accuracy:.3f}")


samples = DistillationSet("digits", sys.argv[1], overrides=sys.argv[2:], temperature=4.0)
Trainer(max_epochs=8, logger=False).fit(Distillation(samples, 4.0), DataLoader(samples, batch_size=64, shuffle=True))
