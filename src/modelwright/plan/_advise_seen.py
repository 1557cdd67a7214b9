"""What a look at the user's data (`probe`) says of the situation, each fact with its evidence, and what each file is good for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.plan._advise_recipe import Files, Unreadable
from modelwright.plan._advise_tree import How
from modelwright.plan._probe_facts import Share
from modelwright.plan._probe_read import LEFT_OUT, source_of
from modelwright.plan.probe import Probed

SPOKEN_FRAC = 0.05
"""Share of rows from which a language counts."""
LONGEST = 2048
"""Tokens of a row that a recipe is written for at most: longer ones are told to be cut."""
_ROLES = {
    "chats": "rows",
    "tool calls": "rows",
    "pairs": "pairs",
    "binary feedback": "ratings",
    "rankings": "rankings",
    "documents": "texts",
    "word labels": "labelled",
    "step labels": "rows",
    "near pairs": "near",
}


class Seen(NamedTuple):
    """Fields of the situation, where each is from, and the files by what they are good for."""

    fields: dict[str, Any]
    origins: dict[str, tuple[How, str]]
    files: Files
    looks: tuple[tuple[Path, Probed], ...] = ()
    """All that was found, by what was looked at."""


def seen(looks: Sequence[tuple[Path, Probed]], folder: Path) -> Seen:
    """`folder`: where the recipe will lie, from which its paths start."""
    fields: dict[str, Any] = {}
    evidence: dict[str, str] = {}
    files: dict[str, list[str]] = {}
    amounts: dict[str, float] = {}
    sources: dict[str, tuple[str, ...]] = {}

    def add(field: str, value: float, said: str) -> None:
        fields[field] = fields.get(field, 0.0) + value
        evidence[field] = "; ".join(filter(None, (evidence.get(field), said)))

    label = None
    for path, found in looks:
        roles = _roles(found)
        main = max(roles, key=lambda role: roles[role].count, default="")
        asked = found.verifiable if main == "objects" and found.verifiable.of else None
        label = label or (found.labels[0] if main in ("texts", "labelled", "objects") and found.labels and not asked else None)
        if asked is not None:
            amount = asked.of / max(found.looked, 1) * found.rows.value
            answered = f"{asked.of:,} of {found.looked:,} rows"
            add("rows", amount, f"{path}: {answered} have a question and an answer, in no known layout")
        elif (label is not None and main in ("texts", "objects")) or main == "labelled":
            named = f" with `{label.key}`" if label else ""
            add("labelled", found.rows.value, f"{path}: {found.rows} rows{named}")
            main = "labelled" if main != "objects" else main
        elif main == "texts":
            add("text_tokens", found.tokens.value, f"{path}: {found.tokens} tokens")
        for role, share in roles.items():
            if role in ("rows", "pairs", "ratings", "rankings", "near"):
                add(role, share.share * found.rows.value, f"{path}: {share}{f', {share.why}' if share.why else ''}")
        main, name = {"rankings": "pairs"}.get(main, main), written(path, folder)
        files.setdefault(main, []).append(name)
        amounts[main] = amounts.get(main, 0.0) + found.rows.value
        kinds = {source_of(file): None for file in found.files if main != "texts" or file.layout in ("documents", "text")}
        sources[name] = tuple(kinds) if main == "texts" else ("jsonl",)
    kind = _label_kind(looks, label)
    if kind:
        fields["label_kind"] = kind
        evidence["label_kind"] = f"`{label.key}`: {label.why}" if label is not None else "words have labels"
    for field, value, said in _shares(looks):
        fields[field], evidence[field] = value, said
    origins: dict[str, tuple[How, str]] = {field: ("data", said) for field, said in evidence.items()}
    told = _files(looks, files, label)._replace(
        amounts=amounts,
        sources=sources,
        broken={written(path, folder): bad for path, found in looks if (bad := _unreadable(found)) is not None},
        said=tuple(text for path, found in looks for text in _said(path, found)),
    )
    return Seen(fields, origins, told, tuple(looks))


def _unreadable(found: Probed) -> Unreadable | None:
    """What a source would stop at; a layout leaves rows out by itself."""
    bad = [share for share in found.broken if share.name != LEFT_OUT]
    if not bad:
        return None
    first = f", {bad[0].samples[0]}" if bad[0].samples else ""
    count = sum(share.count for share in bad)
    return Unreadable(count / bad[0].of, f"{count:,} of {bad[0].of:,} cannot be read ({bad[0].name}{first})")


def _said(path: Path, found: Probed) -> Iterator[str]:
    """What the trees do not turn on."""
    if left := [share for share in found.broken if share.name == LEFT_OUT]:
        yield f"{path}: {left[0]} rows are left out, as their layout has it ({'; '.join(left[0].samples[:1])})"
    for share in found.personal:
        if share.count:
            yield f"{path}: {share} texts have {share.name} in them: a step `pii` takes such out"
    for overlap in found.overlaps:
        if overlap.rows.count:
            yield f"{path}: {overlap.rows} rows of {overlap.right} are in {overlap.left}, too: train on one of them alone"


def _roles(found: Probed) -> dict[str, Share]:
    roles: dict[str, Share] = {}
    for share in found.holds:
        role = _ROLES.get(share.name, "objects")
        if role not in roles or share.count > roles[role].count:
            roles[role] = share
    return roles


def _label_kind(looks: Sequence[tuple[Path, Probed]], label: Any) -> str:
    if any(share.name == "word labels" and share.count for _, found in looks for share in found.holds):
        return "words"
    if label is None:
        return ""
    return "numbers" if label.sort == "numbers" else "texts"


def _shares(looks: Sequence[tuple[Path, Probed]]) -> list[tuple[str, Any, str]]:
    """Shares of rows, from the file with the most of them to look at."""
    largest = max((found for _, found in looks), key=lambda found: found.rows.value)
    told: list[tuple[str, Any, str]] = []
    if long := next((length for length in largest.lengths if length.name == "rows"), None):
        told.append(("row_tokens", long.mean, f"{long.mean:,.0f} tokens on average, of {long.of:,} rows"))
    if largest.verifiable.of:
        best = max(largest.verifiers, key=lambda share: share.count, default=None)
        told.append(("verifiable", largest.verifiable.share, str(largest.verifiable)))
        if best is not None and best.count:
            told.append(("verifier", best.name, f"{best}; {best.why}"))
    if largest.reasoning.of:
        told.append(("traces", largest.reasoning.share, str(largest.reasoning)))
    copies = largest.duplicates
    told.append(("duplicates", max(copies.exact.share, copies.near.share), f"exact {copies.exact}, near {copies.near}"))
    spoken = tuple(share.name for share in largest.languages if share.share >= SPOKEN_FRAC)
    if spoken:
        told.append(("languages", spoken, "; ".join(f"{share.name} {share}" for share in largest.languages[:4])))
    return told


def _files(looks: Sequence[tuple[Path, Probed]], files: dict[str, list[str]], label: Any) -> Files:
    lengths = [length.p90 for _, found in looks for length in found.lengths if length.name == "rows"]
    length = min(LONGEST, max(64, -(-int(1.3 * max(lengths, default=512.0)) // 64) * 64))
    alike = [other for _, found in looks for other in found.labels if label is not None and other.key == label.key]
    return Files(
        rows=tuple(files.get("rows", ())),
        pairs=tuple(files.get("pairs", ())),
        texts=tuple(files.get("texts", ())),
        labelled=tuple(files.get("labelled", ())),
        near=tuple(files.get("near", ())),
        length=length,
        label_key=label.key if label is not None else "label",
        labels=tuple(sorted({name for other in alike for name in other.names})),
        buried=label is not None and label.buried,
        unknown=tuple(files.get("objects", ())),
        near_copies=any(found.duplicates.near.count for _, found in looks),
    )


def written(path: Path, folder: Path) -> str:
    """As a recipe in `folder` names it: with a slash, a folder with one at its end."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    text = relative if relative.startswith("..") else f"./{relative}"
    return f"{text}/" if path.is_dir() else text
