"""Where in a file a network's weights are, whatever keys and prefixes are put before their names.

The address of a tensor is made of the keys under which it is nested and of its name, joined by dots. So it makes no
difference whether a program nests the weights (`state_dict`), wraps the network (`module.`), or holds it as a part
(`student.`): the network's weights are all tensors below one address, and their names are the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from dhkd.data.errors import WeightsError
from dhkd.data.shown import printable_line
from torch import Tensor

# Batch norm's step counter: no output depends on it, and published files may lack it.
IGNORED = "num_batches_tracked"
# What other tools leave in a state: operation counters, and the number of weights that were averaged.
LEFTOVERS = ("total_ops", "total_params", "n_averaged")
# Modules that wrap another one and add their name to its names, anywhere in a network.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Words in the addresses of averaged weights.
AVERAGED = ("ema", "swa", "averaged", "average", "avg")

Difference = tuple[str, Tensor | None, Tensor | None]  # a name, the network's tensor, and the file's


@dataclass(eq=False)  # not frozen: whoever raises an error adds to it
class Misfit(Exception):
    """The error that no address, i.e. no prefix of names in a weights file, has the network's weights.

    `differing` says how the closest address differs from the network, which has `number` tensors; `tensors` are those
    of the closest address.
    """

    differing: Sequence[Difference]
    number: int
    tensors: Mapping[str, Tensor]

    def other_classes(self, head: str | None) -> tuple[int, int] | None:
        """Return the network's and the file's number of classes if they are all that differs, else None."""
        shapes = [(a.shape, b.shape) for _, a, b in self.differing if a is not None and b is not None]
        if (
            not self._in_head(head)
            or len(shapes) < len(self.differing)
            or not all(a and b and a[1:] == b[1:] for a, b in shapes)
        ):
            return None
        return shapes[0][0][0], shapes[0][1][0]

    def lacks_only(self, head: str | None) -> bool:
        """Return whether the file lacks the classifier, whose path is `head`, and nothing else."""
        return self._in_head(head) and all(found is None for _, _, found in self.differing)

    def _in_head(self, head: str | None) -> bool:
        # A library's network has a longer path to its classifier than its weights' names say.
        return all(f".{head}".endswith("." + name.rpartition(".")[0]) for name, _, _ in self.differing)


@dataclass(frozen=True)
class Address:
    """The weights that were taken, where they are, and where others are that would have fitted as well."""

    origin: str
    tensors: Mapping[str, Tensor]
    instead_of: Sequence[str] = ()


def placed(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], published: Mapping[str, str | None]
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors below every address of `state`, by the network's own names."""
    wrappers = {word for word in WRAPPERS if not any(word in name.split(".") for name in expected)}
    places: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        words = name.split(".")
        for depth in range(len(words)):
            places.setdefault(".".join(words[:depth]), {})[".".join(words[depth:])] = tensor
    return {address: _in_our_names(_unwrapped(below, wrappers), published) for address, below in places.items()}


def choose(places: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor], origin: str) -> Address:
    """Return the one address whose tensors have the network's names and shapes.

    Of a network and its average, the average is taken. Raises `Misfit` if no address fits, and `WeightsError` if
    several do.
    """
    differing = {address: _differing(expected, below) for address, below in places.items()}
    fitting = [address for address, differences in differing.items() if not differences]
    if not fitting:
        closest = min(differing, key=lambda address: len(differing[address]), default="")
        raise Misfit(differing.get(closest, []), len(expected), places.get(closest, {}))
    different = [
        address
        for number, address in enumerate(fitting)
        if not any(_equal(places[address], places[other]) for other in fitting[:number])
    ]
    if len(different) == 1:
        return Address(origin, places[different[0]])
    names = {address: f"{origin}{'.' if '::' in origin else '::'}{printable_line(address)}" for address in different}
    averaged = [address for address in different if is_average(address)]
    if len(different) == 2 and len(averaged) == 1:
        taken = averaged[0]
        others = [name for address, name in names.items() if address != taken]
        return Address(names[taken], places[taken], others)
    raise WeightsError(
        f"weights {origin}: expected weights of one network, got {len(different)} that fit; name one of them:"
        f" {', '.join(names.values())}"
    )


def is_average(address: str) -> bool:
    """Return whether an address names averaged weights, such as `state_dict_ema` or `ema.module`."""
    return any(word in AVERAGED for word in address.lower().replace(".", "_").replace("-", "_").split("_"))


def _differing(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[Difference]:
    names = [*expected, *(name for name in found if name not in expected)]
    return [
        (name, expected.get(name), found.get(name))
        for name in names
        if _shape(expected.get(name)) != _shape(found.get(name)) and not _may_differ(name, expected, found)
    ]


def _may_differ(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Return whether one side may lack this name: no output depends on a counter."""
    if name.rpartition(".")[2] in LEFTOVERS and name not in expected:
        return True
    return name.endswith(IGNORED) and (name not in found or name not in expected)


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether both hold the same values for all weights; tensors that can't be compared are not equal."""
    names = [name for name in one if name in other and not name.endswith(IGNORED)]
    try:
        return all(one[name] is other[name] or torch.equal(one[name], other[name]) for name in names)
    except RuntimeError:  # of other layouts or devices
        return False


def _unwrapped(below: dict[str, Tensor], wrappers: set[str]) -> dict[str, Tensor]:
    """Take the names of wrapping modules out of all names, unless two tensors would then have one name."""
    names = {name: ".".join(word for word in name.split(".") if word not in wrappers) for name in below}
    if len(set(names.values())) < len(below) or not all(names.values()):
        return below
    return {names[name]: tensor for name, tensor in below.items()}


def _in_our_names(state: Mapping[str, Tensor], published_names: Mapping[str, str | None]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        published = next((start for start in published_names if name.startswith(start)), "")
        replacement = published_names.get(published, "")
        if replacement is not None:
            renamed[replacement + name.removeprefix(published)] = tensor
    return renamed
