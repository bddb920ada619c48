"""Reads what calls wrote: tables of runs, trained networks, test accuracies."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dhkd.data.disk.user_cache import expanded
from dhkd.data.errors import ConfigError
from dhkd.data.runs.place import runs_at
from dhkd.data.runs.read import read_runs
from dhkd.pipeline import evaluation
from dhkd.pipeline.build.networks import architecture_in, recorded_metadata, trained_network
from dhkd.pipeline.cli.tables.runs import run_cells, run_columns, run_notes, runs_table
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.python.objects import Model, Views, name_of_model, remember_name, views_of, weights_of
from dhkd.pipeline.python.own_data import Dataset, Split, settings_of_data
from dhkd.pipeline.python.settings import Settings, base_tree, built
from dhkd.pipeline.python.surroundings import undisturbed
from dhkd.pipeline.report.comparison import Comparison, compare
from dhkd.pipeline.results import Evaluated
from dhkd.stages.models.network import Network


@dataclass(frozen=True)
class RunTable:
    """The finished runs of a folder, compared: a row for each kind of run, i.e. runs that differ only in their seed.

    `print` shows it as text, and a notebook shows it as a table. `comparison` holds the numbers.
    """

    folder: str
    comparison: Comparison
    failed: Mapping[str, str]  # the error of each run that failed, by the run's name

    @property
    def columns(self) -> Sequence[str]:
        """The titles of the columns."""
        return run_columns(self.comparison)

    # Any: settings are plain values of any type.
    def records(self) -> list[dict[str, Any]]:
        """Return a dictionary of plain values for each row, as `pandas.DataFrame` takes them."""
        return [
            {
                **row.values,
                "runs": list(row.runs),
                "seeds": list(row.seeds),
                "top1": row.last_top1.mean,
                "top1_half": row.last_top1.half,
                "best_top1": row.best_top1.mean,
                "difference": row.difference.mean if row.difference else None,
                "difference_half": row.difference.half if row.difference else None,
                "seconds": row.seconds,
            }
            for row in self.comparison.rows
        ]

    def __str__(self) -> str:
        return runs_table(self.comparison) if self.comparison.rows else "\n".join([self._none(), *self._notes()])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._html()}

    def _html(self) -> str:
        def row(tag: str, cells: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row("td", run_cells(of_kind, self.comparison)) for of_kind in self.comparison.rows)
        notes = "".join(f"<br>{html.escape(note)}" for note in self._notes())
        if not body:
            return f"<p>{html.escape(self._none())}{notes}</p>"
        return f"<table><thead>{row('th', self.columns)}</thead><tbody>{body}</tbody></table><p>{notes[4:]}</p>"

    def _none(self) -> str:
        return f"{self.folder}: no finished run"

    def _notes(self) -> list[str]:
        return run_notes(self.comparison)


def report(folder: str | Path, *, baseline: str | None = None) -> RunTable:
    """Compare the finished runs in a folder, as `dhkd report` does, without writing anything.

    `baseline` is what the other runs are compared with, such as "objective=kd"; if it is None, the baseline is ce if
    present, or else kd.
    """
    place = runs_at(expanded(str(folder)))
    place.refresh()
    if not place.folder.is_dir():
        found = "a file" if place.folder.exists() else "none"
        raise ConfigError(f"folder {folder}: expected a folder of runs, found {found}")
    runs = read_runs(place.folder, place.shown)
    failed = {run.name: run.failure for run in runs if run.failure is not None}
    return RunTable(str(folder), compare(runs, baseline), failed)


def load_network(run: str | Path, model: Model | None = None, *, num_classes: int | None = None) -> Network:
    """Load the trained network of a finished run, or of a weights file, on the CPU in eval mode.

    Called with images (B, C, H, W), normalised as in training, the network returns logits (B, K). If the run was
    trained in another process with a function or network instead of a name, pass that as `model`. A file that dhkd did
    not write needs `model` and `num_classes`.
    """
    place = Path(expanded(str(run)))
    recorded = recorded_metadata(place)
    named = name_of_model(model, "teacher") if model is not None else recorded.get("architecture")
    classes = num_classes or int(recorded.get("num_classes", "0"))
    if not named or not classes:
        raise ConfigError(f"weights {run}: expected model and num_classes, which the file doesn't record; pass both")
    with undisturbed():
        recorded_too = architecture_in(recorded, f"weights {run}") if model is None else None
        network = trained_network(recorded_too or named, classes, place, "student").network
    remember_name(network, named)
    return network


def evaluate(
    network: Model | Path,
    dataset: Dataset | None = None,
    recipe: Views | None = None,
    *,
    test: Split | None = None,
    weights: str | Path | None = None,
    preset: str | Path | None = None,
    role: Literal["teacher", "student"] = "student",
    settings: Settings | None = None,
    data: DataOptions | None = None,
    cpu: bool = False,
    allow_changed_code: bool = False,
) -> Evaluated:
    """Measure the accuracy of a network on a test split.

    `network` is the folder of a finished run, a trained network, or a function or name together with `weights`. The
    other arguments are those of `cache_teacher`; for a run's folder they are needed only if its data were objects in
    another process. `role` says whether the input is normalised as for the preset's teacher or as for its student.
    """
    of_run = isinstance(network, str | Path) and Path(expanded(str(network))).is_dir()
    if of_run:
        preset, weights = preset or expanded(str(network)), weights or expanded(str(network))
    tree = base_tree(preset)
    if preset is None:
        tree["teacher"]["architecture"] = "none"
        tree["student"] = {"architecture": "none", "epochs": 1, "lr": 0.05}
        tree["views"] = {"kind": "crop-flip", "padding": 0, "flip": False}
    data_settings, data = settings_of_data(dataset, test, data, training=False)
    chosen: dict[str, object] = {"data": data_settings} if data_settings else {}
    if recipe is not None:
        chosen["views"] = views_of(recipe)
    model: Model | None = None if of_run else network  # type: ignore[assignment]  # a path is a run's
    if model is not None:
        chosen[f"{role}.architecture"] = name_of_model(model, "teacher")
    experiment = built(tree, {**chosen, **(settings or {})})
    with undisturbed(allow_changed_code=allow_changed_code), weights_of(model, weights) as file:
        if file is None:
            raise ConfigError("weights: expected a run's folder or a weights file, got none; or pass a trained network")
        return evaluation.evaluate_network(experiment, file, role, data=data, cpu=cpu)
