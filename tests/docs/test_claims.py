"""What the pages say of the code is there: exceptions, messages, links, files, commands, options, names."""

from __future__ import annotations

import ast
import re

import pytest

import dsm
import pages
from dsm.cli import VERBS

SOURCE = pages.ROOT / "dsm"
#: Headings that quote somebody else, and a word of ours whose value is shown.
FOREIGN = {
    "Bad address": "the kernel (EFAULT)",
    "Killed": "a shell",
    "signal 9 (SIGKILL)": "`dsm run`, signal and name filled in",
    "signal 11 (SIGSEGV)": "`dsm run`, signal and name filled in",
}
#: Options of other programs.
FOREIGN_OPTIONS = {"--shm-size", "--pid"}
#: These are met as one of their subclasses, or by nobody.
WITHOUT_PROGRAM = {"DSMError", "PeerError", "InternalError"}

every_page = pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)


def _strings():
    """Yield the texts of the source, a NUL where a value is filled in."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{\w+\}|%[sdg]", "\0", node.value)
    for path in sorted((SOURCE / "_native").glob("*.[ch]")):
        yield from re.findall(r'"((?:[^"\\\n]|\\.)*)"', path.read_text())


@pytest.fixture(scope="module")
def source():
    return "\n".join(" ".join(text.split(" ")) for text in _strings())


def _is_said(part, source, pieces=3):
    """Whether a text is put together from at most so many texts of the source."""
    if part in source:
        return True
    return pieces > 1 and any(
        part[:end] in source and _is_said(part[end:], source, pieces - 1)
        for end in range(len(part) - 1, 2, -1)
    )


def _unsaid(quote, source):
    parts = (part.strip() for part in quote.split("…"))
    return [part for part in parts if len(re.sub(r"\W", "", part)) > 2 and not _is_said(part, source)]


def test_a_message_that_nobody_says_is_found(source):
    assert _unsaid("page … of … went for a walk with …", source) == ["went for a walk with"]
    assert _unsaid("dsm run: the manager of node … ended with … before its workers", source) == []


@every_page
def test_quoted_messages_are_in_the_source(path, source):
    text = path.read_text()
    quoted = [quote for heading in pages.headings(text) for quote in re.findall(r'"(.+?)"', heading)]
    assert [part for quote in quoted if quote not in FOREIGN for part in _unsaid(quote, source)] == []
    assert [part for quote in pages.quotes(text) for part in _unsaid(quote, source)] == []


def _sections(text):
    """Return the text of each heading's section, by its heading without marks."""
    parts = re.split(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {heading.strip("`"): body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_exception_has_a_section_and_a_program_that_provokes_it():
    # A line of a program that begins with # is no heading: programs are put back after the split.
    text = (pages.ROOT / "docs" / "errors.md").read_text()
    sections = _sections(re.sub(r"^# ", "#", text, flags=re.MULTILINE))
    classes = {
        name
        for name in dsm.__all__
        if isinstance(getattr(dsm, name), type) and issubclass(getattr(dsm, name), dsm.DSMError)
    }
    assert classes <= sections.keys()
    for name in classes - WITHOUT_PROGRAM:
        assert f"except dsm.{name}" in sections[name], name


@every_page
def test_links_lead_somewhere(path):
    text = pages.outside(path.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, part = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if part:
            assert part in {pages.anchor(heading) for heading in pages.headings(file.read_text())}, target


@every_page
def test_files_that_are_named_exist(path):
    named = re.findall(r"`((?:dsm|tests|examples)/[\w/]+\.\w+)`", path.read_text())
    assert [name for name in named if not (pages.ROOT / name).exists()] == []


def _shell(text):
    return [contents for language, contents, _, _ in pages.blocks(text) if language == "sh"]


@every_page
def test_verbs_options_and_variables_exist(path, source):
    text = path.read_text()
    prose = "\n".join([pages.outside(text), *_shell(text)])
    verbs = set(re.findall(r"(?:`|^)dsm (\w+)", prose, re.MULTILINE))
    assert verbs - VERBS.keys() == set()
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) - FOREIGN_OPTIONS
    assert {option for option in options if option not in source} == set()
    variables = set(re.findall(r"DSM_[A-Z_]*[A-Z]", text))
    assert {variable for variable in variables if variable not in source} == set()


@every_page
def test_methods_and_counters_exist(path):
    prose = pages.outside(path.read_text())
    for owner, cls in (("node", dsm.Node), ("lock", dsm.Lock), ("dsm", dsm)):
        named = set(re.findall(rf"`{owner}\.(\w+)", prose))
        assert {name for name in named if not hasattr(cls, name)} == set(), owner
    counters = set(re.findall(r"statistics\(\)\.(\w+)", prose))
    assert {name for name in counters if not hasattr(dsm.Statistics(), name)} == set()


def test_the_readme_leads_to_every_page_and_a_source_distribution_has_them():
    readme = (pages.ROOT / "README.md").read_text()
    assert [path.name for path in pages.PAGES if f"(docs/{path.name})" not in readme] == []
    assert "recursive-include docs *.md" in (pages.ROOT / "MANIFEST.in").read_text()
