"""Social: posts from exports of Reddit, X (Twitter) and Stack Exchange.

Sources: Reddit's dumps, JSON lines of comments (`body`) and submissions (`title`, `selftext`) as collected by Baumgartner et al.
2020, arXiv:2001.08435; an X archive's `tweets.js` (https://help.x.com/en/managing-your-account/how-to-download-your-x-archive);
Stack Exchange's `Posts.xml` (https://archive.org/details/stackexchange, meta.stackexchange.com/questions/2677). Names of authors
are not kept; texts still name people: add the step `pii`.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.sources._doc_files import Documents, Unreadable, parse_xml
from modelwright.methods.sources._doc_html import html_text
from modelwright.methods.sources._files import Bad, Row, objects, refuse

GONE = frozenset(("[deleted]", "[removed]", "[deleted by user]", "[removed by reddit]"))
CHUNK_CHARS = 1 << 20
LONGEST = 64 << 20
"""Bytes of a line and characters of a post; no site allows a hundredth of it."""
READ_AS = {
    "reddit": "Reddit posts, because rows have `subreddit` with `body`, `selftext` or `title`",
    "x": "X posts, because rows have `full_text`",
    "stackexchange": "Stack Exchange posts, because rows have `PostTypeId`",
}
_GAP = re.compile(r"[ \t\r\n,]*")


class Social(Documents):
    """One document a post; of Stack Exchange one chat a question with its accepted answer. Rows tell which export it is."""

    bytes_per_s: ClassVar[float] = 10e6
    """Measured on a 2-core machine; Posts.xml is slower, 4e6."""
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".jsonl.gz", ".json", ".js", ".xml")
    small: ClassVar[bool] = False

    kind: Literal["social"] = "social"
    min_score: int | None = Field(None, examples=[2])
    """Posts with less are left out and counted: votes of Reddit and of Stack Exchange's answers, likes of X. Raise it
    for fewer and better ones: WebText asked 3 of Reddit's links (Radford et al. 2019). Default: none."""

    def records(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        left_out: Counter[str] = Counter()
        told: set[str] = set()
        try:
            if file.suffix.lower() == ".xml":
                yield from self._answers(file, name, log, left_out, told)
            else:
                yield from self._posts(file, name, log, left_out, told)
        finally:
            for reason, count in sorted(left_out.items()):
                log.event("excluded", reason=f"posts: {reason}", files=count, file=name)

    def _posts(self, file: Path, name: str, log: Log, left_out: Counter[str], told: set[str]) -> Iterator[Record]:
        row = None
        for row in rows_of(file):
            if isinstance(row.value, Bad):
                refuse(name, row.value, log, self.on_bad, row.line)
                continue
            post = row.value["tweet"] if isinstance(row.value.get("tweet"), dict) else row.value
            site = site_of(post)
            if not site:
                bad = Bad("not a known export", f"no post of Reddit or X: its keys are {', '.join(sorted(post)[:8])}")
                refuse(name, bad, log, self.on_bad, row.line)
                continue
            _tell(site, name, log, told)
            text, reason, meta = _reddit(post) if site == "reddit" else _x(post)
            if reason := reason or self._low(meta["score"]):
                left_out[reason] += 1
            elif any("\ud800" <= sign <= "\udfff" for sign in text):
                refuse(
                    name, Bad("broken character", "half of a surrogate pair, which no file can store"), log, self.on_bad, row.line
                )
            else:
                yield Record(f"{name}:{row.line}", text=text.strip() + "\n", meta={"path": name, "site": site, **meta})

        if row is None:
            raise Unreadable("empty file", "it has no post")

    def _low(self, score: int) -> str:
        return "score below `min_score`" if self.min_score is not None and score < self.min_score else ""

    # --- Stack Exchange -------------------------------------------------------------------------------

    def _answers(self, file: Path, name: str, log: Log, left_out: Counter[str], told: set[str]) -> Iterator[Record]:
        """Questions wait as places in the file, not as texts, until their answer comes: it is the younger of the two."""
        waiting: dict[str, int] = {}
        with file.open("rb") as stream, file.open("rb") as again:
            for number, start, post in _xml_rows(stream, name):
                if isinstance(post, Bad):
                    refuse(name, post, log, self.on_bad, number)
                elif post.get("PostTypeId") == "1":
                    _tell("stackexchange", name, log, told)
                    if accepted := post.get("AcceptedAnswerId"):
                        waiting[accepted] = start
                    else:
                        left_out["question without an accepted answer"] += 1
                elif (place := waiting.pop(post.get("Id", ""), None)) is None:
                    left_out["answer that was not accepted, or no answer"] += 1
                elif reason := self._low(_number(post.get("Score"))):
                    left_out[reason] += 1
                else:
                    again.seek(place)
                    question = parse_xml(again.readline(LONGEST).strip(), name)
                    yield _chat(f"{name}:{number}", name, question, post)
        if waiting:
            left_out["accepted answer is missing"] += len(waiting)


def _tell(site: str, name: str, log: Log, told: set[str]) -> None:
    if site not in told:
        told.add(site)
        log.note(f"{name}: read as {READ_AS[site]}")


def _chat(key: str, name: str, question: Any, answer: Any) -> Record:
    asked = f"{question.get('Title', '')}\n\n{html_text(question.get('Body', ''))}".strip()
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": html_text(answer.get("Body", ""))}]
    tags = [tag for tag in question.get("Tags", "").replace("><", "|").strip("<>|").split("|") if tag]
    licence = answer.get("ContentLicense", "").replace(" ", "-")  # `CC BY-SA 4.0`, which SPDX writes with hyphens
    meta = {"path": name, "site": "stackexchange", "score": _number(answer.get("Score")), "tags": tags, "licence": licence}
    return Record(key, messages=messages, meta=meta)


def _xml_rows(stream: BinaryIO, name: str) -> Iterator[tuple[int, int, Any]]:
    """(line, place in the file, element or Bad): these dumps hold one row a line, so nothing needs the whole tree."""
    number = start = rows = 0
    while line := stream.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise Unreadable("long line", f"line {number} is longer than any post; no dump of Stack Exchange")
        body = line.strip()
        if body.startswith(b"<row"):
            rows += 1
            try:
                yield number, start, parse_xml(body, name)
            except Unreadable as fault:
                yield number, start, fault.bad
        start += len(line)
    if not rows:
        raise Unreadable("not a known export", "no line begins with `<row`, as those of Stack Exchange's Posts.xml do")


# --- Reddit and X -----------------------------------------------------------------------------------------


def site_of(post: dict[str, Any]) -> str:
    if isinstance(post.get("full_text"), str):
        return "x"
    return (
        "reddit" if "subreddit" in post and any(isinstance(post.get(key), str) for key in ("body", "selftext", "title")) else ""
    )


def _reddit(post: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """(text, why it is left out, facts)."""
    sort = "comment" if isinstance(post.get("body"), str) else "submission"
    title = "" if sort == "comment" else html.unescape(str(post.get("title") or ""))
    body = html.unescape(str(post.get("body" if sort == "comment" else "selftext") or "")).strip()
    gone = {body.lower(), title.strip().lower()} & GONE
    reason = "deleted or removed" if gone else "" if body else "without a text of its own"
    meta = {"sort": sort, "subreddit": str(post["subreddit"]), "score": _number(post.get("score"))}
    return f"{title}\n\n{body}", reason, meta


def _x(post: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    text = html.unescape(post["full_text"])
    reason = "somebody else's, repeated" if text.startswith("RT @") else "" if text.strip() else "without a text of its own"
    return text, reason, {"score": _number(post.get("favorite_count")), "date": str(post.get("created_at") or "")}


def _number(value: Any) -> int:
    """X writes its numbers as text, and Reddit hides young ones as null."""
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def rows_of(file: Path) -> Iterator[Row]:
    """Objects of JSON lines, or of a list that is read piece by piece: an archive's is one line of gigabytes."""
    if not file.stat().st_size:
        raise Unreadable("empty file", "it has no byte")
    if not file.name.lower().endswith((".json", ".js")):
        return objects(file)
    with file.open("rb") as stream:
        first = stream.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return _lines(file) if first == b"{" else _items(file)


def _lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST):
            number += 1
            if line.strip():
                yield Row(number, _object(line))


def _object(line: bytes) -> dict[str, Any] | Bad:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        return Bad("bad JSON", f"{type(error).__name__}: {error}")
    return value if isinstance(value, dict) else Bad("not an object", f"the line holds a {type(value).__name__}")


def _items(file: Path) -> Iterator[Row]:
    """The objects of one list, which may stand behind `window.YTD.tweets.part0 = `."""
    decoder = json.JSONDecoder()
    try:
        with file.open(encoding="utf-8-sig") as stream:
            before, bracket, text = stream.read(CHUNK_CHARS).partition("[")
            if not bracket or len(before) > 200:
                raise Unreadable("not a known export", "neither JSON lines nor a list of objects")
            number, place = 1, _after_gap(text, 0)
            while not text.startswith("]", place):
                try:
                    value, place = decoder.raw_decode(text, place)
                except (json.JSONDecodeError, RecursionError) as error:
                    text, place = text[place:], 0
                    more = stream.read(max(CHUNK_CHARS, len(text))) if len(text) < LONGEST else ""
                    if not more:
                        raise Unreadable("bad JSON", f"item {number}: {error}; the file may be cut off") from None
                    text += more
                else:
                    yield Row(number, value if isinstance(value, dict) else Bad("not an object", f"item {number}"))
                    number += 1
                place = _after_gap(text, place)
    except UnicodeDecodeError as error:
        raise Unreadable("wrong encoding", f"byte {error.start} of a piece is not UTF-8") from None


def _after_gap(text: str, place: int) -> int:
    found = _GAP.match(text, place)
    assert found is not None, "a pattern that matches nothing, too"
    return found.end()
