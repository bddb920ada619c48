"""Weights that a student begins with, instead of random ones: `student.weights` of a preset."""

from dataclasses import dataclass
from pathlib import Path

from dhkd.configs.schema import Experiment
from dhkd.data.disk.user_cache import expanded
from dhkd.data.images.base import Images
from dhkd.pipeline.build.data import channels_of
from dhkd.pipeline.build.networks import Trained, chosen_network, fitted, num_outputs, weights_at
from dhkd.stages.models.beginning import begin_with
from dhkd.stages.models.network import Network
from dhkd.stages.models.weights import weights_sha256

CLOSE = 0.005  # means and standard deviations this close count as equal: about one grey level


@dataclass(frozen=True)
class Beginning:
    """Weights to begin with; `note` describes them for the log, and `head` is true if their classifier is used."""

    trained: Trained
    head: bool
    note: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights, with the classifier if it is used."""
        return weights_sha256(self.trained.network)

    def into(self, network: Network) -> None:
        """Copy the weights into a freshly initialised network."""
        begin_with(network, self.trained.network, head=self.head)


def beginning_of(experiment: Experiment, images: Images) -> Beginning | None:
    """Load the weights that the preset's student begins with; None if it begins with random ones.

    Raises `WeightsError` for weights of another network; only the classifier may differ or be missing.
    """
    settings, num_classes = experiment.student, images.num_classes
    if settings.weights is None:
        return None
    weights = weights_at(chosen_network(settings), Path(expanded(settings.weights)), "student")
    channels = channels_of(settings, images)
    found = num_outputs(chosen_network(settings), num_classes, weights, channels)
    trained = fitted(chosen_network(settings), found or num_classes, weights, channels, head=found > 0)
    if found == 0:
        note = f", which lack a classifier; that of {num_classes:,} classes is new"
    elif found != num_classes:
        note = f"; their classifier of {found:,} classes is replaced by a new one of {num_classes:,}"
    else:
        note = ""
    note = f"the student begins with the weights of {trained.origin}{note}"
    return Beginning(trained, found == num_classes, note + _other_colours(trained, images))


def _other_colours(trained: Trained, images: Images) -> str:
    """Return a note for the log if the weights were trained with another normalisation than the student's, else ""."""
    if trained.mean_std is None:
        return ""
    pairs = zip((*trained.mean_std[0], *trained.mean_std[1]), (*images.mean, *images.std), strict=False)
    if all(abs(theirs - ours) <= CLOSE for theirs, ours in pairs):
        return ""
    mean, std = (f"[{','.join(f'{value:g}' for value in values)}]" for values in trained.mean_std)
    return f"; they were trained with data.mean={mean} and data.std={std}, which you may set as well"
