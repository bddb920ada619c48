"""Every case of a few: all of them are written down, a few run in CI, and the others in the soak."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The cases of a parametrization, of which only `kept` run outside the soak. A case may be a tuple of values."""
    cases = list(cases)
    unknown = [case for case in kept if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in kept else pytest.mark.soak)
        for case in cases
    ]
