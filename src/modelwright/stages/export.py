"""Export: a model in another program's format, opened there again and compared with the model before it counts as made.

Source of the need: an export with the wrong pre-tokenizer or template works and is quietly worse (llama.cpp issues 8649, 9927).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Estimate, Facts, Given, Ref, Refs, Run, Stage, Stats, check_goes_on, estimate
from modelwright.core.units import bytes_text, count_text
from modelwright.methods.exporters import EXPORTERS, Evidence, Exporter
from modelwright.methods.sources import open_records

_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_IMPORTS_S, _IMPORTS_BYTES = 5.0, 0.6e9
"""PyTorch, transformers and llama.cpp, loaded; seconds on one core of a 2020s server."""
_ROW_TOKENS = 250.0
"""Of a row of the proof, where nothing is known of the data."""
_NO_DATA = (
    'def first(items):\n    """The first item, or None."""\n    for item in items:\n        return item\n    return None\n',
    "The quick brown fox jumps over the lazy dog. Python was created by Guido van Rossum and first released in 1991.",
)


class Export(Stage):
    """Writes the model for another program, proves it there, and refuses it where the two do not agree."""

    kind: Literal["export"] = "export"
    model: Ref("model")  # type: ignore[valid-type]
    """What to export: an earlier stage, a folder, or `hf:org/name@revision`; a whole model, not an adapter."""
    format: Annotated[Exporter, EXPORTERS] = Field(examples=["safetensors"])
    """The format, and with what precision the weights are kept."""
    data: Refs | None = Field(None, examples=["pairs:test"])
    """Rows that the model was not trained on, for the proof; each once. Unset: two built-in texts, which show that the
    file is right but say little about how much precision costs."""
    proof_rows: int = Field(32, ge=1, le=10_000, examples=[1])
    """Rows of `data` that both programs tokenise, score and answer. More: a sharper perplexity, a longer proof. Default:
    some thousands of tokens, which tell 1 % of perplexity."""

    produces: ClassVar[str] = "export"
    random: ClassVar[bool] = False

    def unused(self, context: Spec) -> dict[str, str]:
        if self.data is None:
            return {"proof_rows": "there is no `data` to take rows from"}
        return {
            f"data.{index}.{name}": "the proof uses each row at most once"
            for index, mix in enumerate(self.data)
            for name in ("weight", "epochs")
            if getattr(mix, name) is not None
        }

    def estimate(self, given: Given) -> Estimate:
        parent = given.parents[self.model]
        check_goes_on(self.model, parent)
        shape = parent.shape
        if shape is None:
            weights = parent.bytes or 540e6
            disk, per_token = weights, 0.5 * weights
            why = f"assumed {bytes_text(weights)} of float32 weights"
        else:
            weights, disk, per_token = 4.0 * shape.params, self.format.bytes_on_disk(shape), shape.flops_per_token()
            why = f"{count_text(shape.params)} weights"
        rows = self.proof_rows if self.data else len(_NO_DATA)
        tokens = rows * _ROW_TOKENS
        flops = 2 * 2 * tokens * per_token  # two programs, scoring and answering
        # half the machine's rate: the proof is float32
        writing = self.format.write_seconds(weights, given.machine.cores)
        seconds = _IMPORTS_S + writing + 2 * flops / given.machine.flops_per_s
        return estimate(
            seconds,
            f"{why} written at {bytes_text(weights / writing)}/s; {count_text(tokens)} tokens proved by two programs in float32",
            _IMPORTS_BYTES + weights + disk + 0.2e9,
            f"the model in float32 {bytes_text(weights)}, the export {bytes_text(disk)}, imports {bytes_text(_IMPORTS_BYTES)}",
            disk,
            why + (f"; {remark}" if shape is not None and (remark := self.format.remark(shape)) else ""),
            {"": Facts(type="export", bytes=disk, shape=shape)},
        )

    def run(self, run: Run) -> Stats:
        source = run.inputs[self.model]
        written = self.format.write(source.path, run.out, run.log)
        for name in _COPIED:
            if (source.path / name).is_file() and not (run.out / name).exists():
                shutil.copyfile(source.path / name, run.out / name)
        evidence, rows = self._evidence(run, source.path)
        proof = self.format.prove(source.path, run.out, evidence, run.log) | rows
        run.log.event("proof", **proof)
        size = sum(path.stat().st_size for path in run.out.iterdir() if path.suffix in (".gguf", ".safetensors"))
        shape = run.facts[self.model].shape if self.model in run.facts else None
        facts: dict[str, Any] = {"type": "export", "bytes": size}
        if shape is not None:
            facts["shape"] = shape.model_dump()
        return {
            "format": self.format.model_dump()["kind"],
            "bytes": size,
            "written": written,
            "proof": proof,
            "facts": {"": facts},
        }

    def _evidence(self, run: Run, model: Path) -> tuple[Evidence, dict[str, int]]:
        """Texts and prompts for the proof, and how many rows they come from."""
        if self.data is None:
            return Evidence(list(_NO_DATA), [text[: len(text) // 2] for text in _NO_DATA]), {"rows_read": 0, "rows_used": 0}
        from modelwright.methods.templates import render
        from modelwright.nn.generate import chat_template
        from modelwright.nn.model import load_tokenizer

        read, chosen = _sample(
            (record for mix in self.data for record in open_records(run.inputs[mix.ref], run.log)), self.proof_rows
        )
        tokenizer = load_tokenizer(model)
        template = chat_template(tokenizer)
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""

        def text(messages: list[Message], header: bool) -> str:
            if template:
                return render(template, messages, header, bos=bos, eos=eos)
            return "\n".join(str(message["content"]) for message in messages)

        texts, prompts = [], []
        for record in chosen:
            chat = record.messages + record.chosen
            texts.append(text(chat, False) if chat else record.text)
            prompts.append(text(chat[:-1], True) if len(chat) > 1 else texts[-1][: len(texts[-1]) // 2])
        return Evidence(texts, prompts), {"rows_read": read, "rows_used": len(chosen)}


def _sample(rows: Iterator[Record], count: int) -> tuple[int, list[Record]]:
    """Rows read, and `count` of them from all over (Vitter 1985, algorithm R, always with the same draws)."""
    draw, kept, read = random.Random(0), list[Record](), 0
    for read, record in enumerate(rows, 1):
        if len(kept) < count:
            kept.append(record)
        elif (place := draw.randrange(read)) < count:
            kept[place] = record
    return read, kept
