"""python_questions: questions about a package's functions with exact answers, derived from its source without importing it.

Source: introspection by `ast` (https://docs.python.org/3/library/ast.html); the sorts are in `_python_ask.py`. Several questions
in one chat (`turns`) share the source they are about, so more of what is read is answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Facts
from modelwright.core.events import Log
from modelwright.core.record import Message, Record
from modelwright.core.spec import Advice, Spec
from modelwright.methods.sources._python import locate
from modelwright.methods.sources._python_ask import SORTS, Question
from modelwright.methods.sources._python_asked import PythonAsked


class PythonQuestions(PythonAsked):
    """One chat a question, or several questions about one function in one chat."""

    advice: ClassVar[Advice] = Advice(
        "you want instruction data and a test with exact answers from code alone, with no other model's output in it",
        "you want free conversation: every answer here is short and taken from source",
    )

    kind: Literal["python_questions"] = "python_questions"
    turns: int = Field(1, ge=1, le=16, examples=[3])
    """Most questions a chat may hold about one shown function. 1: each stands alone, as a test wants it; more: training reads a
    source once for several answers."""

    def unused(self, context: Spec) -> dict[str, str]:
        found = super().unused(context)
        if not any(SORTS[name].origin == "prompt" for name in self.sorts):
            found["turns"] = "no sort shows the whole source, so no chat has one to share"
        return found

    def facts(self, bytes_in: float) -> Facts:
        alone = super().facts(bytes_in)
        if self.turns == 1:
            return alone
        saved = 1 - 1 / self.turns  # of the chats about a shown source, most of the characters are that source
        rows, chars = (alone.rows or 0.0) * (1 - 0.65 * saved), (alone.chars or 0.0) * (1 - 0.6 * saved)
        return Facts(type="records", rows=rows, chars=chars, bytes=chars)

    def read(self, log: Log) -> Iterator[Record]:
        place = locate(self.package)
        for _, of_one in groupby(self.asked(log), key=lambda q: q.function):
            for chat in _chats(list(of_one), self.turns):
                messages: list[Message] = []
                for question in chat:
                    messages.append({"role": "user", "content": question.ask if messages else question.prompt})
                    messages.append({"role": "assistant", "content": question.answer})
                name = chat[0].id + "".join(f"+{question.id.rsplit(':', 1)[-1]}" for question in chat[1:])
                yield Record(name, messages=messages, meta=self.meta(place, *chat))


def _chats(of_one: list[Question], turns: int) -> Iterator[list[Question]]:
    """Questions about one function as chats: those that show the whole source share it, the others stand alone."""
    together = [q for q in of_one if q.shown == q.function.source]
    for start in range(0, len(together), turns):
        yield together[start : start + turns]
    yield from ([q] for q in of_one if q.shown != q.function.source)
