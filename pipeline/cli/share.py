"""The command `share`, which prepares a cache or a run for a hub."""

from pathlib import Path

import click
from dhkd.pipeline.cli.options import json_option
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import LOCATION, OUT_FOLDER, require_apart


@click.command()
@click.argument("source", metavar="CACHE_OR_RUN", type=LOCATION)
@click.argument("folder", metavar="DIR", type=OUT_FOLDER)
@click.option("--license", "license_id", metavar="ID", help="License to name in the card, such as cc-by-4.0.")
@click.option("--store", help="Storage format of a cache in DIR: zarr or webdataset [default: that of the cache].")
@click.option("--allow-names", is_flag=True, help="Share words that equal your user name or this machine's name, too.")
@json_option
def share(
    source: str, folder: Path, license_id: str | None, store: str | None, allow_names: bool, as_json: bool
) -> None:
    """Write a cache or a run into a folder to be pushed to a hub.

    The folder holds what others need, with a card (README.md) and checksums, and nothing of this machine: paths are
    shortened, and secrets are refused. If interrupted, run the same command again: it resumes.
    """
    require_apart(folder, "DIR", CACHE_OR_RUN=source)
    from dhkd.pipeline.share.sharing import share as share_place

    result = share_place(source, folder, license=license_id, store=store, allow_names=allow_names)
    hint = "" if license_id else "; name a license in its README.md, or with --license"
    emit(result, as_json, lambda: f"{result}{hint}")
