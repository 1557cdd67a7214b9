"""`modelwright verify`: the files of artifacts against the digests in their manifests."""

from __future__ import annotations

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.store import Store


def main(args: list[str]) -> int:
    options = parser("verify", "Read every file of the artifacts again and compare it with the manifest.", recipe=False)
    options.add_argument("artifacts", nargs="*", metavar="name", help="artifacts as `ls` names them (default: all)")
    chosen = options.parse_args(args)
    store = Store(chosen.store)
    all_ = {f"{a.manifest['type']}/{a.path.name}": a for a in store.all()}
    wanted = [name for name in all_ if not chosen.artifacts or any(w in (name, name.split("/", 1)[1]) for w in chosen.artifacts)]
    if chosen.artifacts and not wanted:
        raise UserError(
            f"no artifact {' or '.join(chosen.artifacts)} in {chosen.store}", fix="`modelwright ls` shows their names"
        )
    faults = {name: store.verify(all_[name]) for name in wanted}
    if chosen.json:
        print_json(faults)
    else:
        print_table(
            [
                {"artifact": name, "verdict": "sound" if not f else "CHANGED", "detail": "; ".join(f)}
                for name, f in faults.items()
            ],
            colour={"verdict": {"sound": "green", "CHANGED": "bold red"}},
        )
    return 1 if any(faults.values()) else 0
