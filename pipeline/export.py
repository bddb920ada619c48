"""`export`: writes a finished run's network as one file."""

from pathlib import Path

from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.build.networks import file_of_average, recorded_architecture, trained_network, weights_file
from dhkd.pipeline.results import Exported
from dhkd.stages.models import count_parameters
from dhkd.stages.models.weights import read_metadata, save_weights, weights_sha256

FORMAT = ".safetensors"


def export(run: Path, out: Path, *, ema: bool = False) -> Exported:
    """Write a finished run's network, without its auxiliary head, as one safetensors file.

    If `ema` is true, its weights are the average that the run kept of them.
    """
    if out.suffix != FORMAT:
        raise ConfigError(
            f"--out {out}: expected a file that ends in {FORMAT}, the only format that export writes, got"
            f" {out.suffix or 'no ending'}; name it {out.stem or 'network'}{FORMAT}"
        )
    if out.exists():
        raise ConfigError(f"--out {out}: expected a new file, it exists; choose another or remove it")
    file = file_of_average(run) if ema else weights_file(run, "student")
    metadata = read_metadata(file)
    missing = [key for key in ("architecture", "num_classes") if key not in metadata]
    if missing:
        raise WeightsError(f"{file}: expected weights written by dhkd, it does not say its {' and '.join(missing)}")
    try:
        num_classes = int(metadata["num_classes"])
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{file}: expected a number of classes in its metadata, got another text") from error
    architecture = recorded_architecture(file)
    assert architecture is not None
    network = trained_network(architecture, num_classes, file, "student").network
    save_weights(out, network, metadata)
    return Exported(
        file=str(out),
        metadata=metadata,
        parameters=count_parameters(network),
        sha256=weights_sha256(network),
    )
