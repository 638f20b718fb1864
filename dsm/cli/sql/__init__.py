"""``dsm sql``: any question about a cluster, over tables of its pages, regions, nodes, workers, locks, ...

Owns the verb.  `contents` makes tables of what managers say, `database` holds and guards them, `choose` asks.
Pages are fetched only when a question reads them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dsm.cli.sql.answer import as_json, as_text
from dsm.cli.sql.choose import MAX_TABLE_ROWS, PIECE, Pages, add_common, cluster, run_verb, tell_silent
from dsm.cli.sql.contents import TABLES, kinds, rows
from dsm.cli.sql.database import Database, schema
from dsm.errors import LimitError
from dsm.manager.metadata.options import SYNC_KINDS
from dsm.wire.status import ClusterStatus, SilentNode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "question",
        nargs="?",
        metavar="SELECT",
        help='e.g. "select page, sum(faults) from pages group by page order by 2 desc"; '
        "without it the tables are listed",
    )
    add_common(parser)
    parser.add_argument(
        "--region", action="append", metavar="NAME", help="only pages of this region (repeatable)"
    )
    parser.add_argument("--limit", type=int, default=1000, metavar="N", help="at most N rows (1000); 0: all")
    parser.add_argument("--json", action="store_true", help="print one line of JSON: rows, more, silent")


def run(options: argparse.Namespace) -> int:
    """Print the answer; 1 when nobody can be asked, 2 when the question is wrong, 130 after Ctrl-C."""
    if options.question is None:
        print(schema(TABLES, SYNC_KINDS))
        return 0
    return run_verb("sql", options, _answer)


def _answer(options: argparse.Namespace) -> int:
    of = cluster(options.at)
    database = Database(TABLES, kinds(of))
    silent = {node.node: node for node in of.silent}
    wanted = database.tables_of(options.question)
    for name, values in rows(of):
        database.fill(name, values)
    if "pages" in wanted:
        silent |= _fill_pages(database, of, options.region)
    names, found, more = database.ask(options.question, options.limit, options.timeout)
    if options.json:
        print(as_json(names, found, more=more, silent=sorted(silent)))
    else:
        print(as_text(names, found))
        if more:
            print(f"(there are more than {len(found)} rows: --limit N)", file=sys.stderr)
    tell_silent("sql", silent.values())
    return 0


def _fill_pages(database: Database, of: ClusterStatus, names: list[str] | None) -> dict[int, SilentNode]:
    """Fetch the pages of these regions, by default of all; return the nodes that did not answer."""
    with Pages(of) as pages:
        numbers = sorted({region.region for node in of.nodes for region in node.regions})
        keys: Sequence[str | int] = names or numbers
        regions = [pages.describe(key) for key in keys]
        total = sum(region.pages * len(region.nodes) for region in regions)
        if total > MAX_TABLE_ROWS:
            largest = max(regions, key=lambda region: region.pages)
            raise LimitError(
                f"the table pages would have {total} rows, a page and node each; at most {MAX_TABLE_ROWS} "
                f"are fetched: name regions with --region (the largest, {largest.name or largest.region!r}, "
                f"has {largest.pages} pages), or see `dsm pages NAME --pages LOW:HIGH`"
            )
        for region in regions:
            for page in range(0, region.pages, PIECE):
                part = pages.table(region, page, min(PIECE, region.pages - page))
                database.pages.add(region, part)
        return pages.silent
