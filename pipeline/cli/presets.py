"""The command `presets`, which lists the presets, shows one, or copies one to a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from dhkd.data.errors import ConfigError
from dhkd.pipeline.cli.groups import Group
from dhkd.pipeline.cli.options import json_option
from dhkd.pipeline.cli.output import emit, print_text
from dhkd.pipeline.cli.paths import LOCATION, OUT_FILE

if TYPE_CHECKING:
    from dhkd.configs.schema import Experiment
    from dhkd.pipeline.results import ListedPreset


@click.group(cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def presets(context: click.Context, as_json: bool) -> None:
    """List the presets, show one, or copy one to a file."""
    if context.invoked_subcommand is not None:
        return
    from dhkd.configs.load import load_experiment, preset_names
    from dhkd.pipeline.cli.tables.presets import presets_table

    listed = [_listed(name, load_experiment(name)) for name in preset_names()]
    emit(listed, as_json, lambda: presets_table(listed))


def _listed(name: str, experiment: "Experiment") -> "ListedPreset":
    from dhkd.pipeline.results import ListedPreset

    return ListedPreset(
        name=name,
        description=experiment.description,
        data=experiment.data.source,
        teacher=experiment.teacher.architecture,
        student=experiment.student.architecture,
        parameters=experiment.record.get("parameters", {}),
        published=experiment.record.get("published", {}),
        published_top5=experiment.record.get("published_top5", {}),
    )


@presets.command()
@click.argument("name", type=LOCATION)
def show(name: str) -> None:
    """Print a preset as YAML."""
    from dhkd.configs.load import preset_text

    print_text(preset_text(name), newline=False)


@presets.command()
@click.argument("name", type=LOCATION)
@click.argument("file", type=OUT_FILE)
def copy(name: str, file: Path) -> None:
    """Copy a preset to a new YAML file, to edit and use as PRESET."""
    from dhkd.configs.load import preset_text
    from dhkd.data.disk.atomic import write_atomically

    text = preset_text(name)
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file}: expected a name that ends in .yaml")
    if file.exists():
        raise ConfigError(f"{file}: expected a new file, it exists; choose another or remove it")
    write_atomically(file, lambda stream: stream.write(text.encode()))
    click.echo(f"{file}: use it as PRESET")
