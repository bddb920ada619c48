"""Caches, presets and addresses from strangers: refused in one line, and nothing outside is read, run or shown."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.configs.load import load_experiment
from dhkd.data.cache import codecs
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import ConfigError, DataError, DhkdError
from dhkd.data.shown import printable, printable_line, redacted, shown
from dhkd.data.sources.shard_urls import expand
from dhkd.data.strict_json import canonical
from google_crc32c import value as crc32c

from tests.caches import complete, manifest_of, writer_at
from tests.e2e.command_line import assert_one_line, dhkd
from tests.golden.rows import STORES

GOLDEN = Path(__file__).parents[1] / "golden"
BIG = 2**31 - 1
FORGED = 200 * 2**20  # bytes that a command may take for a cache of a few kB

Tree = Any  # JSON


# forged caches


def sealed(cache: Path, edit: Callable[[Tree], object]) -> None:
    """Change the index, and seal it again as a forger would."""
    tree = json.loads((cache / "index.json").read_bytes())
    edit(tree["index"])
    write_sealed(cache, canonical(tree["index"]))


def write_sealed(cache: Path, body: bytes) -> None:
    content = b'{"format": 2, "crc32c": "%s", "index": %s}' % (f"{crc32c(body):08x}".encode(), body)
    (cache / "index.json").write_bytes(content)


def in_index(*path: str, value: object) -> Callable[[Path], None]:
    """Set a value of the index."""

    def edit(tree: Tree) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return lambda cache: sealed(cache, edit)


def in_manifest(*path: str, value: object) -> Callable[[Path], None]:
    """Set a value of the manifest, in the index and in the object of its own."""

    def forge(cache: Path) -> None:
        in_index("manifest", *path, value=value)(cache)
        tree = json.loads((cache / "index.json").read_bytes())["index"]["manifest"]
        if (cache / "zarr.json").exists():
            group = json.loads((cache / "zarr.json").read_bytes())
            group["attributes"]["dhkd"] = tree
            (cache / "zarr.json").write_text(json.dumps(group))
        else:
            (cache / "manifest.json").write_text(json.dumps(tree))

    return forge


def unfinished(forge: Callable[[Path], None]) -> Callable[[Path], None]:
    def without_index(cache: Path) -> None:
        forge(cache)
        (cache / "index.json").unlink()

    return without_index


def structure_key(key: str) -> Callable[[Path], None]:
    return lambda cache: sealed(cache, lambda body: body["structure"].update({key: 1}))


def object_key(key: str) -> Callable[[Path], None]:
    def edit(body: Tree) -> None:
        body["objects"][key] = body["objects"].pop(next(iter(body["objects"])))

    return lambda cache: sealed(cache, edit)


def index_text(*replaced: tuple[bytes, bytes]) -> Callable[[Path], None]:
    """Replace text of the index's body, so that it may be anything, and seal it again."""

    def forge(cache: Path) -> None:
        body = canonical(json.loads((cache / "index.json").read_bytes())["index"])
        for before, after in replaced:
            assert before in body
            body = body.replace(before, after, 1)
        write_sealed(cache, body)

    return forge


def whole_index(content: bytes) -> Callable[[Path], None]:
    def forge(cache: Path) -> None:
        (cache / "index.json").write_bytes(content)

    return forge


def chunk_of(cache: Path) -> Path:
    """A block's object."""
    return next(path for path in sorted(cache.rglob("*")) if path.is_file() and path.name in ("0", "00000.tar"))


def in_place_of_chunk(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def forge(cache: Path) -> None:
        chunk = chunk_of(cache)
        kept = cache.parent / "outside"
        chunk.rename(kept)
        make(chunk)

    return forge


def sparse(cache: Path) -> None:
    """A file that claims a terabyte, as the index does."""
    chunk, size = chunk_of(cache), 2**40
    os.truncate(chunk, size)

    def edit(body: Tree) -> None:
        body["objects"][str(chunk.relative_to(cache))][0] = size

    sealed(cache, edit)


def folder_leads_outside(cache: Path) -> None:
    folder = chunk_of(cache).parent
    folder.rename(cache.parent / "outside")
    folder.symlink_to(cache.parent / "outside")


ROW = ("identity", "signals", "logits", "row")
CLAIMS: dict[str, Callable[[Path], None]] = {
    **{f"metadata at {key!r}": structure_key(key) for key in (
        "../../../../../../etc/passwd", "/etc/passwd", "signals/../../x", "..\\x", "%2e%2e/x", "a\x1bb", "", "a//b",
    )},
    **{f"a block at {key!r}": object_key(key) for key in ("../x", "/etc/passwd", "c/..", "shards/%2e%2e/x")},
    "many metadata objects": lambda cache: sealed(
        cache, lambda body: body["structure"].update({f"k{number}": 1 for number in range(100_000)})
    ),
    "2^31 views": in_manifest("num_views", value=BIG),
    "2^31 samples": in_manifest("identity", "dataset", "num_samples", value=BIG),
    "2^31 samples a block": lambda cache: [
        in_manifest("identity", "dataset", "num_samples", value=BIG)(cache),
        in_manifest("block_rows", value=BIG)(cache),
    ][0],
    "rows of 2^93 values": in_manifest(*ROW, value=[BIG] * 3),
    "rows of 2^32 values, which wrap to 0": in_manifest(*ROW, value=[2**16] * 4),
    "rows of 100 axes": in_manifest(*ROW, value=[1] * 100),
    "2^31 views that nobody began": unfinished(in_manifest("num_views", value=BIG)),
    "2^31 samples that nobody began": unfinished(in_manifest("identity", "dataset", "num_samples", value=BIG)),
    "blocks of other sizes": lambda cache: sealed(
        cache, lambda body: body["objects"].update({key: [10, 1] for key in body["objects"]})
    ),
    "a block too few": lambda cache: sealed(cache, lambda body: body["objects"].pop(next(iter(body["objects"])))),
    "NaN": index_text((b'"error":', b'"error":NaN,"x":')),
    "1e999": index_text((b'"error":', b'"error":1e999,"x":')),
    "a number of 5,000 digits": index_text((b'"error":', b'"error":' + b"1" * 5000 + b',"x":')),
    "a key twice": index_text((b'"error":', b'"error":0,"error":')),
    "deep nesting": index_text((b'"error":', b'"x":' + b"[" * 5000 + b"]" * 5000 + b',"error":')),
    "an endless index": whole_index(b" " * (65 * 2**20)),
    "no index at all": whole_index(b""),
    "an index of another kind": whole_index(b"[[]]"),
}  # fmt: skip
OBJECTS: dict[str, Callable[[Path], None]] = {
    "a terabyte": sparse,
    "nothing": in_place_of_chunk(lambda chunk: chunk.write_bytes(b"")),
    "a missing block": in_place_of_chunk(lambda chunk: None),
    "a folder": in_place_of_chunk(Path.mkdir),
    "a named pipe": in_place_of_chunk(os.mkfifo),
    "a link outside": in_place_of_chunk(lambda chunk: chunk.symlink_to(chunk.parents[9] / "outside")),
    "a link to itself": in_place_of_chunk(lambda chunk: chunk.symlink_to(chunk.name)),
    "a device": in_place_of_chunk(lambda chunk: chunk.symlink_to("/dev/zero")),
    "a folder that leads outside": folder_leads_outside,
}


@pytest.fixture(params=STORES)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small complete cache, deep enough in the folder for links to other places."""
    return Path(shutil.copytree(GOLDEN / STORES[request.param], tmp_path / "c"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fail if the test's commands take much memory at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = resident("VmRSS")
    yield
    assert resident("VmHWM") - before < FORGED


def resident(kind: str) -> int:
    """This process's memory in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_cache_that_claims_the_impossible(cache: Path, claim: str, little_memory: None) -> None:
    CLAIMS[claim](cache)
    for command in ("inspect", "verify"):
        assert_one_line(dhkd(command, cache), 1, [str(cache)])


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_that_is_something_else(cache: Path, kind: str, little_memory: None) -> None:
    if kind == "a link outside":
        chunk, outside = chunk_of(cache), cache.parent / "outside"
        chunk.rename(outside)
        chunk.symlink_to(outside)
    else:
        OBJECTS[kind](cache)
    assert_one_line(dhkd("verify", cache), 1, ["cache at "])
    assert dhkd("inspect", cache).code in (0, 1)


@pytest.mark.parametrize("kind", ["another dtype", "another number of classes"])
def test_values_of_another_kind_are_not_good(cache: Path, kind: str) -> None:
    if kind == "another dtype":
        in_manifest("identity", "signals", "logits", "codec", value={"kind": "float32"})(cache)
    else:
        in_manifest("identity", "signals", "c.logits", "codec", "k", value=1)(cache)
    assert_one_line(dhkd("verify", cache), 1, ["cache at "])


def test_metadata_that_describes_other_arrays(tmp_path: Path) -> None:
    """dhkd reads by its manifest; another program would read by the array's own metadata."""
    cache = Path(shutil.copytree(GOLDEN / STORES["zarr"], tmp_path / "c"))
    array = cache / "signals" / "logits" / "zarr.json"
    array.write_text(array.read_text().replace("float16", "uint16"))
    sealed(cache, lambda body: body["structure"].update({"signals/logits/zarr.json": crc32c(array.read_bytes())}))
    assert_one_line(dhkd("verify", cache), 1, ["signals/logits/zarr.json"])


def test_training_refuses_a_forged_cache_in_one_line(tmp_path: Path) -> None:
    cache = Path(shutil.copytree(GOLDEN / STORES["zarr"], tmp_path / "c"))
    CLAIMS["2^31 views"](cache)
    outcome = dhkd("train-student", "digits", "--cache", cache, "--out", tmp_path / "run", "--cpu", "--track", "none")
    assert_one_line(outcome, 1, ["cache at "])
    assert not (tmp_path / "run").exists()


def test_a_repair_writes_nothing_through_links(tmp_path: Path) -> None:
    from dhkd.data.storage.folder import Folder

    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_bytes(b"kept")
    (tmp_path / "cache" / "c").symlink_to(tmp_path / "elsewhere")
    folder = Folder(tmp_path / "cache")
    for act in (
        lambda: folder.put("c/new", b"x", replace=True),
        lambda: folder.put("../elsewhere/kept", b"x", replace=True),
        lambda: folder.delete("c/kept"),
        lambda: folder.get("c/kept"),
    ):
        with pytest.raises(DhkdError, match="expected a place inside"):
            act()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept"]
    assert folder.sizes() == {}


# the terminal

RUDE = "dhkd\x1b]0;owned\x07\x1b[31m\r\u202egnp\u2066\x9b2J\u200b\n| state | complete"


def harmless(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_what_a_cache_holds_reaches_the_terminal_spelled_out(cache: Path, options: tuple[str, ...]) -> None:
    provenance = {"logits": {"command": RUDE, "hardware": RUDE, "versions": {RUDE: RUDE}, "teacher_test_top1": RUDE}}
    in_manifest("provenance", value=provenance)(cache)
    in_manifest("identity", "dataset", "name", value=RUDE)(cache)
    outcome = dhkd("inspect", cache, *options)
    assert outcome.code == 0, outcome.err
    assert "dhkd" in outcome.out
    assert harmless(outcome.out + outcome.err)
    assert "\n| state" not in outcome.out, "nor can it look like another row"


def test_a_recipe_and_a_teacher_without_any_facts_are_shown(cache: Path) -> None:
    in_manifest("identity", "recipe", value={})(cache)
    in_manifest("identity", "signals", "logits", "teacher", value={})(cache)
    in_manifest("provenance", value={"logits": 5})(cache)
    assert dhkd("inspect", cache).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", f"no such cache {RUDE}"),
        ("verify", RUDE),
        ("presets", "show", RUDE),
        ("no such command", RUDE),
        ("inspect", "x", RUDE),
        ("train-student", "digits", "--set", f"student={RUDE}", "--cache", "c", "--out", "o"),
    ],
    ids=lambda words: words[0],
)
def test_what_an_error_quotes_is_spelled_out(words: tuple[str, ...], tmp_path: Path) -> None:
    os.chdir(tmp_path)
    outcome = dhkd(*words)
    assert outcome.code in (1, 2)
    assert harmless(outcome.err)
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb\x07\x7f", "a\\rb\\x07\\x7f"),
        ("line\r\nline\n\tx", "line\nline\n\tx"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eabc\u2069", "\\u202eabc\\u2069"),
        ("\ufeff\u200bx\udc80", "\\ufeff\\u200bx\\udc80"),
        ("Grüße, 漢字, émoji 👩\u200d🚀", "Grüße, 漢字, émoji 👩\u200d🚀"),
    ],
)
def test_control_characters_are_spelled_out(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert "\n" not in printable_line(text)


# secrets in addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:hidden@host/a", "https://…@host/a"),
        ("https://hidden@host", "https://…@host"),
        ("https://user:hid/den@host/a: no access", "https://…@host/a: no access"),
        ("https://user:hid?den#hidden@host/a", "https://…@host/a"),
        ("https://user:hid@den@host:80/a", "https://…@host:80/a"),
        ("https://host/a?sig=hidden%2B&x=hidden: expected", "https://host/a?…: expected"),
        ("('s3://b/a?token=hidden', 1)", "('s3://b/a?…', 1)"),
        ("https://host/a#hidden", "https://host/a#…"),
        ("https://u:hidden@h/a?hidden and https://h:80/b@2x/c", "https://…@h/a?… and https://h:80/b@2x/c"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("s3://bucket/train/{000..127}.tar", "s3://bucket/train/{000..127}.tar"),
        ("plain text? with a@b and #1", "plain text? with a@b and #1"),
    ],
)
def test_secrets_of_addresses_are_left_out(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert "hidden" not in shown(text)


SECRET = "http://user:hidden@127.0.0.1:1/data"


def test_a_data_root_with_a_password_is_in_no_output_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    data = '{source: webdataset, num_classes: 2, train: "train/{0..1}.tar", test: "val/0.tar"}'
    options = ["--set", f"data={data}", "--cpu", "--track", "none", "--out", tmp_path / "run"]
    outcome = dhkd("train-teacher", "digits", "--data-root", f"{SECRET}?hidden=1", *options)
    assert_one_line(outcome, 1, ["http://…@127.0.0.1:1/data/train/0.tar?… could not be fetched"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"hidden" in path.read_bytes() or "hidden" in path.name] == []
    assert "hidden" not in outcome.err


def test_a_preset_loses_its_secrets_when_it_is_read() -> None:
    experiment = load_experiment("digits", ["record.measured=https://user:hidden@host/a?hidden"])
    assert experiment.record["measured"] == "https://…@host/a?…"


# data roots and patterns


@pytest.mark.parametrize(
    "root",
    [
        "pipe:touch owned; cat x.tar",
        "pipe:touch${IFS}owned",
        "file:///etc",
        "hf://x/y",
        "ais://x/y",
        "htgs://x",
        "ftp://h/x",
        "https://h/a#b",
    ],
)
def test_a_root_that_is_a_command_is_refused(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^webdataset: --data-root"):
        expand(root, "{0..1}.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch owned",
        "train/../../secret.tar",
        "..",
        "/etc/{0..1}.tar",
        "https://elsewhere/x.tar",
        "{0..99999999999}.tar",
        "{0..9999}/{0..9999}.tar",
        "{0,1}" * 40 + ".tar",
        "{0..1",
        "0}",
        "a::/etc/x.tar",
    ],
)
def test_a_pattern_that_leads_elsewhere_or_has_no_end_is_refused(pattern: str, little_memory: None) -> None:
    with pytest.raises(ConfigError, match=r"^webdataset: "):
        expand("https://host/data", pattern)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{0..1}-{x,y}", ["0-x", "0-y", "1-x", "1-y"]),
        ("a.tar::b.tar", ["a.tar", "b.tar"]),
    ],
)
def test_patterns_count_and_list_as_a_shell_does(pattern: str, expected: list[str]) -> None:
    assert expand("s3://b/data/", pattern) == [f"s3://b/data/{name}" for name in expected]


def test_a_signature_of_the_root_stays_at_the_end() -> None:
    assert expand("https://h/d?sig=1", "{0..1}.tar") == ["https://h/d/0.tar?sig=1", "https://h/d/1.tar?sig=1"]
    with pytest.raises(DataError) as caught:
        expand("https://h/d?sig=hidden", "*.tar")
    assert "hidden" not in str(caught.value)


# presets

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "record: &r {a: *r}",
        "record: &r [*r]",
        "record: " + "[" * 3000 + "]" * 3000,
        "record: {a: " * 30 + "1" + "}" * 30,
        "record: [" + "1, " * 30_000 + "1]",
        "#" * 300_000,
        "record: !!python/object/apply:os.system [touch owned]",
        "record: !!python/name:os.system",
        "record: !!binary aGk=",
        "record: !!set {a, b}",
        "record: !own {a: 1}",
        "seed: 1\nseed: 2",
        "seed: 1" + "0" * 5000,
        "seed: 0x" + "f" * 5000,
        "seed: 1" + ":59" * 5000,
        "seed: .nan",
        "record: {x: 1e999}",
        "data: {source: webdataset, train: ../../secret.tar}",
        "data: {source: webdataset, train: /etc/passwd}",
        "data: {source: webdataset, test: 'pipe:touch owned'}",
        "data: {source: webdataset, test: 'https://elsewhere/x'}",
        "".join(f"unknown{number}: 1\n" for number in range(5000)),
        "x" * 100_000 + ": 1",
        "\x1b[31m: 1",
        "? [a]\n: 1",
    ],
    ids=lambda text: text[:40],
)
def test_a_preset_that_has_no_end_or_runs_code_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little_memory: None
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = tmp_path / "preset.yaml"
    preset.write_text(text)
    outcome = dhkd("plan", preset)
    assert_one_line(outcome, 2, ["preset"])
    assert harmless(outcome.err)
    assert len(outcome.err) < 12_000
    assert [path.name for path in tmp_path.iterdir()] == ["preset.yaml"]


def test_aliases_that_repeat_a_little_are_read(tmp_path: Path) -> None:
    text = (
        "description: x\ndata: digits\nviews: {kind: crop-flip}\n"
        "teacher: &training {architecture: resnet8, epochs: 1, lr: 0.1}\nstudent: {<<: *training, epochs: 2}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    experiment = load_experiment(str(tmp_path / "p.yaml"))
    assert (experiment.student.architecture, experiment.student.epochs) == ("resnet8", 2)


def test_values_of_a_cache_stay_plain_numbers(cache: Path) -> None:
    """The forger's tools above leave a cache good that they don't change."""
    sealed(cache, lambda body: None)
    assert dhkd("verify", cache).code == 0
    assert np.isfinite(json.loads((cache / "index.json").read_bytes())["index"]["bounds"]["logits"]["error"])


@pytest.mark.parametrize("class_", [-1, 3, 127])
def test_top_k_of_a_class_that_there_is_not(tmp_path: Path, class_: int) -> None:
    """It would be an index outside a tensor, in the middle of training."""
    codec = {"kind": "top-k", "k": 1, "temperature": 4.0}
    writer = writer_at(tmp_path / "c", manifest_of(3, 300, 1, 3, codec))
    block = writer.plan.block(0, 0)
    parts = codecs.encode(writer.manifest.signals["logits"].codec, "logits", block, np.zeros((3, 300), np.float32))
    classes = np.full_like(parts["class"], 300 + class_ if class_ >= 0 else class_)
    writer.put(block, "logits", {**parts, "class": classes})
    writer.put(block, WITNESS, {"": np.zeros(3, np.uint32)})
    complete(writer)
    with pytest.raises(DhkdError, match=r"classes expected 0 to 299, got"):
        open_cache(tmp_path / "c").read_view(0)
    assert_one_line(dhkd("verify", tmp_path / "c"), 1, ["classes expected 0 to 299"])
