"""Distil from a cache with Hugging Face's Trainer. Usage: huggingface_trainer.py CACHE OUT."""

import sys

import dhkd
import torch
from torch.utils.data import default_collate
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments


class Distillation(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        if "teacher" in inputs:  # test items have no teacher logits
            loss = 0.1 * loss + 0.9 * dhkd.losses.kd(outputs.logits, inputs["teacher"], temperature=4.0)
        return (loss, outputs) if return_outputs else loss


class NextViews(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **_):
        train.set_epoch(int(state.epoch))  # chooses each sample's view


def collate(items):
    return dict(zip(("pixel_values", "labels", "teacher"), default_collate(items), strict=False))


torch.manual_seed(0)
train, test = (dhkd.DistillationSet.from_cache(sys.argv[1], split=split) for split in ("train", "test"))
shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "downsample_in_first_stage": False}
model = ResNetForImageClassification(ResNetConfig(num_labels=train.num_classes, **shape))
settings = TrainingArguments(
    sys.argv[2], num_train_epochs=8, per_device_train_batch_size=32, learning_rate=5e-3, label_names=["labels"],
    remove_unused_columns=False, save_strategy="no", report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = Distillation(model, settings, train_dataset=train, data_collator=collate, callbacks=[NextViews()])
trainer.train()
predicted = trainer.predict(test)
print(f"test accuracy {(predicted.predictions.argmax(axis=1) == predicted.label_ids).mean():.3f}")
