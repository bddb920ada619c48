"""Distil with the Trainer of Hugging Face, from a cache: huggingface_trainer.py CACHE OUT."""

import sys

import dhkd
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments


class Distillation(Trainer):
    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: object) -> object:
        teacher = inputs.pop("teacher", None)  # test images have none
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"])
        if teacher is not None:
            loss = 0.1 * loss + 0.9 * dhkd.losses.kd(outputs.logits, teacher, temperature=4.0)
        return (loss, outputs) if return_outputs else loss


def collate(items: list[tuple]) -> dict:
    images, labels, *teacher = zip(*items, strict=True)
    batch = {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}
    return {**batch, "teacher": torch.stack(teacher[0])} if teacher else batch


train = dhkd.DistillationSet.from_cache(sys.argv[1], settings={"student.views": 1})
test = dhkd.DistillationSet.from_cache(sys.argv[1], split="test")
config = ResNetConfig(num_labels=train.num_classes, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
arguments = TrainingArguments(
    sys.argv[2], num_train_epochs=3, per_device_train_batch_size=32, learning_rate=3e-3, report_to="none", seed=0,
    remove_unused_columns=False, label_names=["labels"], use_cpu=True, save_strategy="no", disable_tqdm=True,
)  # fmt: skip
model = ResNetForImageClassification(config)
trainer = Distillation(model, arguments, train_dataset=train, eval_dataset=test, data_collator=collate)
trainer.compute_metrics = lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())}
trainer.train()
print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
