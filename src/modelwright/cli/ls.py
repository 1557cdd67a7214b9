"""`modelwright ls`: the artifacts in the store."""

from __future__ import annotations

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.cli.run import headline
from modelwright.core.store import Store
from modelwright.core.units import bytes_text, seconds_text


def main(args: list[str]) -> int:
    chosen = parser("ls", "List the artifacts in the store, oldest first.", recipe=False).parse_args(args)
    store = Store(chosen.store)
    rows = [
        {
            "artifact": f"{a.manifest['type']}/{a.path.name}",
            "recipe": a.manifest["recipe"],
            "made (UTC)": a.manifest["made_by"]["time"][:16].replace("T", " "),
            "took": seconds_text(a.manifest["actual"]["seconds"]),
            "size": bytes_text(a.manifest["actual"]["disk_bytes"]),
            "": headline(a.manifest),
        }
        for a in store.all()
    ]
    unfinished = [str(p.relative_to(store.root)) for p in store.unfinished()]
    if chosen.json:
        print_json({"artifacts": [{**a.manifest, "path": str(a.path)} for a in store.all()], "unfinished": unfinished})
        return 0
    print_table(rows) if rows else print(f"nothing in {chosen.store}; `modelwright run recipe.yaml` makes something")
    for name in unfinished:
        print(f"unfinished: {name}")
    return 0
