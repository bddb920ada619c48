"""What a result was made with: versions and hardware."""

import platform
from importlib.metadata import version

import torch

PACKAGES = ("dhkd", "torch", "torchvision", "accelerate", "numpy", "zarr", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def hardware_name(device: torch.device) -> str:
    """The device's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def hardware(device: torch.device) -> str:
    """The device's name and, for a CPU, how many threads compute."""
    name = hardware_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"
