"""The tables of `dhkd plan`: the size and cost of a cache, and the number of students from which it pays."""

from dhkd.pipeline.cli.tables.cluster import cluster_lines
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.plan import CachePlan, Storage
from dhkd.stages.report.text import bytes_text, duration_text


def plan_table(plan: CachePlan) -> str:
    """Return the sections on data, disk, memory, work, break-even and the cluster, if one is planned for."""
    on_cluster = ["", *cluster_lines(plan.cluster, plan.asked_students)] if plan.cluster else []
    return "\n".join(
        [_head(plan), "", _disk(plan), "", _memory(plan), "", *_work(plan), "", *_break_even(plan), *on_cluster]
    )


def _head(plan: CachePlan) -> str:
    data = plan.data
    views = f"all {plan.views:,} views" if plan.all_views else _number(plan.views, "view")
    recorded = " (the preset's record says so; --samples N for others)" if data.from_record else ""
    return (
        f"{plan.teacher} → {plan.student}, {_number(plan.epochs, 'epoch')}; {views} of {plan.view_kind}\n"
        f"{data.source}: {data.samples:,} samples, {data.classes:,} classes{recorded}"
    )


def _disk(plan: CachePlan) -> str:
    header = [
        "on disk",
        "bytes a row",
        "one view",
        _views(plan),
        "rows a block",
        "a block",
        "files: zarr",
        "webdataset",
    ]
    rows = [
        (
            _codec(storage),
            f"{storage.row_bytes:,}",
            bytes_text(storage.view_bytes),
            bytes_text(storage.bytes),
            f"{storage.block_rows:,}",
            bytes_text(storage.block_bytes),
            f"{storage.objects['zarr']:,}",
            f"{storage.objects['webdataset']:,}",
        )
        for storage in plan.codecs
    ]
    row = plan.witness_bytes // plan.forwards
    witness = ("+ witness", f"{row}", bytes_text(row * plan.data.samples), bytes_text(plan.witness_bytes))
    table = plain_table(header, [*rows, (*witness, "", "", "", "")], left=1)
    return "\n".join([table, *([plan.suggestion] if plan.suggestion else []), *_other_signals(plan)])


def _other_signals(plan: CachePlan) -> list[str]:
    """Return an empty line and a table of the signals (teacher outputs) besides logits; return [] if there are none."""
    rows = [
        (
            signal.signal,
            "×".join(map(str, signal.shape)),
            f"{signal.row_bytes:,}",
            bytes_text(signal.view_bytes),
            bytes_text(signal.bytes),
            "cached" if signal.cached else "not cached" if signal.cacheable else "live only",
            "needed" if signal.needed else "",
        )
        for signal in plan.signals
    ]
    header = ["other signals", "of a row", "bytes a row", "one view", _views(plan), "in the cache", "by the objective"]
    return ["", plain_table(header, rows, left=2)] if rows else []


def _memory(plan: CachePlan) -> str:
    window = f"{plan.window:,} samples" if plan.window else "one block"
    ways = {"resident": "resident: all views", "views": "cycle: two views", "windows": f"block: 2 windows of {window}"}
    header = [f"{text} *" if way == plan.in_memory else text for way, text in ways.items()]
    rows = [
        (
            _codec(storage),
            bytes_text(storage.memory.resident),
            bytes_text(storage.memory.views),
            bytes_text(storage.memory.windows),
        )
        for storage in plan.codecs
    ]
    return plain_table(["in memory", *header], rows, left=1) + "\n* what the preset does"


def _work(plan: CachePlan) -> list[str]:
    rates, data = plan.rates, plan.data
    forwards = (
        f"stage one: {plan.forwards:,} forwards of the teacher ({data.samples:,} samples ×"
        f" {_number(plan.views, 'view')})"
    )
    steps = f"a student: {_number(plan.epochs, 'epoch')} of {data.samples:,} samples"
    if rates.teacher and plan.stage_one_hours is not None and plan.bytes_per_second is not None:
        forwards += (
            f", {duration_text(plan.stage_one_hours)} at {_rate(rates.teacher)},"
            f" {bytes_text(plan.bytes_per_second)}/s written"
        )
    if rates.student and plan.student_hours is not None:
        steps += f", {duration_text(plan.student_hours)} at {_rate(rates.student)} with plain cross-entropy"
    return [forwards, steps, *_origin_of_rates(plan)]


def _origin_of_rates(plan: CachePlan) -> list[str]:
    measured = plan.rates.measured
    if measured:
        return [
            *(
                f"measured: {network}, batch {at.batch_size}, {at.precision}, {at.hardware}"
                for network, at in ((plan.teacher, measured.teacher), (plan.student, measured.student))
            ),
            "(networks alone: no rendering or decoding, nor what an objective adds to a step and takes from r)",
        ]
    if plan.rates.teacher and plan.rates.student:
        return []
    return ["rates weren't given: --measure times both networks here, --teacher-rate and --student-rate say it"]


def _break_even(plan: CachePlan) -> list[str]:
    ratio = plan.rates.ratio
    header = ["students", "teacher's forwards, online", "cached"]
    rows = [[f"{row.students}", f"{row.online_forwards:,}", f"{row.cached_forwards:,}"] for row in plan.students]
    explanation = "costs need r, a teacher's forward over a student's step: --ratio R, both rates, or --measure"
    if ratio is not None:
        header += ["cost, online", "cached", "online / cached"]
        for cells, row in zip(rows, plan.students, strict=True):
            cells += [f"{cost:,.2f}" for cost in (row.online, row.cached, row.online_over_cached)]
        explanation = (
            f"cost in units of one student's training, r = {ratio:.3g} (teacher's forward / student's step):"
            f" online S(1 + r), cached r·V/E + S"
        )
    return [plain_table(header, rows, left=0), explanation, _pays(plan), _fresh(plan.views, plan.epochs)]


def _pays(plan: CachePlan) -> str:
    first, asked = plan.pays_from, plan.asked_students
    share = f"{plan.views}/{plan.epochs} = {plan.views / plan.epochs:.3g}"
    line = f"the cache costs less than the live teacher from student number {first} on (S > V/E = {share})"
    if asked is None:
        return line
    return f"{line}: it pays for {asked}" if asked >= first else f"{line}: never for as few as {asked}"


def _fresh(views: int, epochs: int) -> str:
    rule = "one student that sees a fresh view in every epoch (V ≥ E) saves nothing"
    if views < epochs:
        return f"{rule}; here it sees each {epochs / views:.3g} times on average"
    if views == epochs:
        return f"{rule}: so it is here"
    return f"{rule}: here one alone costs {_number(views - epochs, 'epoch')} of forwards more than the live teacher"


def _codec(storage: Storage) -> str:
    name = f"top-{storage.k}" if storage.k else storage.codec
    return f"{name} *" if storage.preset else name


def _views(plan: CachePlan) -> str:
    return f"{plan.views:,} views" if plan.views > 1 else "all views"


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rate(rows: float) -> str:
    return f"{rows:,.0f} rows/s" if rows >= 9.5 else f"{rows:.2g} rows/s"
