"""The checksums in a folder that `dhkd share` made: what `sha256sum -c` reads, and a listing for web servers."""

import re
from collections.abc import Mapping

SUMS = "SHA256SUMS"
LARGEST_SUMS = 64 * 2**20  # bytes
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def sums_text(sums: Mapping[str, str]) -> str:
    """Return the file's text for hexadecimal SHA-256 checksums by path, sorted by path."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))


def parsed_sums(content: bytes) -> dict[str, str]:
    """Return the checksums by path; lines that are none, whoever wrote them, are left out."""
    lines = content.decode(errors="replace").splitlines()
    return {match[2]: match[1] for line in lines if (match := _LINE.fullmatch(line))}
