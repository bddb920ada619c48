"""Policies. Each is a file in this folder and a line in `POLICIES`; `base.py` has what most of them share."""

from collections.abc import Callable

from dhkd.data.errors import ConfigError, unknown
from dhkd.data.options import with_options
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.policies.auto_augment import AutoAugment
from dhkd.data.recipes.operations.policies.rand_augment import RandAugment
from dhkd.data.recipes.operations.policies.three_augment import ThreeAugment
from dhkd.data.recipes.operations.policies.trivial_augment import TrivialAugment

# The names are values of `views.policy` in a preset. A policy may be any operation.
POLICIES: dict[str, Callable[..., Operation]] = {
    "randaugment": RandAugment,
    "trivialaugment": TrivialAugment,
    "autoaugment": AutoAugment,
    "three-augment": ThreeAugment,
}


def build_policy(name: str, **options: object) -> Operation:
    """Build the policy that `views.policy` names. Raises `ConfigError` for an unknown name or wrong options."""
    if name not in POLICIES:
        raise ConfigError(f"views.policy: {unknown('policy', name, POLICIES)}")
    return with_options(f"views.policy {name}", POLICIES[name], options)
