"""Names that try to disturb reports, damaged runs, and clients that try to block or to reach the server."""

import csv
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dhkd.data.disk.csv_table import text_of, write_csv
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.config import read_config
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.runs.place import RunsInFolder
from dhkd.data.runs.read import RunReader, read_runs
from dhkd.data.shown import printable_line
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.cli.tables.runs import runs_table
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.page import page_of
from dhkd.pipeline.report.rows import CorrelationRow, read_rows, write_rows
from dhkd.pipeline.report.serve import Pages, server_of
from dhkd.pipeline.report.table import write_table
from dhkd.stages.report import page as rendering

from tests.e2e.command_line import dhkd
from tests.soak.many_runs import add_epoch, write_run

NAMES = {
    "a formula": '=HYPERLINK("http://x","y")',
    "a sum": "+1+1",
    "a minus": "-2+3",
    "an at": "@SUM(1)",
    "HTML": "<img src=x onerror=alert(1)>",
    "the end of a script": "<!--<script>",
    "Markdown": "a|b|c",
    "colours": "\x1b[31mred\x1b[0m",
    "a line break": "a\nerror: b",
    "a carriage return": "a\rb",
    "a tab": "\ta",
    "reversed": "a\u202eb",
    "no UTF-8": os.fsdecode(b"a\xffb"),
    "a property": "__proto__",
    "a template": "{{ 7 * 7 }}{% raw %}",
}


def run_named(folder: Path, name: str, objective: str = "kd", seed: int = 0) -> None:
    write_run(folder, objective, "0.1", seed, epochs=2)
    (folder / f"objective={objective},lr=0.1,seed={seed}").rename(folder / name.replace("/", "⁄"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_runs_name_disturbs_nothing(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind]
    folder = tmp_path / name.replace("/", "⁄")
    run_named(folder, name)
    runs = read_runs(folder)
    (shown,) = [run.name for run in runs]
    assert shown.isprintable()
    html = page_of(runs, folder)
    html.encode()
    assert name not in html or name.isalnum() or not set(name) & set("<\r\n\x1b\u202e")
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert list(data["runs"]) == [shown]
    with write_table(runs, tmp_path).open(newline="", encoding="utf-8") as stream:
        header, line = csv.reader(stream)
    assert len(line) == len(header)
    assert text_of(line[0]) == shown
    assert not line[0].startswith(tuple("=+-@\t\r\n"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_setting_disturbs_nothing(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind].encode("utf-8", "backslashreplace").decode()
    for objective in ("kd", "ce"):
        run_named(tmp_path, objective, objective)
    config = yaml.safe_load((tmp_path / "kd" / "config.yaml").read_bytes())
    config["experiment"]["student"]["architecture"] = name
    (tmp_path / "kd" / "config.yaml").write_text(yaml.safe_dump(config))
    runs = read_runs(tmp_path)
    compared = compare(runs)
    table = runs_table(compared)
    assert all(line.isprintable() for line in table.split("\n"))
    assert len(table.split("\n")) == 4 + len(compared.warnings), "a header, two rows, and what was saved"
    html = page_of(runs, tmp_path)
    assert "<img src=x" not in html.replace("&lt;", "")
    with write_table(runs, tmp_path).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [text_of(row["student"]) for row in rows] == ["resnet20", printable_line(name)]
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        *(("=1", "'=1"), ("@x", "'@x"), ("＝1", "'＝1"), ("'=1", "''=1"), ("'x", "'x"), ("", "")),
        *(("-0.5", "-0.5"), ("+1e5", "+1e5"), ("-x", "'-x"), ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0")),
        ("x=1", "x=1"),
    ],
)
def test_a_text_comes_back_from_a_table_and_numbers_stay(text: str, cell: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [text], [[text, -0.5, None]])
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [[cell], [cell, "-0.5", ""]]
    assert text_of(cell) == text
    write_rows(tmp_path / "rows.csv", CorrelationRow, [CorrelationRow(text, 0, -0.5)])
    assert read_rows(tmp_path / "rows.csv", CorrelationRow) == [CorrelationRow(text, 0, -0.5)]


def test_a_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert plain_table(["a"], [["x\x1b[2J\ny"]], left=1).splitlines()[1] == "x\\x1b[2J\\ny"
    emit({}, False, lambda: "one\ntwo\x1b[2J\udcff")
    assert capsys.readouterr().out == "one\ntwo\\x1b[2J\\udcff\n"
    outcome = dhkd("report", tmp_path / "\x1b[2Jnone")
    assert outcome.code == 1
    assert outcome.err == f"error: {tmp_path}/\\x1b[2Jnone: expected a folder of runs, found nothing\n"
    assert printable_line("é→ ±\U0001f600") == "é→ ±\U0001f600"


@pytest.mark.parametrize("deep", ["[" * 100_000, "- " * 50_000, "{a: " * 50_000, "? " * 50_000])
def test_deep_settings_are_refused(deep: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(deep)
    with pytest.raises(RunMismatch, match="expected a run's configuration in YAML"):
        read_config(tmp_path)


@pytest.mark.parametrize("middle", ['{"top1": 1', '"top1": 2}', '{"top1": 1}, {"top1": 2}', "[]", '{"top1": "x"}'])
def test_a_damaged_line_is_never_joined_with_its_neighbour(middle: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"top1": 1}}\n{middle}\n{{"top1": 3}}\n')
    with pytest.raises(RunMismatch, match="line 2: expected an epoch's metrics"):
        read_metrics(tmp_path)


def test_only_runs_that_changed_are_read_again(tmp_path: Path) -> None:
    for seed in range(3):
        run_named(tmp_path, f"run-{seed}", seed=seed)
    reader = RunReader(tmp_path)
    before = reader.read()
    assert all(run is again for run, again in zip(before, reader.read(), strict=True))
    (tmp_path / "run-1" / "result.json").unlink()
    after = reader.read()
    assert [run is again for run, again in zip(before, after, strict=True)] == [True, False, True]
    assert after[1].state == "unfinished"
    (tmp_path / "run-0").rename(tmp_path / "run-9")
    assert [run.name for run in reader.read()] == ["run-1", "run-2", "run-9"]


def test_the_page_is_built_again_only_when_a_file_has_changed(tmp_path: Path) -> None:
    run_named(tmp_path, "a")
    pages = Pages(RunsInFolder(tmp_path), None)
    first = pages.page()
    assert pages.page() is first
    (tmp_path / "a" / "result.json").unlink()
    assert b"1 unfinished" in pages.page()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "views.csv").write_text("a,b\n1,2\n")
    assert b"report/views.csv: expected an analysis" in pages.page()


def test_many_epochs_are_thinned_in_tables_only_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "kd", "0.1", 0, epochs=10)
    (run,) = read_runs(tmp_path)
    columns = len(run.metrics[0].values)
    for most, every, epochs in ((10 * columns, 1, [*range(1, 11)]), (10 * columns - 1, 2, [2, 4, 6, 8, 10])):
        monkeypatch.setattr(rendering, "MOST_NUMBERS", most)
        html = page_of([run], tmp_path)
        data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
        (details,) = data["runs"].values()
        assert [epoch[0] for epoch in details["epochs"]] == epochs
        assert len(details["curves"]["training loss"]) == 10
        assert ("One of 2 epochs, to keep this page small" in html) == (every == 2)


# The server


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("served")
    run_named(folder, "a")
    with server_of(RunsInFolder(folder), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def answer_to(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        parts = []
        while part := client.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


HOSTS = {
    **dict.fromkeys(("localhost", "127.0.0.1", "LocalHost", "localhost:{port}", "127.0.0.1:{port}"), 200),
    **dict.fromkeys(("localhost:9999", "[::1]", "[::1]:80"), 200),
    **dict.fromkeys(("evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example"), 403),
    **dict.fromkeys(("", "localhost:", "localhost:x", "x@localhost", "evil.example#localhost", "127.0.0.2"), 403),
}


@pytest.mark.parametrize("host", HOSTS)
def test_only_this_machines_names_are_answered(host: str, port: int) -> None:
    answer = answer_to(port, f"GET /version HTTP/1.1\r\nHost: {host.format(port=port)}\r\n\r\n".encode())
    assert answer.split()[1] == str(HOSTS[host]).encode()


def test_a_request_without_a_host_is_refused(port: int) -> None:
    assert answer_to(port, b"GET / HTTP/1.0\r\n\r\n").split()[1] == b"403"


def test_idle_connections_block_nobody_and_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(60)]
    clients[1].sendall(b"GET / HTTP/1.1\r\nHo")
    try:
        assert b"<!doctype html>" in answer_to(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    finally:
        for client in clients:
            client.close()


def test_a_connection_that_says_nothing_or_drips_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhkd.pipeline.report.serve.PATIENCE", 1)
    run_named(tmp_path, "a")
    with server_of(RunsInFolder(tmp_path), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(server.server_address[:2], timeout=60) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(server.server_address[:2], timeout=60) as dripping:
            assert sent_until_ended(dripping) < 300
        server.shutdown()


def sent_until_ended(client: socket.socket) -> int:
    """Send a byte of a header, again and again, and count how many the server takes."""
    client.sendall(b"GET / HTTP/1.1\r\nX: ")
    for number in range(300):
        try:
            client.sendall(b"x")
        except OSError:
            return number
        time.sleep(0.1)
    return 300


def test_a_changed_run_is_on_the_next_page(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", "0.1", 0, epochs=2)
    pages = Pages(RunsInFolder(tmp_path), None)
    assert b"1 finished" in pages.page()
    (run,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    from dhkd.data.runs.folder import RunFolder

    config: dict[str, Any] = read_config(run) or {}
    (run / "result.json").unlink()
    add_epoch(RunFolder(run, config, resume=True), 3, 3, "x")
    (changed,) = read_runs(tmp_path)
    assert len(changed.metrics) == 3
    assert b"1 unfinished" in pages.page()


def test_the_documentation_has_a_home_page() -> None:
    root = Path(__file__).parents[2]
    nav = yaml.safe_load((root / "mkdocs.yml").read_text())["nav"]
    sections = {name: pages for entry in nav for name, pages in entry.items()}
    assert next(iter(sections.values())) == "index.md"
    linked = (root / "docs" / "index.md").read_text()
    del sections["Home"], sections["Contributing"]
    assert [name for name, pages in sections.items() if not any(f"({page})" in linked for page in _pages(pages))] == []


def _pages(entry: object) -> list[str]:
    """The pages of a section, at any depth."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
    return [page for part in parts for page in _pages(part)]
