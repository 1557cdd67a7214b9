"""What a look at data found, as the rows of a table: every fact that is not nothing, with its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelwright.plan._probe_facts import Share
from modelwright.plan.probe import Probed


def rows(found: Probed) -> Iterator[dict[str, str]]:
    def row(what: str, value: object, evidence: str = "") -> dict[str, str]:
        return {"what": what, "found": str(value), "evidence": evidence}

    def some(what: str, each: Sequence[Share]) -> Iterator[dict[str, str]]:
        for share in each:
            if share.count:
                yield row(
                    f"{what}: {share.name}" if what else share.name, share, "; ".join((*share.samples[:1], share.why)).strip("; ")
                )

    yield row("rows", found.rows, found.rows.why)
    yield row("tokens", found.tokens, found.tokens.why)
    for file in found.files[:10]:
        yield row(f"file {file.name}", f"{file.rows} rows, {file.layout or 'unreadable'}", file.why)
    yield from some("holds", found.holds)
    for length in found.lengths:
        middle = f"{length.p50:,.0f} {length.unit}, 90 % up to {length.p90:,.0f}, at most {length.most:,.0f}"
        yield row(f"length of {length.name}" if length.name != "turns" else "turns", middle)
    yield from some("", (found.system, found.empty))
    yield from some("broken", found.broken)
    for label in found.labels:
        classes = ", ".join(f"{share.name} {share.share:.0%}" for share in label.classes[:4])
        yield row(f"labels: {label.key}", f"{label.distinct} {label.sort}", "; ".join(filter(None, (classes, label.why))))
    if found.pairs is not None:
        pairs = found.pairs
        yield row("pairs", f"{pairs.of:,}", f"better answers have {pairs.length_ratio:.2f} times the characters of worse ones")
        yield from some("pairs", (pairs.identical, pairs.near, pairs.ties, pairs.contradicted, pairs.longer))
    yield from some("", (found.verifiable,))
    yield from some("verifier", found.verifiers)
    yield from some("", (found.reasoning,))
    yield from some("reasoning", found.traces)
    yield from some("language", found.languages[:5])
    yield from some("", found.duplicates)
    for overlap in found.overlaps[:5]:
        yield row(
            f"{overlap.right} in {overlap.left}",
            overlap.rows,
            f"questions: {overlap.prompts}; near copies in the sample: {overlap.near}",
        )
    yield from some("personal data", found.personal)
    for note in found.notes:
        yield row("note", "", note)
