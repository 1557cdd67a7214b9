"""Preview: rows of a training stage token by token, as the loss sees them. Made by the stages, shown by report and cli."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

State = Literal["trained", "context", "cut"]
"""In the loss; read, but not in the loss; not in any row."""
STATES: tuple[State, ...] = ("trained", "context", "cut")


class Token(NamedTuple):
    id: int
    text: str
    """What it adds to the text; '' inside a character, which its last token has."""
    state: State
    special: bool = False
    """A mark of the vocabulary, that no ordinary text becomes."""
    ends: bool = False
    """The trained mark that ends an answer, at which serving stops."""
    label: str = ""
    """What the token should get, where tokens are judged."""


class Part(NamedTuple):
    """Tokens that lie together and see each other."""

    name: str
    """What this part of a row of several is: an answer of a pair, a text of a group; '' for a row's only one."""
    tokens: list[Token]


class Shown(NamedTuple):
    """One row, or a record that became none."""

    name: str
    parts: list[Part]
    why: str = ""
    """Why the record was left out; '' for a row that is trained on."""
    note: str = ""

    def count(self, state: State) -> int:
        return sum(token.state == state for part in self.parts for token in part.tokens)


class Preview(NamedTuple):
    """What was looked at. `str` of it shows the rows with brackets; `modelwright.report.preview` has colours and HTML."""

    title: str
    facts: list[tuple[str, str]]
    """What decides which tokens count: (name, value)."""
    rows: list[Shown]
    records: int
    """Records looked at; `used` of them became rows, `made` rows in all."""
    used: int
    made: int
    tokens: dict[State, int]
    """Over all records that were looked at, whether shown or not."""
    dropped: dict[str, int]
    """Records left out, by the reason."""
    notes: list[str]
    side_by_side: bool = False
    """The rows are those of one step, in the order in which they are packed."""

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        rows = [
            {
                "name": row.name,
                "left_out": row.why or None,
                "note": row.note,
                "tokens": {state: row.count(state) for state in STATES},
                "parts": [{"name": part.name, "tokens": [token._asdict() for token in part.tokens]} for part in row.parts],
            }
            for row in self.rows
        ]
        return {**self._asdict(), "facts": dict(self.facts), "rows": rows}

    def __str__(self) -> str:
        """Without colours."""
        return "\n".join(plain(self))


CLOSE = {"trained": "[]", "cut": "{}", "context": ("", "")}
"""What stands around tokens of each state where there are no colours."""
LEGEND = "[trained]  context  {cut}  ¶ ends an answer, trained  ↵ line feed  \\< \\[ written in the text itself, no mark"


def visible(text: str) -> str:
    """The text without anything that a terminal would obey or that no eye sees."""
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char == "\n":
        return "↵\n"
    if char in "\t\ufffd" or char.isprintable():
        return char
    if ord(char) < 32:
        return chr(0x2400 + ord(char))  # Unicode's pictures of control characters
    return char if char == "\u00a0" else f"<U+{ord(char):04X}>"


def headline(row: Shown, number: int) -> str:
    """`row 3 · chats.jsonl:7 · 41 trained, 52 context`."""
    counts = ", ".join(f"{count:,} {state}" for state in STATES if (count := row.count(state)))
    parts = [f"row {number}" if not row.why else "left out", row.name, row.why, counts + (" tokens" if counts else ""), row.note]
    return " · ".join(filter(None, parts))


def summary(found: Preview) -> list[str]:
    """What was looked at, in lines."""
    tokens = sum(found.tokens.values())
    counts = [f"{found.tokens[s]:,} {s}" + (f" ({found.tokens[s] / tokens:.0%})" if tokens else "") for s in STATES]
    made = f"{found.used:,} became {found.made:,} rows to train on"
    lines = [f"{found.records:,} records looked at: {made}, {found.records - found.used:,} left out"]
    lines.append("tokens: " + ", ".join(counts))
    lines += [
        f"left out: {count:,} {reason}" for reason, count in sorted(found.dropped.items(), key=lambda one: (-one[1], one[0]))
    ]
    return lines + found.notes


def plain(found: Preview) -> list[str]:
    lines = [found.title, *(f"  {name}: {value}" for name, value in found.facts), "", *summary(found), LEGEND]
    for number, row in enumerate(found.rows, 1):
        lines += ["", f"── {headline(row, number)} ──"]
        for part in row.parts:
            lines += [f"{part.name}:"] * bool(part.name) + ["".join(_bracketed(part.tokens))]
    return lines


def _bracketed(tokens: list[Token]) -> list[str]:
    pieces, state = [], "context"
    for token in tokens:
        if token.state != state:
            pieces += [CLOSE[state][1], CLOSE[token.state][0]]
            state = token.state
        text = visible(token.text)
        pieces.append(text if token.special else "".join(f"\\{char}" if char in "[]{}<\\" else char for char in text))
        pieces.append(f"<{token.label}>" * bool(token.label) + "¶" * token.ends)
    return [*pieces, CLOSE[state][1]]
