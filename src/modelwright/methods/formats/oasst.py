"""OpenAssistant: trees of messages, in which people answered, rated and ranked each other's texts.

Source: Koepf et al. 2023, "OpenAssistant Conversations", arXiv:2304.07327; trees as in the files that end in `trees.jsonl` of
https://huggingface.co/datasets/OpenAssistant/oasst1, whose rank 0 is the best of the answers to one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import ROLES, Format, LeftOut, rest, word
from modelwright.methods.formats._ranks import Judged, by_rank

Node = dict[str, Any]


class OpenAssistant(Format):
    """A tree as chats or as preferences. Deleted messages and what hangs on them are left out; `meta.deleted` tells how many."""

    over: ClassVar[tuple[str, ...]] = ("text",)

    kind: Literal["oasst"] = "oasst"
    gives: Literal["best", "paths", "pairs"] = Field("best", examples=["paths", "pairs"])
    """`best`: one chat a tree, with the best answer at each place. `paths`: a chat for each answer that nobody went on from.
    `pairs`: for each message with ranked answers, the best against each worse one. Default: the chats best to imitate."""

    def fits(self, row: dict[str, Any]) -> str | None:
        if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
            return "`prompt` is a message with `replies`"
        if {"message_id", "parent_id", "message_tree_id", "text", "role"} <= set(row):
            return "it is one message of a tree, with `message_id` and `parent_id`"
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        return self.records(row, name)[0]

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        root = row.get("prompt")
        if not isinstance(root, dict):
            raise ValueError("a row is one message; read the file of whole trees instead, whose name ends in `trees.jsonl`")
        if root.get("deleted"):
            raise LeftOut("the first message of the tree is deleted")
        gone = sum(1 for node in _all(root) if node.get("deleted"))
        meta = rest(row, ("prompt",)) | ({"lang": root["lang"]} if root.get("lang") else {}) | ({"deleted": gone} if gone else {})
        if self.gives == "pairs":
            found = [record for path in _paths(root) for record in _ranked(path, name, meta)]
            if not found:
                raise LeftOut("no message of the tree has ranked answers")
            return found
        ends = [path for path in _paths(root) if _said(path[-1])["role"] == "assistant" and not _replies(path[-1])]
        if self.gives == "best":
            ends = [_best(root)]
            while ends[0] and _said(ends[0][-1])["role"] != "assistant":
                ends[0].pop()
        if not ends or not ends[0]:
            raise LeftOut("the tree has no answer")
        names = [name] if len(ends) == 1 else [f"{name}#{number}" for number in range(1, len(ends) + 1)]
        return [Record(each, messages=[_said(node) for node in path], meta=meta) for each, path in zip(names, ends, strict=True)]


def _said(node: Node) -> Message:
    role = ROLES.get(str(node.get("role")).lower())
    if role not in ("user", "assistant"):
        raise ValueError(f"a message has the unknown role {node.get('role')!r}; known: prompter, assistant")
    return {"role": role, "content": word(node, "text")}


def _replies(node: Node) -> list[Node]:
    """What was answered and not deleted, the best first and the unranked last."""
    found = node.get("replies") or []
    if not isinstance(found, list) or not all(isinstance(reply, dict) for reply in found):
        raise ValueError("'replies' is no list of messages")
    kept = [reply for reply in found if not reply.get("deleted")]
    return sorted(kept, key=lambda reply: (_rank(reply) is None, _rank(reply) or 0))


def _rank(node: Node) -> int | None:
    rank = node.get("rank")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else None


def _all(node: Node) -> Iterator[Node]:
    waiting = [node]
    while waiting:
        yield (here := waiting.pop())
        waiting += [reply for reply in here.get("replies") or [] if isinstance(reply, dict)]


def _paths(root: Node) -> Iterator[list[Node]]:
    """From the first message to each other one; a message before its replies."""
    waiting = [[root]]
    while waiting:
        yield (path := waiting.pop())
        waiting += [[*path, reply] for reply in reversed(_replies(path[-1]))]


def _best(root: Node) -> list[Node]:
    path = [root]
    while replies := _replies(path[-1]):
        path.append(replies[0])
    return path


def _ranked(path: list[Node], name: str, meta: dict[str, Any]) -> list[Record]:
    """The pairs of the answers to the path's last message."""
    answers = [(rank, reply) for reply in _replies(path[-1]) if (rank := _rank(reply)) is not None]
    judged = [Judged([_said(reply)], rank, rank) for rank, reply in answers]
    if len({answer.place for answer in judged}) < 2:
        return []
    own = str(path[-1].get("message_id") or len(path))
    return by_rank(f"{name}:{own}", [_said(node) for node in path], judged, meta, "pairs", scored=False)
