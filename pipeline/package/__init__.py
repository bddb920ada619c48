"""Knowledge distillation from a teacher that runs once: the Python interface.

    import dhkd

    dhkd.cache_teacher(teacher, (images, labels), "crop-flip", "cats.zarr", test=(test_images, test_labels))
    dhkd.train_student(SmallNet, "cats.zarr", "dhkd", "runs/small", epochs=30, lr=0.05)
    print(dhkd.report("runs"))

Each name's module is loaded when the name is first used, so that `import dhkd` is fast and doesn't import torch.
Every error that a user can cause is a `DhkdError` with a one-line message.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dhkd.data.cache.reader import LogitReader as LogitReader
    from dhkd.data.cache.reader import open_cache as open_cache
    from dhkd.data.errors import DhkdError as DhkdError
    from dhkd.data.own_code import offer as offer
    from dhkd.data.recipes.base import Recipe as Recipe
    from dhkd.pipeline.api import DistillationSet as DistillationSet
    from dhkd.pipeline.data_options import DataOptions as DataOptions
    from dhkd.pipeline.python.caching import cache_teacher as cache_teacher
    from dhkd.pipeline.python.loops import auxiliary_head as auxiliary_head
    from dhkd.pipeline.python.loops import build_network as build_network
    from dhkd.pipeline.python.runs import RunTable as RunTable
    from dhkd.pipeline.python.runs import evaluate as evaluate
    from dhkd.pipeline.python.runs import load_network as load_network
    from dhkd.pipeline.python.runs import report as report
    from dhkd.pipeline.python.trained import export as export
    from dhkd.pipeline.python.trained import model_card as model_card
    from dhkd.pipeline.python.trained import predict as predict
    from dhkd.pipeline.python.training import sweep as sweep
    from dhkd.pipeline.python.training import train_student as train_student
    from dhkd.pipeline.python.training import train_teacher as train_teacher
    from dhkd.pipeline.results import CachedTeacher as CachedTeacher
    from dhkd.pipeline.results import Evaluated as Evaluated
    from dhkd.pipeline.results import Exported as Exported
    from dhkd.pipeline.results import Predicted as Predicted
    from dhkd.pipeline.results import Shared as Shared
    from dhkd.pipeline.results import TrainedRun as TrainedRun
    from dhkd.pipeline.share.sharing import share as share
    from dhkd.stages.models.network import Network as Network
    from dhkd.stages.train.gradients import Alignment as Alignment
    from dhkd.stages.train.gradients import backward as backward
    from dhkd.stages.train.objectives import losses as losses
    from dhkd.stages.train.objectives.contract import Objective as Objective

    __version__: str

# The module of each name. The mapping repeats the imports above, which only type checkers follow; a test compares both.
_MODULES = {
    "Alignment": "stages.train.gradients",
    "CachedTeacher": "pipeline.results",
    "DataOptions": "pipeline.data_options",
    "DhkdError": "data.errors",
    "DistillationSet": "pipeline.api",
    "Evaluated": "pipeline.results",
    "Exported": "pipeline.results",
    "LogitReader": "data.cache.reader",
    "Network": "stages.models.network",
    "Objective": "stages.train.objectives.contract",
    "Predicted": "pipeline.results",
    "Recipe": "data.recipes.base",
    "RunTable": "pipeline.python.runs",
    "Shared": "pipeline.results",
    "TrainedRun": "pipeline.results",
    "auxiliary_head": "pipeline.python.loops",
    "backward": "stages.train.gradients",
    "build_network": "pipeline.python.loops",
    "cache_teacher": "pipeline.python.caching",
    "evaluate": "pipeline.python.runs",
    "export": "pipeline.python.trained",
    "load_network": "pipeline.python.runs",
    "losses": "stages.train.objectives",
    "model_card": "pipeline.python.trained",
    "offer": "data.own_code",
    "open_cache": "data.cache.reader",
    "predict": "pipeline.python.trained",
    "report": "pipeline.python.runs",
    "share": "pipeline.share.sharing",
    "sweep": "pipeline.python.training",
    "train_student": "pipeline.python.training",
    "train_teacher": "pipeline.python.training",
}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 - all of these are strings


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("dhkd")
    elif name in _MODULES:
        from importlib import import_module

        module = import_module(f"dhkd.{_MODULES[name]}")
        value = getattr(module, name, None) or import_module(f"{module.__name__}.{name}")
    else:
        raise AttributeError(f"module 'dhkd' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
