"""Distil from a cache with the method DHKD, in a training loop of your own. Usage: pytorch_loop.py CACHE."""

import sys

import dhkd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

torch.manual_seed(0)
train = dhkd.DistillationSet.from_cache(sys.argv[1])
test = dhkd.DistillationSet.from_cache(sys.argv[1], split="test")
student = dhkd.build_network("resnet8", train.num_classes)
head = dhkd.auxiliary_head(student, train.num_classes)  # imitates the teacher; dropped after training
parameters = [*student.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
kept = dhkd.Alignment(kept=("ce",))  # the other terms must not oppose cross-entropy

for epoch in range(8):
    train.set_epoch(epoch)  # chooses each sample's view
    student.train()
    for images, labels, teacher in DataLoader(train, batch_size=64, shuffle=True):
        logits, embedding, *_ = student.outputs(images)
        terms = {
            "ce": F.cross_entropy(logits, labels),
            "imitation": dhkd.losses.binary_kl_norm(head(embedding), teacher, temperature=2.0),
        }
        optimizer.zero_grad()
        dhkd.backward(terms, {"ce": 1.0, "imitation": 1.0}, parameters, alignment=kept)
        optimizer.step()
    student.eval()
    with torch.inference_mode():
        hits = [student(images).argmax(dim=1) == labels for images, labels in DataLoader(test, batch_size=256)]
    print(f"epoch {epoch + 1}: test accuracy {torch.cat(hits).float().mean():.3f}")
