"""Prompt and completion: one question and one answer under two keys.

Source: TRL's "prompt-completion" type, https://huggingface.co/docs/trl/dataset_formats; `question` and `answer` as in GSM8K
(Cobbe et al. 2021, arXiv:2110.14168); `inputs` and `targets` as in FLAN (Wei et al. 2021, arXiv:2109.01652; Longpre et al. 2023,
arXiv:2301.13688, https://huggingface.co/datasets/Open-Orca/FLAN), with the `definition` of Super-NaturalInstructions
(arXiv:2204.07705) before them; `system_prompt`, `question` and `response` as in https://huggingface.co/datasets/Open-Orca/OpenOrca.
Both sides become turns of a chat; either may already be a list of turns.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, chat, plainly, rest, said, with_meta, word

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("inputs", "targets"),
    ("input", "output"),
)
SYSTEMS = ("system", "system_prompt")


class PromptCompletion(Format):
    """A question and its answer."""

    over: ClassVar[tuple[str, ...]] = ("completion",)

    version: ClassVar[int] = 2

    kind: Literal["prompt_completion"] = "prompt_completion"
    prompt: str = Field("", examples=["question"])
    """Key of the question. Default '': the first pair of prompt/completion, prompt/response, question/answer, question/response,
    query/response, inputs/targets, input/output that the row has."""
    completion: str = Field("", examples=["answer"])
    """Key of the answer; set both or neither."""

    @model_validator(mode="after")
    def _both(self) -> PromptCompletion:
        if bool(self.prompt) != bool(self.completion):
            raise ValueError("`prompt` and `completion` name the two keys together: set both or neither")
        return self

    def _keys(self, row: dict[str, Any]) -> tuple[str, str] | None:
        pairs = ((self.prompt, self.completion),) if self.prompt else PAIRS
        return next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)

    def fits(self, row: dict[str, Any]) -> str | None:
        keys = self._keys(row)
        if keys is None or "instruction" in row or "chosen" in row or "messages" in row:
            return None
        return f"it has `{keys[0]}` and `{keys[1]}`"

    def record(self, row: dict[str, Any], name: str) -> Record:
        keys = self._keys(row)
        if keys is None:
            wanted = f"{self.prompt!r} and {self.completion!r}" if self.prompt else "a question and an answer"
            raise ValueError(f"{wanted} are missing; keys: {', '.join(row)}")
        if keys[0] == "inputs" and (task := word(row, "definition", empty=True)).strip():
            row = {**row, "inputs": f"{task}\n\n{word(row, 'inputs')}", "definition": None}
        messages = side(row, keys[0], "user") + side(row, keys[1], "assistant")
        system = next((key for key in SYSTEMS if isinstance(row.get(key), str)), "")
        if system and row[system].strip() and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": row[system]})
            return Record(name, messages=messages, meta=rest(row, (*keys, system)))
        return Record(name, messages=messages, meta=rest(row, keys))

    def row(self, record: Record) -> dict[str, Any]:
        turns = said(record)
        if len(turns) < 2:
            raise ValueError("it holds a question and an answer")
        prompt, completion = (self.prompt, self.completion) if self.prompt else PAIRS[0]
        row = {prompt: plainly(turns[:-1], "user"), completion: plainly(turns[-1:], "assistant")}
        return with_meta(row, record.meta, ("tools",))


def side(row: dict[str, Any], key: str, role: str) -> list[Message]:
    """One side of a pair, as text or as turns."""
    if isinstance(row[key], list):
        return chat(row[key], "role", "content")
    return [{"role": role, "content": word(row, key)}]
