"""`modelwright convert`: chats, preferences and texts from one layout to another, and a count of what it cannot hold."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelwright.cli._output import print_json, print_table


def options() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="modelwright convert",
        description="Write rows in another layout. Files end in .jsonl, .jsonl.gz, .json, .csv, .tsv or .parquet. "
        "Rows that the layout, or the form of the file, cannot give back are left out and counted.",
    )
    parse.add_argument("source", type=Path, metavar="IN", help="a file of rows, or a folder of them")
    parse.add_argument("target", type=Path, metavar="OUT", help="the file to write")
    parse.add_argument("--to", required=True, metavar="FORMAT", help="layout to write: messages, sharegpt, alpaca, preference, …")
    parse.add_argument(
        "--from", dest="layout", metavar="FORMAT", help="layout to read (told from the rows); fields in braces work"
    )
    parse.add_argument("--on-bad", choices=("error", "drop"), default="error", help="rows that cannot be read (%(default)s)")
    parse.add_argument(
        "--spare",
        action="store_true",
        help="leave out weights, names and thoughts of turns where the layout has no place for them",
    )
    parse.add_argument("--force", action="store_true", help="replace OUT")
    parse.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parse


def main(args: list[str]) -> int:
    given = options().parse_args(args)
    from modelwright.api import convert

    found = convert(given.source, given.target, given.to, given.layout, on_bad=given.on_bad, spare=given.spare, force=given.force)
    if given.json:
        print_json(found._asdict())
        return 0
    for note in found.notes:
        print(note)
    print(f"{found.written:,} of {found.read:,} records written to {given.target}")
    rows = [
        {"rows": f"{count:,}", "what": "left out", "why": why, "first": found.samples[why]}
        for why, count in found.left_out.items()
    ]
    rows += [
        {"rows": f"{count:,}", "what": "unreadable", "why": why, "first": found.samples[why]}
        for why, count in found.unreadable.items()
    ]
    rows += [{"rows": f"{count:,}", "what": "field", "why": why, "first": ""} for why, count in found.fields.items()]
    if rows:
        print_table(rows)
    return 0
