"""What MkDocs does beside its configuration: it adds the pages that are generated, and finds the code.

Nothing on the generated pages is written by hand: settings come from the schema of presets, commands from click, the
rest from files of the repository. The pages exist only while the site is built.
"""

import tomllib
from pathlib import Path

import commands_page
import files_pages
import objectives_page
import settings_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
CODE = ROOT / "build" / "import"  # where mkdocstrings looks for dhkd, as mkdocs.yml says

PAGES = {
    "reference/settings.md": settings_page.page,
    "reference/objectives.md": objectives_page.page,
    "reference/commands.md": commands_page.page,
    "notebook.md": lambda: files_pages.notebook(ROOT / "examples" / "own_network.ipynb"),
    "contributing.md": lambda: files_pages.of_the_root(ROOT / "CONTRIBUTING.md"),
    "changelog.md": lambda: files_pages.of_the_root(ROOT / "CHANGELOG.md"),
}


@event_priority(100)  # before mkdocstrings, which leaves out folders that don't exist yet
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Link the packages by their import names into one folder; in the repository they stand apart."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    root = packages.pop("dhkd")
    links = {f"dhkd.{entry.stem}": entry for entry in (ROOT / root).glob("*.py")}
    for name, place in {**links, **{name: ROOT / folder for name, folder in packages.items()}}.items():
        link = CODE.joinpath(*name.split(".")).with_suffix(place.suffix)
        if not link.parent.is_symlink() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
