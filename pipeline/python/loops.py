"""Parts for training loops that users write."""

from typing import Literal

from dhkd.pipeline.python.objects import Model, name_of_model
from dhkd.stages import models
from dhkd.stages.models import student
from dhkd.stages.models.network import Network
from torch import nn


def build_network(model: Model, num_classes: int) -> Network:
    """Build a network, initialised from torch's global generator; `model` is as in `train_student`.

    Called with images (B, C, H, W), it returns logits (B, K). Its method `outputs` also returns the `embedding` (B, D),
    i.e. the input of the classifier. The network has no auxiliary head; see `auxiliary_head`. If `model` is a
    network, it is copied.
    """
    return models.build_network(name_of_model(model, "student"), num_classes)


def auxiliary_head(network: Network, num_classes: int, kind: Literal["linear", "nonlinear"] = "nonlinear") -> nn.Module:
    """Build a second head, from the network's embedding (B, D) to logits (B, K), that imitates the teacher.

    It is the head of the method `dhkd`, and is dropped after training. Yang et al., "Dual-Head Knowledge
    Distillation", arXiv 2411.08937.
    """
    return student.auxiliary_head(kind, network, num_classes)
