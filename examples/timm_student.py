"""Distil a timm network from a cache, with timm's optimizer and schedule. Usage: timm_student.py CACHE."""

import sys

import dhkd
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader

EPOCHS = 4
train = dhkd.DistillationSet.from_cache(sys.argv[1])
test = dhkd.DistillationSet.from_cache(sys.argv[1], split="test")
student = timm.create_model("test_resnet", num_classes=train.num_classes)
optimizer = create_optimizer_v2(student, opt="adamw", lr=3e-3, weight_decay=0.05)
schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=1, warmup_lr_init=1e-4)

for epoch in range(EPOCHS):
    train.set_epoch(epoch)  # chooses each sample's view
    schedule.step(epoch)
    student.train()
    for images, labels, teacher in DataLoader(train, batch_size=32, shuffle=True):
        logits = student(images)
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * dhkd.losses.kd(logits, teacher, temperature=4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    with torch.inference_mode():
        hits = [student(images).argmax(dim=1) == labels for images, labels in DataLoader(test, batch_size=256)]
    print(f"epoch {epoch + 1}: test accuracy {torch.cat(hits).float().mean():.3f}")
