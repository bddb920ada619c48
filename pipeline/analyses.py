"""The analyses of runs, each a table (CSV) or arrays (npz) and a picture.

How many views are enough, whether heads collapse, where losses conflict, what networks' outputs and features look like.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError, RunMismatch
from dhkd.data.files import write_atomically, write_csv
from dhkd.data.render import Normalization, Renderer
from dhkd.pipeline import build
from dhkd.pipeline.comparison import groups_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.runs import Run, axes_of
from dhkd.stages.models import Network
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import read_weights
from dhkd.stages.processes import Processes
from dhkd.stages.report import conflict as forces
from dhkd.stages.report.geometry import embedded, logit_correlation, neural_collapse
from dhkd.stages.report.pictures import Line, Panel, draw_lines, draw_matrices, draw_points
from dhkd.stages.report.statistics import Spread, spread
from dhkd.stages.train.objectives.losses import binary_kl, binary_kl_norm
from dhkd.stages.train.run_folder import kept_weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 500
TSNE_SEED = 0


def report_views(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """Accuracy against how many views students trained on, with the cache's bytes and the teacher's forwards."""
    finished = [run for run in runs if run.state == "finished" and run.settings.get("run.views")]
    if len({run.settings["run.views"] for run in finished}) < 2:
        raise RunMismatch(
            "report views: expected finished runs that differ in how many views they saw; make them with"
            " 'dhkd sweep … --grid student.views=1,3,10'"
        )
    axes = {short: key for short, key in axes_of(finished).items() if key not in ("run.views", "run.cache")}
    rows, lines = [], {}
    for name, group in groups_of(finished, axes).items():
        by_views = groups_of(group, {"views": "run.views"})
        points = sorted(by_views.values(), key=lambda of: of[0].settings["run.views"])
        found = [spread([float(run.result["last_top1"]) for run in of if run.result]) for of in points]
        views = [int(of[0].settings["run.views"]) for of in points]
        lines[name] = Line(views, [each.mean for each in found], [each.half for each in found])
        for number, each, of in zip(views, found, points, strict=True):
            cache = of[0].result["cache"] if of[0].result else None
            forwards = number * cache["samples"] if cache else None
            bytes_ = forwards * cache["row_bytes"] if cache and cache.get("row_bytes") else None
            rows.append([name, number, each.count, each.mean, each.deviation, each.half, forwards, bytes_])
    header = ["runs", "views", "seeds", "top1", "deviation", "half_interval", "teacher_forwards", "cache_bytes"]
    write_csv(table := out / "views.csv", header, rows)
    panel = Panel(lines, "cached views", "test top-1 accuracy (%)", log_x=True)
    return {
        "rows": _as_dicts(header, rows),
        "files": [str(table), *draw_lines([panel], "How many views", out / "views")],
    }


def report_collapse(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """Accuracy and training loss over epochs of every kind of run, means over seeds."""
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if not trained:
        raise RunMismatch("report collapse: expected runs with at least one finished epoch, found none")
    rows, panels = curves_of(trained)
    header = ["runs", "epoch", "seeds", "top1", "top1_deviation", "loss", "loss_deviation"]
    write_csv(table := out / "collapse.csv", header, rows)
    files = [str(table), *draw_lines(panels, "Accuracy and loss over training", out / "collapse")]
    last = [row for row, following in zip(rows, [*rows[1:], None], strict=True) if not following or following[1] == 1]
    return {"rows": _as_dicts(header, last), "files": files}


def curves_of(trained: Sequence[Run]) -> tuple[list[list[Any]], list[Panel]]:
    """Rows (name, epoch, seeds, accuracy and loss with deviations), and panels of both; means over seeds."""
    rows = []
    lines: dict[str, dict[str, Line]] = {"top1": {}, "loss": {}}
    for name, group in groups_of(trained, axes_of(trained)).items():
        epochs = range(1, max(len(run.metrics) for run in group) + 1)
        of_name: dict[str, list[Spread]] = {"top1": [], "loss": []}
        for epoch in epochs:
            there = [run.metrics[epoch - 1] for run in group if len(run.metrics) >= epoch]
            found = {what: spread([line[what] for line in there]) for what in of_name}
            for what, each in found.items():
                of_name[what].append(each)
            rows.append([name, epoch, len(there), *(v for e in found.values() for v in (e.mean, e.deviation))])
        for what, points in of_name.items():
            lines[what][name] = Line(list(epochs), [point.mean for point in points], [point.half for point in points])
    panels = [
        Panel(lines["top1"], "epoch", "test top-1 accuracy (%)"),
        Panel(lines["loss"], "epoch", "training loss"),
    ]
    return rows, panels


def report_conflict(
    runs: Sequence[Run], cache: str, out: Path, *, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """Where cross-entropy and BinaryKL pull classifier and features, over training, of runs that kept their weights.

    Of the first `samples` training samples in view 0, in evaluation mode.
    """
    kept = [run for run in runs if run.state == "finished" and kept_weights(run.path)]
    if not kept:
        raise RunMismatch(
            "report conflict: expected finished runs that kept weights over training; make them with"
            " 'dhkd sweep … --set student.keep_every=10'"
        )
    processes = Processes("float32", cpu)
    rows = []
    try:
        reader = build.reader_of(cache, data)
        count = min(samples, reader.plan.num_samples)
        teacher_NK = torch.from_numpy(reader.read(0, np.arange(count))).to(processes.device)
        for run in kept:
            subject = _subject(run, data, processes)
            labels_N = subject.renderer.images.labels_N[:count].to(processes.device)
            for epochs, file in kept_weights(run.path).items():
                subject.student.load_state_dict(read_weights(file))
                subject.student.eval()
                rows += [[run.name, epochs, *row] for row in _forces(subject, labels_N, teacher_NK, temperature)]
    finally:
        processes.end()
    header = ["run", "epochs", "on", "cosine", "conflicting", "ce_pull", "ce_push", "binary_kl_pull", "binary_kl_push"]
    write_csv(table := out / "conflict.csv", header, rows)
    panels = [
        Panel(
            {
                run.name: Line([row[1] for row in mine], [row[3] for row in mine])
                for run in kept
                if (mine := [row for row in rows if row[0] == run.name and row[2] == on])
            },
            "epochs",
            f"mean cosine on {on}",
        )
        for on in ("classifier", "features")
    ]
    files = [str(table), *draw_lines(panels, "Cross-entropy's gradient and BinaryKL's", out / "conflict")]
    return {"rows": _as_dicts(header, rows), "files": files}


def report_correlation(
    runs: Sequence[Run], teacher: Path, out: Path, *, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """The teacher's correlation of logits less that of students, on the test set."""
    found = {name: logit_correlation(outputs.logits_NK) for name, outputs in _outputs(runs, teacher, None, data, cpu)}
    of_teacher = found.pop("teacher")
    differences = {name: of_teacher - correlation for name, correlation in found.items()}
    arrays = _write_npz(out / "correlation.npz", {"teacher": of_teacher, **differences})
    header = ["run", "mean_absolute_difference"]
    rows = [[name, float(np.abs(difference).mean())] for name, difference in differences.items()]
    write_csv(table := out / "correlation.csv", header, rows)
    picture = draw_matrices(differences, "Teacher's correlation of logits less the student's", out / "correlation")
    return {"rows": _as_dicts(header, rows), "files": [str(table), arrays, *picture]}


def report_tsne(
    runs: Sequence[Run], teacher: Path, out: Path, *, samples: int, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """t-SNE of penultimate features of the first `samples` test images, teacher's and students'; one fixed seed."""
    points, labels_N = {}, np.zeros(0, dtype=np.int64)
    for name, outputs in _outputs(runs, teacher, samples, data, cpu):
        points[name] = embedded(outputs.features_ND, TSNE_SEED)
        labels_N = outputs.labels_N
    arrays = _write_npz(out / "tsne.npz", {**points, "labels": labels_N})
    picture = draw_points(points, labels_N, "t-SNE of penultimate features", out / "tsne")
    header = ["run", "points"]
    return {"rows": _as_dicts(header, [[name, len(of)] for name, of in points.items()]), "files": [arrays, *picture]}


def report_etf(runs: Sequence[Run], teacher: Path | None, out: Path, *, data: DataOptions, cpu: bool) -> dict[str, Any]:
    """How far features and classifiers are from a simplex equiangular tight frame, on the test set."""
    found = {
        name: neural_collapse(outputs.features_ND, outputs.labels_N, outputs.classifier_KD)
        for name, outputs in _outputs(runs, teacher, None, data, cpu)
    }
    measures = list(next(iter(found.values())))
    header, rows = ["run", *measures], [[name, *values.values()] for name, values in found.items()]
    write_csv(table := out / "etf.csv", header, rows)
    numbered = list(range(len(measures)))
    lines = {name: Line(numbered, list(values.values())) for name, values in found.items()}
    named = ", ".join(f"{number} {measure}" for number, measure in enumerate(measures))
    picture = draw_lines([Panel(lines, named, "distance")], "Neural collapse", out / "etf")
    return {"rows": _as_dicts(header, rows), "files": [str(table), *picture]}


@dataclass(frozen=True)
class _Subject:
    """A run's experiment, its student to load weights into, and what that was trained on."""

    experiment: Experiment
    student: Student
    renderer: Renderer
    normalize: Normalization


@dataclass(frozen=True)
class _Outputs:
    """What a network says of test images, and the rows of its classifier."""

    logits_NK: np.ndarray[Any, np.dtype[np.float64]]
    features_ND: np.ndarray[Any, np.dtype[np.float64]]
    labels_N: np.ndarray[Any, np.dtype[np.int64]]
    classifier_KD: np.ndarray[Any, np.dtype[np.float64]]


def _subject(run: Run, data: DataOptions, processes: Processes) -> _Subject:
    experiment = load_experiment(str(run.path))
    images = build.images_of(experiment, "train", data)
    objective = build.objective_of(experiment)
    setting = build.setting_of(experiment, experiment.student, images, objective)
    student = build.student_of(objective, setting).to(processes.device)
    renderer = build.renderer_of(images, build.recipe_of(experiment.views), processes.device, data)
    return _Subject(experiment, student, renderer, build.normalization_of(experiment.student, images))


def _forces(subject: _Subject, labels_N: Tensor, teacher_NK: Tensor, temperature: float) -> Iterator[list[Any]]:
    """On classifier and on features: cosine, share of conflicting rows, mean norms of each loss's pull and push.

    Where BinaryKL has a head of its own that is not linear, its parts are not told apart, and none of its forces are on
    the classifier.
    """
    student, count = subject.student, len(labels_N)
    index_N = torch.arange(count)
    keys = [(torch.zeros_like(index_B), index_B) for index_B in torch.split(index_N, BATCH)]
    with torch.no_grad():
        found = [student.backbone.outputs(subject.normalize(pixels)) for pixels in subject.renderer.render(keys)]
    features_ND = torch.cat([outputs.embedding.float() for outputs in found]).requires_grad_()
    head, auxiliary = student.backbone.head, student.auxiliary
    logits_NK = head(features_ND)
    distill_NK = logits_NK if auxiliary is None else auxiliary(features_ND)
    plain = subject.experiment.objective == "binary-kl"
    loss = (binary_kl if plain else binary_kl_norm)(distill_NK, teacher_NK, temperature)
    of_ce, of_kl = (
        torch.autograd.grad(each, features_ND, retain_graph=True)[0]
        for each in (cross_entropy(logits_NK, labels_N), loss)
    )
    residual_of = forces.binary_kl_residual if plain else forces.binary_kl_norm_residual
    with torch.no_grad():
        ce_NK = forces.cross_entropy_residual(logits_NK, labels_N)
        kl_NK = residual_of(distill_NK, teacher_NK, temperature)
        if auxiliary is None:
            ce, kl = (forces.on_classifier(each, features_ND, labels_N) for each in (ce_NK, kl_NK))
            agreement = forces.conflict(ce, kl)
            yield ["classifier", *agreement.values(), *_norms(ce), *_norms(kl)]
        parts = [*_norms(forces.on_features(ce_NK, _classifier_of(head), labels_N)), None, None]
        distilling = auxiliary or head
        if isinstance(distilling, nn.Linear):
            parts[2:] = _norms(forces.on_features(kl_NK, distilling.weight, labels_N))
        agreement = forces.conflict(forces.Forces(-of_ce, 0 * of_ce), forces.Forces(-of_kl, 0 * of_kl))
        yield ["features", *agreement.values(), *parts]


def _norms(found: forces.Forces) -> list[float]:
    return [float(part.norm(dim=1).mean()) for part in (found.pull, found.push)]


def _outputs(
    runs: Sequence[Run], teacher: Path | None, samples: int | None, data: DataOptions, cpu: bool
) -> Iterator[tuple[str, _Outputs]]:
    """The teacher's, then each finished run's, on the test set or its first `samples` images."""
    finished = [run for run in runs if run.state == "finished"]
    if not finished:
        raise RunMismatch("expected finished runs, found none")
    processes = Processes("float32", cpu)
    try:
        first = load_experiment(str(finished[0].path))
        test = build.test_renderer_of(first, processes.device, data)
        classes = test.images.num_classes
        if teacher is not None:
            trained = build.trained_network(first.teacher.architecture, classes, teacher, "teacher")
            normalize = build.normalization_of(first.teacher, test.images, trained.mean_std)
            yield "teacher", _outputs_of(trained.network.to(processes.device), normalize, test, samples)
        for run in finished:
            experiment = load_experiment(str(run.path))
            assert run.result is not None  # its architecture is the student's own, or what an objective made of it
            network = build.trained_network(str(run.result["architecture"]), classes, run.path, "student").network
            normalize = build.normalization_of(experiment.student, test.images)
            yield run.name, _outputs_of(network.to(processes.device), normalize, test, samples)
    finally:
        processes.end()


@torch.no_grad()
def _outputs_of(network: Network, normalize: Normalization, test: Renderer, samples: int | None) -> _Outputs:
    index_N = torch.arange(min(samples or len(test.images), len(test.images)))
    keys = [(torch.zeros_like(index_B), index_B) for index_B in torch.split(index_N, BATCH)]
    found = [network.eval().outputs(normalize(pixels)) for pixels in test.render(keys)]
    logits = torch.cat([outputs.logits for outputs in found]).double().cpu().numpy()
    features = torch.cat([outputs.embedding for outputs in found]).double().cpu().numpy()
    labels = test.images.labels_N[index_N].numpy()
    return _Outputs(logits, features, labels, _classifier_of(network.head).double().cpu().numpy())


def _classifier_of(head: nn.Module) -> Tensor:
    """The classifier's rows, (K, D)."""
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"expected networks whose classifier is linear, got {type(head).__name__}")
    return head.weight.detach()


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> str:
    write_atomically(path, lambda stream: np.savez_compressed(stream, **arrays))
    return str(path)


def _as_dicts(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(header, row, strict=True)) for row in rows]
