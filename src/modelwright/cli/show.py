"""`modelwright show`: the numbers of an artifact or of a recipe's stages, and where the report is."""

from __future__ import annotations

from typing import Any

from modelwright.cli._options import parser
from modelwright.cli._output import print_json, print_table
from modelwright.cli.run import headline
from modelwright.core.errors import UserError
from modelwright.core.store import Artifact, read_manifest
from modelwright.core.units import bytes_text, seconds_text


def main(args: list[str]) -> int:
    options = parser(
        "show",
        "Show a recipe's results (`show recipe.yaml`), one stage's (`show recipe.yaml --stage chat`), or an artifact's folder.",
    )
    options.add_argument("--stage", help="only this stage, in full")
    chosen = options.parse_args(args)
    from modelwright.api import ArtifactView

    if chosen.recipe.is_dir():
        manifest = read_manifest(chosen.recipe)
        if manifest is None:
            raise UserError(
                f"{chosen.recipe} is not an artifact", "it has no manifest.json", "`modelwright ls` shows what there is"
            )
        return _one(ArtifactView(Artifact(chosen.recipe, manifest)), chosen.json)
    from modelwright.cli._options import open_project

    project = open_project(chosen)
    if chosen.stage:
        return _one(project.artifact(chosen.stage), chosen.json)
    made = [(s.name, s.artifact) for s in project.steps() if s.artifact is not None]
    if not made:
        raise UserError("nothing of this recipe is made yet", fix=f"modelwright run {chosen.recipe}")
    report = project.write_report()
    if chosen.json:
        print_json({"report": report, "stages": {name: a.manifest for name, a in made}})
        return 0
    print_table(
        [
            {
                "stage": name,
                "took": seconds_text(a.manifest["actual"]["seconds"]),
                "memory": bytes_text(a.manifest["actual"]["peak_bytes"]),
                "result": headline(a.manifest),
            }
            for name, a in made
        ]
    )
    compared = [(name, c) for name, a in made for c in a.manifest["stats"].get("comparisons", [])]
    if compared:
        print_table(
            [
                {
                    "stage": name,
                    "metric": c["name"],
                    "group": c["group"] or "all",
                    "before": f"{c['before']:.4g}",
                    "after": f"{c['after']:.4g}",
                    "difference (95 %)": f"{c['difference']:+.3g} [{c['low']:+.3g}, {c['high']:+.3g}]",
                    "verdict": _verdict(c),
                }
                for name, c in compared
            ],
            title="each stage against the one before, on the same items",
            colour={"verdict": {"better": "green", "worse": "red"}},
        )
    print(f"report: {report}")
    return 0


def _verdict(comparison: dict) -> str:  # type: ignore[type-arg]
    if comparison["better"] is None:
        return "no difference shown"
    return "better" if comparison["better"] else "worse"


def _one(view, as_json: bool) -> int:  # type: ignore[no-untyped-def]
    if as_json:
        print_json(view.manifest)
        return 0
    manifest = view.manifest
    print(
        f"{manifest['type']} {view.path}\n  key {manifest['key']}\n"
        f"  made {manifest['made_by']['time'][:19]} UTC by modelwright {manifest['made_by']['modelwright']}"
    )
    print_table(view.table())
    if manifest["kind"] == "curate":
        print_table(_funnel(manifest["stats"]), title="rows through the steps")
        if passed_over := {name: n for entry in manifest["stats"]["ledger"] for name, n in entry["left_out"].items()}:
            told = ", ".join(f"{count:,} {name}" for name, count in passed_over.items())
            print(f"left out before by the settings of its sources, files or entries of them: {told}")
    return 0


BAR_CELLS = 32
EIGHTHS = " ▏▎▍▌▋▊▉█"


def _funnel(stats: dict[str, Any]) -> list[dict[str, str]]:
    """Of each step a bar of the rows that are left, and what it took; a column that says nothing of any is left out."""
    widest = max((entry["rows_out"] for entry in stats["ledger"]), default=0) or 1
    rows = [
        {
            "step": entry["step"],
            "rows left": _bar(entry["rows_out"] / widest),
            "": f"{entry['rows_out']:,}",
            "text": bytes_text(entry["bytes_out"]),
            "dropped": _count(sum(entry["reasons"].values())),
            "most for": _most(entry["reasons"]),
            "characters cut": _count(sum(cut["chars"] for cut in entry["cuts"].values())),
            "made": _count(entry["rows_made"]),
        }
        for entry in stats["ledger"]
    ]
    return [{name: row[name] for name in row if any(other[name] for other in rows)} for row in rows]


def _bar(share: float) -> str:
    eighths = round(share * BAR_CELLS * 8)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _most(reasons: dict[str, int]) -> str:
    if not reasons:
        return ""
    name, rows = max(reasons.items(), key=lambda pair: pair[1])
    return f"{name.partition(': ')[2] or name} ({rows:,})" + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else "")
