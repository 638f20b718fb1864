"""The pages of documentation as tests read them: programs, what they print, quoted messages, links.

A fenced block of Python is a program when its first line is the command that runs it, as a comment::

    # dsm run -n 2 --nodes 2 count.py
    # python died.py  (status 1)

Blocks before it that begin with ``# in count.py`` are its first parts.  A block of text that follows a
program is what that prints: all of standard output, then lines of standard error; ``…`` stands for anything.
Messages of dsm are quoted in lines that begin with ``>``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"# ((?:\w+=\S+ )*(?:dsm run|python) .*?)(?:  \(status (\d+)\))?")
_PART = re.compile(r"# in (\S+)")


@dataclass(frozen=True)
class Program:
    """A program of a page."""

    page: str
    #: Words of the command line; the last is the file.
    command: tuple[str, ...]
    status: int
    text: str
    #: What it prints; None when the page does not say.
    prints: str | None

    @property
    def name(self) -> str:
        """The file that the text goes into."""
        return next(word for word in self.command if word.endswith(".py"))


def blocks(text: str) -> list[tuple[str, str, int, int]]:
    """Return the fenced blocks: language, contents, where they begin and end."""
    return [(found[1], found[2], found.start(), found.end()) for found in _BLOCK.finditer(text)]


def outside(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", text)


def read(path: Path) -> tuple[list[Program], list[str]]:
    """Return the programs of a page, and its blocks of Python that belong to none."""
    text = path.read_text()
    found = blocks(text)
    programs: list[Program] = []
    parts: dict[str, list[str]] = {}
    for index, (language, contents, _, end) in enumerate(found):
        if language != "python":
            continue
        first = contents.split("\n", 1)[0]
        if part := _PART.fullmatch(first):
            parts.setdefault(part[1], []).append(contents)
        elif command := _COMMAND.fullmatch(first):
            words = tuple(shlex.split(command[1]))
            prints = None
            if index + 1 < len(found) and found[index + 1][0] == "text":
                prints = found[index + 1][1] if not text[end : found[index + 1][2]].strip() else None
            name = next(word for word in words if word.endswith(".py"))
            whole = "\n".join([*parts.pop(name, []), contents])
            programs.append(Program(path.name, words, int(command[2] or 0), whole, prints))
        else:
            parts.setdefault("", []).append(contents)
    return programs, [block for left in parts.values() for block in left]


def _line(text: str) -> re.Pattern[str]:
    """Return what matches a line in which ``…`` stands for anything."""
    return re.compile(".*?".join(map(re.escape, text.split("…"))))


def is_shown(shown: str, stdout: str, stderr: str) -> bool:
    """Whether a page shows what a program prints: all of standard output, then lines of standard error.

    Managers may say more there: other programs of the machine talk to them, too.
    """
    lines = [_line(line) for line in shown.splitlines()]
    printed = stdout.splitlines()
    if len(printed) > len(lines):
        return False
    if not all(line.fullmatch(text) for line, text in zip(lines, printed, strict=False)):
        return False
    said = iter(stderr.splitlines())
    return all(any(line.fullmatch(text) for text in said) for line in lines[len(printed) :])


def headings(text: str) -> list[str]:
    """Return the headings of a page, without their number signs."""
    return re.findall(r"^#+ +(.*)$", outside(text), re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the name by which a link reaches a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def quotes(text: str) -> list[str]:
    """Return the quoted messages: paragraphs whose lines begin with ``>``."""
    found = re.findall(r"(?:^> ?.*\n)+", outside(text), re.MULTILINE)
    return [" ".join(re.sub(r"^> ?", "", quote, flags=re.MULTILINE).split()) for quote in found]
