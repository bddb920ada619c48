"""How the generated references write values, names and sentences in Markdown."""

import re

import yaml

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|])")
# An option of a command, alone or with a value; of --set and --grid, with the setting and its value.
_OPTION = re.compile(r"""(?<![\w/`.-])(--(?:set|grid) [\w.-]+=(?:'[^']*'|\S*[\w\]}])|--[a-z][\w-]*(?:=\S*[\w\]])?)""")
_WORD = re.compile(r"((?<![\w:.-])null(?![\w-])|(?:^|(?<=; ))[\w-]+(?=: ))")  # a value in a list of choices
_COMMAND = re.compile(r"'(dhkd [^']+)'")
_PAGE = re.compile(r"docs/([\w-]+)\.md")
_MARKED = re.compile("|".join(one.pattern for one in (_COMMAND, _OPTION, _PAGE, _WORD)))


def sentence(text: str) -> str:
    """Return a description as Markdown: with a capital and a full stop, options as code, and pages as links."""
    text = " ".join(text.split())
    if not re.match(r"[\w-]+:", text):
        text = text[:1].upper() + text[1:]
    return marked(text if text.endswith((".", "…", ":")) else f"{text}.")


def marked(text: str) -> str:
    """Return plain text as Markdown that shows it: options and commands as code, and names of pages as links."""
    parts: list[str] = []
    end = 0
    for match in _MARKED.finditer(text):
        command, option, page, word = match.groups()
        shown = f"[{page}](../{page}.md)" if page else code(command or option or word)
        parts += [escaped(text[end : match.start()]), shown]
        end = match.end()
    return "".join([*parts, escaped(text[end:])])


def escaped(text: str) -> str:
    """Return text with a backslash before everything that Markdown would read as markup."""
    return _SPECIAL.sub(r"\\\1", text)


def code(text: str) -> str:
    """Return text as a span of code."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def value(content: object) -> str:
    """Return a setting's value as YAML in a span of code."""
    plain = list(content) if isinstance(content, tuple) else content
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return code(text.strip().removesuffix("\n...").strip())


def number(content: float) -> str:
    """Return a number as people write it."""
    if content == 2**63 - 1:
        return "2⁶³ − 1"
    if content >= 2 and float(content).is_integer() and content < 10**9:
        return f"{content:,.0f}"
    return f"{content:g}"
