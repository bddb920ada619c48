"""A network reduced to some of its outputs: those of a data set's classes, in the data set's order."""

import torch
from dhkd.stages.models.network import Network, Outputs
from torch import Tensor, nn


class OfClasses(Network):
    """Wrap a trained network `inner`, whose output number `outputs[k]` is for class k of the data set.

    Everything else stays as in `inner`. If the classifier is a linear or convolutional layer, it is reduced to the rows
    of these outputs, so that class activation maps, and methods that reuse the classifier, have the data set's classes
    as well.
    """

    def __init__(self, inner: Network, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.embedding_dim, self.bare_sums = inner.embedding_dim, inner.bare_sums
        self.first_stage, self.map_paths = inner.first_stage, inner.map_paths
        self.compared_stages, self.may_leave_out_stages = inner.compared_stages, inner.may_leave_out_stages
        self.pools_last_map = inner.pools_last_map
        self.tail_names = tuple(f"inner.{name}" for name in inner.tail_names)
        self.register_buffer("output_K", torch.tensor(outputs, dtype=torch.int64), persistent=False)
        self.output_K: Tensor
        rows = _with_rows(inner.head, self.output_K) if inner.head_name else None
        self.rows = rows if rows is not None else nn.Identity()
        self.head_name = "rows" if rows is not None else inner.head_name and f"inner.{inner.head_name}"

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs for images (B, C, H, W), with the logits (B, K) of the data set's classes."""
        outputs = self.inner.outputs(images_BCHW, maps=maps)
        if outputs.logits is None:
            return outputs
        return outputs._replace(logits=outputs.logits[:, self.output_K])

    def prepare_maps(self) -> None:
        """Prepare `inner` for outputs with maps; this changes no values."""
        self.inner.prepare_maps()

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return the batch norms of `inner`, as it finds them."""
        return self.inner.batch_norms(images_BCHW)


def _with_rows(head: nn.Module, output_K: Tensor) -> nn.Linear | nn.Conv2d | None:
    """Return a copy of a classifier that has only these outputs, or None for another kind of module."""
    has_bias = getattr(head, "bias", None) is not None
    copy: nn.Linear | nn.Conv2d
    if isinstance(head, nn.Linear):
        copy = nn.Linear(head.in_features, len(output_K), has_bias)
    elif isinstance(head, nn.Conv2d) and head.groups == 1 and isinstance(head.padding, tuple):
        sizes = (head.in_channels, len(output_K), head.kernel_size)
        copy = nn.Conv2d(*sizes, stride=head.stride, padding=head.padding, bias=has_bias)  # type: ignore[arg-type]
    else:
        return None
    copy.load_state_dict({name: tensor[output_K] for name, tensor in head.state_dict().items()})
    return copy
