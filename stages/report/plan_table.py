"""A plan for people: what a cache takes, what it costs, and from how many students on it pays."""

from collections.abc import Mapping
from typing import Any

from dhkd.stages.report.tables import plain_table


def plan_table(plan: Mapping[str, Any]) -> str:
    """What `dhkd plan` says, of the plain values that it computed."""
    return "\n".join([_head(plan), "", _disk(plan), "", _memory(plan), "", *_work(plan), "", *_break_even(plan)])


def _head(plan: Mapping[str, Any]) -> str:
    data = plan["data"]
    views = f"all {plan['views']:,} views" if plan["all_views"] else _number(plan["views"], "view")
    known = " (the preset's record says so; --samples N for others)" if data["from_record"] else ""
    return (
        f"{plan['teacher']} → {plan['student']}, {_number(plan['epochs'], 'epoch')}; {views} of {plan['view_kind']}\n"
        f"{data['source']}: {data['samples']:,} samples, {data['classes']:,} classes{known}"
    )


def _disk(plan: Mapping[str, Any]) -> str:
    header = ["on disk", "bytes a row", "one view", _all(plan), "rows a block", "a block", "files: zarr", "webdataset"]
    rows = [
        (
            _name(codec),
            f"{codec['row_bytes']:,}",
            bytes_text(codec["view_bytes"]),
            bytes_text(codec["bytes"]),
            f"{codec['block_rows']:,}",
            bytes_text(codec["block_bytes"]),
            *(f"{codec['objects'][store]:,}" for store in ("zarr", "webdataset")),
        )
        for codec in plan["codecs"]
    ]
    each = plan["witness_bytes"] // plan["forwards"]
    witness = ("+ witness", f"{each}", bytes_text(each * plan["data"]["samples"]), bytes_text(plan["witness_bytes"]))
    table = plain_table(header, [*rows, (*witness, "", "", "", "")], left=1)
    lines = [table, *([plan["suggestion"]] if plan["suggestion"] else []), *_signals(plan)]
    return "\n".join(lines)


def _signals(plan: Mapping[str, Any]) -> list[str]:
    """Signals beside logits, where there are any."""
    rows = [
        (
            signal["signal"],
            "×".join(map(str, signal["shape"])),
            f"{signal['row_bytes']:,}",
            bytes_text(signal["view_bytes"]),
            bytes_text(signal["bytes"]),
            "cached" if signal["cached"] else "not cached" if signal["cacheable"] else "live only",
            "needed" if signal["needed"] else "",
        )
        for signal in plan["signals"]
    ]
    header = ["other signals", "of a row", "bytes a row", "one view", _all(plan), "in the cache", "by the objective"]
    return ["", plain_table(header, rows, left=2)] if rows else []


def _memory(plan: Mapping[str, Any]) -> str:
    window = f"{plan['window']:,} samples" if plan["window"] else "one block"
    ways = {"resident": "resident: all views", "views": "cycle: two views", "windows": f"block: 2 windows of {window}"}
    marked = [f"{text} *" if way == plan["in_memory"] else text for way, text in ways.items()]
    rows = [(_name(codec), *(bytes_text(codec["memory"][way]) for way in ways)) for codec in plan["codecs"]]
    return plain_table(["in memory", *marked], rows, left=1) + "\n* what the preset does"


def _work(plan: Mapping[str, Any]) -> list[str]:
    rates, data = plan["rates"], plan["data"]
    forwards = (
        f"stage one: {plan['forwards']:,} forwards of the teacher ({data['samples']:,} samples ×"
        f" {_number(plan['views'], 'view')})"
    )
    steps = f"a student: {_number(plan['epochs'], 'epoch')} of {data['samples']:,} samples"
    if rates["teacher"]:
        forwards += (
            f", {duration_text(plan['stage_one_hours'])} at {_rate(rates['teacher'])},"
            f" {bytes_text(plan['bytes_per_second'])}/s written"
        )
    if rates["student"]:
        steps += f", {duration_text(plan['student_hours'])} at {_rate(rates['student'])} with plain cross-entropy"
    lines = [forwards, steps]
    if rates["measured"]:
        lines += [
            f"measured: {plan[role]}, batch {made['batch_size']}, {made['precision']}, {made['hardware']}"
            for role, made in rates["measured"].items()
        ]
        lines.append(
            "(networks alone: no rendering or decoding, nor what an objective adds to a step and takes from r)"
        )
    elif not (rates["teacher"] and rates["student"]):
        lines.append(
            "rates weren't given: --measure times both networks here, --teacher-rate and --student-rate say it"
        )
    return lines


def _break_even(plan: Mapping[str, Any]) -> list[str]:
    ratio, views, epochs = plan["rates"]["ratio"], plan["views"], plan["epochs"]
    header = ["students", "teacher's forwards, online", "cached"]
    rows = [
        (f"{r['students']}", *(f"{r[f'{way}_forwards']:,}" for way in ("online", "cached"))) for r in plan["students"]
    ]
    if ratio is not None:
        header += ["cost, online", "cached", "online / cached"]
        rows = [
            (*row, *(f"{r[key]:,.2f}" for key in ("online", "cached", "online_over_cached")))
            for row, r in zip(rows, plan["students"], strict=True)
        ]
    lines = [plain_table(header, rows, left=0)]
    if ratio is None:
        lines.append("costs need r, a teacher's forward over a student's step: --ratio R, both rates, or --measure")
    else:
        lines.append(
            f"cost in units of one student's training, r = {ratio:.3g} (teacher's forward / student's step):"
            f" online S(1 + r), cached r·V/E + S"
        )
    return [*lines, _pays(plan), _fresh(views, epochs)]


def _pays(plan: Mapping[str, Any]) -> str:
    first, asked = plan["pays_from"], plan["asked_students"]
    line = f"the cache costs less than the live teacher from student number {first} on (S > V/E = {_share(plan)})"
    if asked is None:
        return line
    return f"{line}: it pays for {asked}" if asked >= first else f"{line}: never for as few as {asked}"


def _share(plan: Mapping[str, Any]) -> str:
    return f"{plan['views']}/{plan['epochs']} = {plan['views'] / plan['epochs']:.3g}"


def _fresh(views: int, epochs: int) -> str:
    rule = "one student that sees a fresh view in every epoch (V ≥ E) saves nothing"
    if views < epochs:
        return f"{rule}; here it sees each {epochs / views:.3g} times on average"
    if views == epochs:
        return f"{rule}: so it is here"
    return f"{rule}: here one alone costs {_number(views - epochs, 'epoch')} of forwards more than the live teacher"


def _name(codec: Mapping[str, Any]) -> str:
    name = f"top-{codec['k']}" if codec["k"] else codec["codec"]
    return f"{name} *" if codec["preset"] else name


def _all(plan: Mapping[str, Any]) -> str:
    return f"{plan['views']:,} views" if plan["views"] > 1 else "all views"


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bytes_text(number: float) -> str:
    """Bytes in the unit that fits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:  # what rounds to it is it
            scaled = number / size
            return f"{scaled:,.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{number:.0f} B"


def duration_text(hours: float) -> str:
    """Hours in the unit that fits."""
    seconds = hours * 3600
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{hours:,.1f} h"


def _rate(rows: float) -> str:
    return f"{rows:,.0f} rows/s" if rows >= 9.5 else f"{rows:.2g} rows/s"
