"""Pages from files outside of docs/: those of the repository's root, and the notebook."""

import json
import re
from pathlib import Path

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def of_the_root(file: Path) -> str:
    """Return a page of the repository's root, with its links as they are in docs/.

    A link to a file that is no page, such as a test, becomes the file's name.
    """
    text = re.sub(r"\]\((?:docs/)?([^)]+)\)", lambda link: f"]({PAGES.get(link[1], link[1])})", file.read_text())
    return re.sub(r"\[([^\]]*)\]\((?!https?://|#)(?![\w-]+\.md)[^)]*\)", r"\1", text)


def notebook(file: Path) -> str:
    """Return a notebook's cells as Markdown."""
    cells = json.loads(file.read_text())["cells"]
    texts = []
    for cell in cells:
        text = "".join(cell["source"])
        texts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = texts
    return "\n\n".join([title, f"This page shows the notebook `examples/{file.name}`, which the tests run.", *rest])
