"""What a file is that holds no weights by name: an archive, a page, a pointer, a compiled program.

People download the wrong thing, or name the file beside the right one; the error then says what they got.
"""

import tarfile
import zipfile
import zlib
from pathlib import Path

from dhkd.data.shown import printable_line, some_of

NAMES_LISTED = 3
HEADER = 4096  # bytes, enough to recognise any of these files
LONGEST_HEADER = 100_000_000  # bytes: the limit of the safetensors format

# What a file is, by its first bytes, and what to do instead.
KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with 'git lfs pull'"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "name a .safetensors file or a state_dict() of torch"),
    (b"%PDF", "a PDF document", "name the file of weights"),
    (b"\x89PNG", "a picture", "name the file of weights"),
    (b"\xff\xd8\xff", "a picture", "name the file of weights"),
    (b"GGUF", "a GGUF file of a language model", "name a classifier's weights"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and name one of its files"),
    (b"Rar!", "a RAR archive", "unpack it and name one of its files"),
    (b"\x93NUMPY", "a single array of NumPy", "name weights that have names"),
)
COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


def is_safetensors(path: Path) -> bool:
    """Return whether the file begins as the safetensors format does, whatever its name; False if there is no file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def other_kind(path: Path) -> str | None:
    """Say what the file is and what to do, or return None if it may be a file that `torch.save` wrote."""
    with path.open("rb") as stream:
        start = stream.read(HEADER)
    if not start:
        return "an empty file; copy or download it again"
    for magic, kind, remedy in KINDS:
        if start.startswith(magic):
            return f"{kind}; {remedy}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "a page of HTML or XML; download the file itself, not the page that shows it"
    if text.startswith(b"{"):
        return "a JSON file; name the file of weights"
    # A model of ONNX is a protocol buffer that begins with its version, a number of one byte.
    if start[:1] == b"\x08" and start[1:2] < b"\x20" and (path.suffix == ".onnx" or start[2:3] in b"\x12\x1a\x22\x3a"):
        return "a program in the ONNX format; name the weights from which it was exported"
    return _kind_of_zip(path) or _kind_of_tar(path) or _kind_of_compressed(start) or _kind_of_text(text)


def _kind_of_zip(path: Path) -> str | None:
    """Say which archive a zip file is; None for one of `torch.save`, and for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, zlib.error):
        return None
    inner = [name.partition("/")[2] for name in names]
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "a compiled program (TorchScript); name a file of the network's state_dict()"
    if "data.pkl" in inner:
        return None
    if "archive_format" in inner or any(name.startswith("serialized_exported_program") for name in names):
        return "an exported program (torch.export); name a file of the network's state_dict()"
    if names and all(name.endswith(".npy") for name in names):
        arrays = some_of([name.removesuffix(".npy") for name in names], NAMES_LISTED)
        return f"NumPy's arrays {arrays}; save them as .safetensors, in torch's names and shapes"
    return f"a zip archive of {some_of(names, NAMES_LISTED) or 'nothing'}; unpack it and name one of its files"


def _kind_of_tar(path: Path) -> str | None:
    names: list[str] = []
    try:
        with tarfile.open(path) as archive:
            while len(names) <= NAMES_LISTED and (member := archive.next()) is not None:
                names.append(member.name)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error):
        pass
    return f"a tar archive of {some_of(names, NAMES_LISTED)}; unpack it and name one of its files" if names else None


def _kind_of_compressed(start: bytes) -> str | None:
    kind = next((name for magic, name in COMPRESSED if start.startswith(magic)), None)
    return kind and f"a file compressed with {kind}; unpack it and name what it holds"


def _kind_of_text(start: bytes) -> str | None:
    """Say how a text begins; None if there are bytes that no text has."""
    try:
        line = start[:200].decode().splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        return None
    return (
        f"a text that begins with {printable_line(line, 40)!r}; name the file of weights"
        if line.isprintable()
        else None
    )
