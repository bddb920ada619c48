"""The members of one tar shard: where each sample's image and label lie, and which members are refused.

Nothing is ever unpacked to a path, and links inside a shard are not followed, so a member's name can't lead anywhere.
"""

import errno
import os
import tarfile
import zlib
from collections import Counter
from typing import BinaryIO, NamedTuple

from dhkd.data.errors import DataError
from dhkd.data.images.decoding import SUFFIXES
from dhkd.data.sources.shard_labels import LabelFault, LabelForm
from dhkd.data.sources.shard_urls import reason_of

# The first bytes of files that people take for shards, because they are named .tar.
OTHER_FILES = {
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK": "a zip file",
}

LARGEST_LABEL = 16 * 2**20  # bytes; a label may stand in JSON beside much else


class Span(NamedTuple):
    """The first byte and the length of a member's content in its shard."""

    start: int
    size: int


class Sample(NamedTuple):
    """A sample of a shard; `crc` covers the headers of image and label, and the label's content.

    Where labels aren't used, the label is 0, of no bytes, and its place is that of the image.
    """

    name: bytes
    image: Span
    label_at: Span
    label: int
    crc: int


class _Refused(ValueError):
    """A member that no sample may have; the message says why and what to do."""


def samples_in(url: str, stream: BinaryIO, form: LabelForm) -> list[Sample]:
    """Return the samples of an open shard, in the order of their images; none for an empty tar file.

    Raises `DataError` for anything but a complete, plain tar file of whole samples.
    """
    start = stream.read(max(map(len, OTHER_FILES)))
    stream.seek(0)
    other = next((words for magic, words in OTHER_FILES.items() if start.startswith(magic)), None)
    if other:
        raise DataError(
            f"webdataset: {url}: expected a plain tar file, got one that is {other}, where no single image can be read;"
            f" unpack it to a plain .tar file"
        )
    members = _Members(form)
    try:
        members.read(stream)
        members.require_whole()
    except _Refused as error:
        raise DataError(f"webdataset: {url}: {error}") from error
    except (tarfile.TarError, OSError, ValueError) as error:
        raise damaged(url, error) from error
    samples = []
    for name, image in members.images.items():
        label_at, label = members.labels[name] if form.used else (Span(image.start, 0), 0)
        samples.append(Sample(os.fsencode(name), image, label_at, label, crc_of(stream, image, label_at)))
    return samples


def crc_of(stream: BinaryIO, image: Span, label: Span) -> int:
    """Return the CRC-32 of a sample's label and of the headers of its image and label.

    A header holds the member's name, size and time. It shows that the bytes of the image are those of this sample.
    """
    stream.seek(image.start - tarfile.BLOCKSIZE)
    crc = zlib.crc32(stream.read(tarfile.BLOCKSIZE))
    stream.seek(label.start - tarfile.BLOCKSIZE)
    return zlib.crc32(stream.read(tarfile.BLOCKSIZE + label.size), crc)


def damaged(url: str, error: BaseException) -> DataError:
    """Return the error for a shard that can't be read."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL and error.strerror:
        return DataError(f"webdataset: {url}: expected a tar file, got {error.strerror}")
    return DataError(f"webdataset: {url}: the file is damaged or not a tar file ({reason_of(error)})")


class _Members:
    """The images and labels of a shard by sample name. `others` counts the endings of all other members."""

    def __init__(self, form: LabelForm) -> None:
        self.form = form
        self.images: dict[str, Span] = {}
        self.labels: dict[str, tuple[Span, int]] = {}
        self.others: Counter[str] = Counter()
        # Members whose last ending alone is that of an image or a label: a file of each, by its name up to this ending.
        self._dotted_images: dict[str, str] = {}
        self._dotted_labels: dict[str, str] = {}

    def read(self, stream: BinaryIO) -> None:
        with tarfile.open(fileobj=stream, mode="r:") as shard:
            end = 0
            for member in shard:
                shard.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
                if member.size < 0 or member.offset_data <= end:  # tarfile would go round in circles
                    raise ValueError(f"a member that overlaps another, at byte {member.offset_data:,}")
                end = member.offset_data
                if not member.isdir():
                    self._take(shard, member)
            # tarfile takes an unreadable header for the end of the file, but only zeros may follow the last member.
            stream.seek(shard.offset)
            rest = stream.read()
            if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
                raise ValueError(f"it ends, or is damaged, at byte {shard.offset:,}")

    def _take(self, shard: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name, suffix = _sample_and_suffix(member.name)
        file = member.name.rpartition("/")[2]
        if file.startswith(".") or "__MACOSX" in name.split("/") or "@eaDir" in name.split("/"):
            return  # what operating systems and storage servers add
        is_label = self.form.used and suffix == self.form.suffix
        if suffix not in SUFFIXES and not is_label:
            self.others[suffix] += 1
            stem, last = os.path.splitext(member.name)
            if last.lower() in SUFFIXES:
                self._dotted_images[stem] = member.name
            elif suffix.endswith(self.form.suffix):
                self._dotted_labels[member.name[: -len(self.form.suffix)]] = member.name
            return
        _require_plain(member)
        if "\n" in member.name:
            raise _Refused(f"{member.name!r}: a name with a line break; pack the sample under another")
        if name in (self.labels if is_label else self.images):
            kind = "label" if is_label else "image"
            raise _Refused(
                f"sample {name} has a second {kind}, {file}; give each sample a key of its own, and other images of a"
                f" sample an ending like .mask.png"
            )
        span = Span(member.offset_data, member.size)
        if is_label:
            if member.size > LARGEST_LABEL:
                raise _Refused(f"sample {name}: label expected at most {LARGEST_LABEL:,} bytes, got {member.size:,}")
            content = shard.extractfile(member)
            assert content is not None
            try:
                self.labels[name] = span, self.form.read(content.read())
            except LabelFault as error:
                raise _Refused(f"sample {name}: {error}") from error
        else:
            self.images[name] = span

    def require_whole(self) -> None:
        """Raise `_Refused` unless each sample has an image and a label. An empty shard holds no samples."""
        if not self.form.used:
            self._require_images()
            return
        lonely = sorted(self.images.keys() ^ self.labels.keys())
        dotted = self._dotted_images.keys() & self._dotted_labels.keys()
        if dotted or (lonely and self._dotted_images):
            member = self._dotted_images[min(dotted or self._dotted_images)]
            raise _Refused(
                f"{member}: a sample's key ends at the first dot of the file's name, here as"
                f" {_sample_and_suffix(member)[0]}; write keys without dots"
            )
        if not lonely and (self.images or not self.others):
            return
        lacking = f"sample {lonely[0]} has only one of them" if lonely else "the shard has none"
        counts = {"images": len(self.images), "labels": len(self.labels), **dict(self.others.most_common(5))}
        found = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in counts.items() if count)
        advice = "; if another member holds the label, name it with data.label, for example json:label"
        raise _Refused(
            f"expected samples of an image and a {self.form.suffix} file, but {lacking}; it holds {found}"
            f"{advice if self.others and not self.labels else ''}"
        )

    def _require_images(self) -> None:
        """Raise `_Refused` if the shard has no images, or has some under keys with dots."""
        for member in self._dotted_images.values():
            key = _sample_and_suffix(member)[0]
            if key not in self.images:  # or else it is a further image of a sample, such as a mask
                raise _Refused(
                    f"{member}: a sample's key ends at the first dot of the file's name, here as {key}; write keys"
                    f" without dots"
                )
        if not self.images and self.others:
            found = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in self.others.most_common(5))
            raise _Refused(f"expected images, but the shard has none; it holds {found}")


def _require_plain(member: tarfile.TarInfo) -> None:
    """Raise `_Refused` unless a member is an ordinary file whose bytes lie in the shard in one piece."""
    if member.issparse():
        raise _Refused(f"{member.name}: a sparse file, which is stored in pieces; pack the shard without --sparse")
    if member.isreg():
        return
    if member.islnk() or member.issym():
        kind = "a hard link" if member.islnk() else "a symbolic link"
        raise _Refused(
            f"{member.name}: {kind} to {member.linkname}, which is not followed; pack the files themselves, with"
            f" --dereference --hard-dereference"
        )
    raise _Refused(f"{member.name}: a named pipe or a device, which holds no bytes; leave it out")


def _sample_and_suffix(member: str) -> tuple[str, str]:
    """Split a member's path at the first dot of the file name; the suffix is returned in lower case."""
    parent, slash, file = member.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return parent + slash + stem, dot + suffix.lower()
