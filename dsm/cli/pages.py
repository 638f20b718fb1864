"""``dsm pages``: where the pages of an array are, who faults on them and who has them.

Owns the verb.  The rows are those of `node.page_table`, in the table ``pages`` of an SQLite database in
memory, so that conditions and orders are SQL.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from dsm.cli.sql.answer import as_json, as_text
from dsm.cli.sql.choose import MAX_TABLE_ROWS, PIECE, Pages, add_common, cluster, run_verb, tell_silent
from dsm.cli.sql.contents import PAGES
from dsm.cli.sql.database import Database
from dsm.cli.status.words import enumerate_words, plural
from dsm.errors import LimitError, UnknownNameError, UsageError
from dsm.wire import control

#: What is shown to people, and what of it differently; the whole row is in JSON.
_SHOWN = (
    "page, node, printf('0x%x', address) AS address, size, home, owner, permissions, model, state, "
    "faults_read, faults_write, dirty, version, copyset, lease"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="NAME", help="name of an array or region, or its number")
    parser.add_argument("--where", metavar="SQL", help="e.g. \"faults > 100 and state = 'SHARED'\"")
    parser.add_argument("--order", metavar="SQL", help='e.g. "faults desc" (default: by page, then node)')
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="at most N rows (100); 0: all")
    parser.add_argument("--node", type=int, action="append", metavar="N", help="only node N (repeatable)")
    parser.add_argument("--pages", metavar="LOW:HIGH", help="only these pages, without HIGH (as a slice)")
    add_common(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON: rows, total, silent, ..."
    )


def run(options: argparse.Namespace) -> int:
    """Print the pages; 1 when nobody can be asked, 2 when a word is wrong, 130 after Ctrl-C."""
    return run_verb("pages", options, _answer)


def _answer(options: argparse.Namespace) -> int:
    with Pages(cluster(options.at)) as pages:
        return _show(options, pages)


def _show(options: argparse.Namespace, pages: Pages) -> int:
    region = _region(pages, options.name)
    shown = _nodes(options.node, region)
    low, high = _part(options.pages, region)
    last = high
    if options.limit and not options.where and not options.order:
        last = min(high, low + -(-options.limit // len(shown)))  # nothing else is looked at
    if (last - low) * len(shown) > MAX_TABLE_ROWS:
        raise LimitError(
            f"region {options.name!r} has {(high - low) * len(shown)} rows, a page and node each; at most "
            f"{MAX_TABLE_ROWS} are fetched: choose with --pages LOW:HIGH or --node, or --limit without "
            "--where and --order"
        )
    database = Database([PAGES])
    for page in range(low, last, PIECE):
        # All nodes are asked: the owner of a page is known to its home.
        part = pages.table(region, page, min(PIECE, last - page))
        part = part[np.isin(part["node"], shown)]
        database.pages.add(region, part)
    heard = [node for node in shown if node not in pages.silent]
    where = f"WHERE (\n{options.where}\n)" if options.where else ""
    order = f"ORDER BY\n{options.order}\n, page, node" if options.order else "ORDER BY page, node"
    _, [(total,)], _ = database.ask(f"SELECT count(*) FROM pages {where}", 1, options.timeout)
    if not options.where:
        total = (high - low) * len(heard)
    columns = "*" if options.json else _SHOWN
    question = f"SELECT {columns} FROM pages {where} {order}"
    names, found, _ = database.ask(question, options.limit, options.timeout)
    silent = [node for number, node in sorted(pages.silent.items()) if number in shown]
    if options.json:
        about = {"region": region.region, "name": region.name, "pages": region.pages, "total": total}
        print(as_json(names, found, **about, silent=[node.node for node in silent]))
    else:
        name = "anonymous" if region.name is None else ascii(region.name)
        print(
            f"{name} (region {region.region}): {plural(region.pages, 'page')} of {region.page_size} bytes, "
            f"{region.consistency}; rows of node {enumerate_words(list(map(str, heard))) or 'none'}"
        )
        print(as_text(names, found))
        if len(found) < total:
            print(f"({len(found)} of {plural(total, 'row')}; --limit N shows more)", file=sys.stderr)
    tell_silent("pages", silent)
    return 0


def _region(pages: Pages, name: str) -> control.Pages:
    """Return the region of that name, or number."""
    try:
        return pages.describe(name)
    except UnknownNameError:
        if not name.isdecimal():
            raise
        return pages.describe(int(name))


def _nodes(said: list[int] | None, region: control.Pages) -> list[int]:
    """Return the nodes whose rows are shown."""
    wrong = sorted(set(said or ()).difference(region.nodes))
    if wrong:
        words, live = (enumerate_words(list(map(str, each))) for each in (wrong, region.nodes))
        raise UsageError(f"--node {words}: no live node of the cluster, which has {live}")
    return sorted(set(said or region.nodes))


def _part(said: str | None, region: control.Pages) -> tuple[int, int]:
    """Return the range of pages that an option means: parts of it may be missing."""
    low, _, high = (said or ":").partition(":")
    try:
        first, last = int(low or 0), int(high or region.pages)
    except ValueError:
        first, last = -1, -1
    if (said and ":" not in said) or not 0 <= first <= last <= region.pages:
        raise UsageError(f"--pages {said}: the region has pages 0:{region.pages}")
    return first, last
