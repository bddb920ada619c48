"""What a cache is: its identity, compared field by field, and its provenance, shown and never compared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dhkd.data.errors import CacheDamaged, CacheMismatch

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """`identity` and `provenance` are trees of plain JSON values; `num_views` is neither: a cache may grow."""

    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    num_views: int
    block_rows: int

    @property
    def num_samples(self) -> int:
        """N, the number of samples."""
        return int(self.identity["dataset"]["num_samples"])

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return int(self.identity["dataset"]["num_classes"])

    @property
    def signals(self) -> Mapping[str, Mapping[str, Any]]:
        """Each signal's dtype and the shape of a row."""
        signals: Mapping[str, Mapping[str, Any]] = self.identity["signals"]
        return signals

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the identity: the name of what is cached."""
        return hashlib.sha256(canonical(self.identity)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return {
            "format": FORMAT_VERSION,
            "identity": dict(self.identity),
            "provenance": dict(self.provenance),
            "num_views": self.num_views,
            "block_rows": self.block_rows,
        }

    @classmethod
    def from_json(cls, tree: Any, where: str) -> "Manifest":
        """The inverse of `to_json`; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version and `CacheDamaged` for anything that is no manifest.
        """
        if not isinstance(tree, dict) or "format" not in tree:
            raise CacheDamaged(f"{where}: expected a dhkd manifest, got none; is this a dhkd cache?")
        if tree["format"] != FORMAT_VERSION:
            raise CacheMismatch(
                f"{where}: format version expected {FORMAT_VERSION}, got {tree['format']};"
                f" rebuild it with 'dhkd cache-teacher' or use the dhkd version that wrote it"
            )
        try:
            manifest = cls(tree["identity"], tree["provenance"], int(tree["num_views"]), int(tree["block_rows"]))
            shape = (manifest.num_samples, manifest.num_classes, manifest.num_views, manifest.block_rows)
            assert all(size > 0 for size in shape)
            assert all(signal["dtype"] and signal["row"] for signal in manifest.signals.values())
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise CacheDamaged(f"{where}: the manifest is damaged ({error!r}); rebuild the cache") from error
        return manifest


def canonical(tree: object) -> bytes:
    """The one JSON text of a tree of plain values, for hashing."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


def differences(
    expected: Mapping[str, Any], got: Mapping[str, Any], prefix: str = "", *, exact: bool = False
) -> list[str]:
    """Each field named in `expected` that `got` has otherwise, as 'field expected …, got …'.

    `exact`: a field that only `got` has is a difference, too.
    """
    found: list[str] = []
    for key, value in expected.items():
        actual = got.get(key, "nothing")
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(actual, Mapping):
            found += differences(value, actual, f"{name}.", exact=exact)
        elif value != actual:
            found.append(f"{name} expected {_short(value)}, got {_short(actual)}")
    if exact:
        found += [f"{prefix}{key} expected nothing, got {_short(got[key])}" for key in got if key not in expected]
    return found


def require_identity(expected: Mapping[str, Any], manifest: Manifest, where: str, remedy: str) -> None:
    """Raise `CacheMismatch`, listing every difference, unless the cache is what is expected.

    Only the fields that `expected` names are compared, so that an experiment which names no teacher accepts any.
    """
    found = differences(expected, manifest.identity)
    if found:
        raise CacheMismatch(f"cache at {where}: {'; '.join(found)}; {remedy}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == hashlib.sha256().digest_size * 2 else text
