"""Convert reStructuredText to sections of plain text.

docutils would need Sphinx for the roles and directives of Django's documentation; extracting only the text needs just
the few rules below.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Directives without prose; they are dropped together with their indented body.
_DROPPED = frozenset(
    {"toctree", "image", "index", "contents", "module", "currentmodule", "highlight", "program", "raw", "role"}
)
_CODE = frozenset({"code-block", "code", "console", "parsed-literal", "sourcecode"})
# Directives whose argument starts with a version number.
_VERSIONED = frozenset({"versionadded", "versionchanged", "deprecated"})

_RULE = re.compile(r"([=\-~^\"'`+*#.])\1{2,}$")
_DIRECTIVE = re.compile(r"\.\. (?:\|[^|]+\| )?([\w:-]+?)::(?:\s+(.*))?$")
_TARGET = re.compile(r"(?:\.\. _.*:(?:\s.*)?|__ \S.*)$")
_FOOTNOTE = re.compile(r"\.\. \[[^\]]+\] ")
_COMMENT = re.compile(r"\.\.(?: |$)")
_OPTION = re.compile(r":[\w-]+:(?:\s|$)")
_TABLE_RULE = re.compile(r"(?=.*[=-]{2})[=+|\-\s]+$")
_BULLET = re.compile(r"^(?:[*+-]|#\.|\d+[.)])\s+")

_INLINE = re.compile(
    r"``(?P<literal>.+?)``"
    r"|:(?P<role>[\w:+-]+):`(?P<text>[^`]+)`"
    r"|`(?P<link>[^`]+)`(?:__?)?"
    r"|\*\*(?P<bold>[^*]+)\*\*"
    r"|(?<![\w*])\*(?P<italic>[^*\s][^*]*)\*(?![\w*])"
    r"|(?<![\w|])\|(?P<substitution>[^|\s][^|]*)\|"
    r"|(?<![\w`])(?P<reference>[A-Za-z][\w-]*[A-Za-z0-9])__?(?![\w*])"
    r"|\\(?P<escaped>.)"
)
_EXPLICIT_TARGET = re.compile(r"^(.+?)\s*<[^<>]+>$", re.DOTALL)
_ROLE_PREFIX = {"ticket": "#", "cve": "CVE-", "rfc": "RFC ", "pep": "PEP "}


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str
    is_code: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its text, up to the next heading of any level."""

    heading: str
    paragraphs: tuple[Paragraph, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)

    @property
    def word_count(self) -> int:
        return sum(len(paragraph.text.split()) for paragraph in self.paragraphs)


def parse_sections(page: str) -> list[Section]:
    """The sections of a page in order. Text before the first heading is dropped."""
    lines = page.expandtabs().splitlines()
    starts = [(at, end) for at in range(len(lines)) if (end := _heading_end(lines, at)) is not None]
    # In an overlined heading, the title and its underline also match as a heading; drop that match.
    starts = [
        (at, end)
        for position, (at, end) in enumerate(starts)
        if position == 0 or at >= starts[position - 1][1] or end > starts[position - 1][1]
    ]
    sections = []
    for position, (at, end) in enumerate(starts):
        stop = starts[position + 1][0] if position + 1 < len(starts) else len(lines)
        title = lines[at + 1] if end - at == 3 else lines[at]
        sections.append(Section(clean_inline(title.strip()), tuple(_paragraphs(lines[end:stop]))))
    return sections


def clean_inline(text: str) -> str:
    """A paragraph without inline markup, white space collapsed."""
    return " ".join(_INLINE.sub(_inline_text, text).split())


def _heading_end(lines: list[str], at: int) -> int | None:
    """The index after the heading that starts at line `at`; None if no heading starts there."""
    line = lines[at]
    if not line.strip():
        return None
    if _RULE.match(line) and at + 2 < len(lines) and lines[at + 2] == line and lines[at + 1].strip():
        return at + 3
    if at + 1 >= len(lines) or line[0].isspace() or _RULE.match(line) or not _RULE.match(lines[at + 1]):
        return None
    follows_text = at > 0 and lines[at - 1].strip() and not lines[at - 1].startswith("..")
    if len(lines[at + 1]) < len(line.rstrip()) or (follows_text and not _RULE.match(lines[at - 1])):
        return None
    return at + 2


def _inline_text(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "escaped":
        return match["escaped"].strip()
    if kind == "text":
        text = match["text"]
        explicit = _EXPLICIT_TARGET.match(text)
        if explicit:
            return _INLINE.sub(_inline_text, explicit[1])
        role = match["role"].rsplit(":", 1)[-1]
        if text.startswith("~"):
            return text.rsplit(".", 1)[-1].lstrip("~")
        return _ROLE_PREFIX.get(role, "") + text.lstrip("!/.")
    if kind == "link":
        explicit = _EXPLICIT_TARGET.match(match["link"])
        return explicit[1] if explicit else match["link"]
    return match[kind] if kind else match[0]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _paragraphs(lines: list[str]) -> Iterator[Paragraph]:
    """Split a section's lines at blank lines and markup; code keeps its line breaks."""
    for block, is_code in _blocks(lines):
        if is_code:
            margin = min(_indent(line) for line in block)
            text = "\n".join(line[margin:].rstrip() for line in block)
        else:
            text = clean_inline(" ".join(block))
        if any(character.isalnum() for character in text):
            yield Paragraph(text, is_code)


def _blocks(lines: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Blocks of consecutive lines, each with whether it is code."""
    block: list[str] = []
    block_is_code = False
    dropped_indent: int | None = None  # inside a dropped directive with this indent
    code_indent: int | None = None  # inside code below a line with this indent
    expects_options = False
    for line in lines:
        stripped = line.strip()
        indent = _indent(line)
        if stripped and dropped_indent is not None and indent <= dropped_indent:
            dropped_indent = None
        if stripped and code_indent is not None and indent <= code_indent:
            code_indent = None
        if not stripped or dropped_indent is not None:
            expects_options = False
            if block:
                yield block, block_is_code
            block = []
            continue
        if expects_options and _OPTION.match(stripped):
            continue
        expects_options = False
        in_code = code_indent is not None
        if block and (block_is_code != in_code or (not in_code and _BULLET.match(stripped))):
            yield block, block_is_code
            block = []
        block_is_code = in_code
        if in_code:
            block.append(line)
            continue
        if _COMMENT.match(stripped) or _TARGET.match(stripped):
            directive = _DIRECTIVE.match(stripped)
            text, keeps_body, opens_code = _explicit_markup(stripped, directive)
            if block:
                yield block, False
            block = [text] if text else []
            dropped_indent = None if keeps_body else indent
            code_indent = indent if opens_code else None
            expects_options = directive is not None
            continue
        if _TABLE_RULE.match(stripped):
            continue
        if stripped.endswith("::"):
            code_indent = indent
            stripped = "" if stripped == "::" else stripped[:-1]
        if stripped.startswith("|"):
            stripped = stripped.strip("|").replace("|", " ")
        block.append(_BULLET.sub("", stripped, count=1) if not block else stripped)
    if block:
        yield block, block_is_code


def _explicit_markup(line: str, directive: re.Match[str] | None) -> tuple[str, bool, bool]:
    """For a line that starts with '..': the text to keep, whether to keep the indented body, whether it is code."""
    if directive:
        name, argument = directive[1], directive[2] or ""
        if name in _CODE:
            return "", True, True
        if name in _VERSIONED:
            return " ".join(argument.split()[1:]), True, False
        return ("", False, False) if name in _DROPPED else (argument, True, False)
    if _TARGET.match(line):
        return "", False, False
    if _FOOTNOTE.match(line):
        return _FOOTNOTE.sub("", line), True, False
    return ("", False, False) if _COMMENT.match(line) else (line, True, False)
