"""Export: a model in another program's format, opened there again and compared with the model before it counts as made.

Source of the need: an export with the wrong pre-tokenizer or template works and is quietly worse (llama.cpp issues 8649, 9927).
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import TORCH, Estimate, Facts, Given, Shape, Span, check_goes_on, estimate, imports
from modelwright.core.measure import Laps
from modelwright.core.passes import passed, written_s
from modelwright.core.record import Message, Record
from modelwright.core.spec import Spec, kind_of
from modelwright.core.stage import Ref, Refs, Run, Stage, Stats
from modelwright.core.units import bytes_text, count_text
from modelwright.methods.exporters import EXPORTERS, Evidence, Exporter
from modelwright.methods.sources import open_records
from modelwright.stages._evaluate_cost import AT_ONCE, LLAMA, ROW_TOKENS
from modelwright.stages._train_cost import chars_per_token, guess

_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_IMPORTS_BYTES = 0.6e9
"""PyTorch, transformers and llama.cpp in memory."""
_OPEN_S = 0.5
"""Two engines opened on the model, and the tokenizers' probes; measured."""
_MOST_TOKENS, _NO_DATA_TOKENS = 1024.0, 40.0
"""Most tokens of a row that the proof looks at (`methods/exporters/_proof.py`); tokens of a built-in text."""
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
            disk = weights
            why = f"assumed {bytes_text(weights)} of float32 weights"
        else:
            weights, disk = 4.0 * shape.params, self.format.bytes_on_disk(shape)
            why = f"{count_text(shape.params)} weights"
        known = shape or guess(0.25 * weights)
        spans = self._spans(known, weights, given)
        return estimate(
            sum(span.seconds for span in spans),
            f"{why}; " + ", ".join(f"{span.name} {span.seconds:.3g} s ({span.why})" for span in spans),
            _IMPORTS_BYTES + weights + disk + 0.2e9,
            f"the model in float32 {bytes_text(weights)}, the export {bytes_text(disk)}, imports {bytes_text(_IMPORTS_BYTES)}",
            disk,
            why + (f"; {remark}" if shape is not None and (remark := self.format.remark(shape)) else ""),
            {"": Facts(type="export", bytes=disk, shape=shape, context=parent.context)},
        )._replace(spans=spans, leaves=TORCH)

    def _spans(self, shape: Shape, weights_bytes: float, given: Given) -> tuple[Span, ...]:
        rows, row_tokens = self._proof(given, shape.vocab)
        machine = given.machine.host()
        texts_s = sum(passed(shape, machine, rows * row_tokens, row_tokens, AT_ONCE))
        answers_s = sum(passed(shape, machine, rows * row_tokens, row_tokens, AT_ONCE, target_frac=0.0))
        answers_s += written_s(shape, machine, rows * self.format.longest_answer())
        kind = kind_of(self.format)
        twice = 1 + (LLAMA if kind == "gguf" else 1.0)
        return (
            imports("torch, transformers and an engine"),
            Span("write", self.format.write_seconds(weights_bytes, machine.cores), f"{bytes_text(weights_bytes)} of weights"),
            Span("prove", _OPEN_S, "two programs opened"),
            Span("prove texts", twice * texts_s, f"{count_text(rows * row_tokens)} tokens, twice", kind),
            Span("prove answers", twice * answers_s, f"{count_text(rows)} of {self.format.longest_answer()} tokens, twice", kind),
        )

    def _proof(self, given: Given, vocab: int) -> tuple[float, float]:
        """Rows of the proof, and tokens of one."""
        if self.data is None:
            return float(len(_NO_DATA)), _NO_DATA_TOKENS
        facts = [given.parents[mix.ref] for mix in self.data]
        chars, rows = (sum(getattr(f, name) or 0.0 for f in facts) for name in ("chars", "rows"))
        tokens = chars / rows / chars_per_token(vocab) if chars and rows else ROW_TOKENS
        return min(float(self.proof_rows), rows or math.inf), min(
            tokens, given.parents[self.model].context or _MOST_TOKENS, _MOST_TOKENS
        )

    def run(self, run: Run) -> Stats:
        source = run.inputs[self.model]
        laps = run.laps or Laps()
        laps.start()
        written = self.format.write(source.path, run.out, run.log)
        for name in _COPIED:
            if (source.path / name).is_file() and not (run.out / name).exists():
                shutil.copyfile(source.path / name, run.out / name)
        laps.done("imports+write")
        evidence, rows = self._evidence(run, source.path)
        proof = self.format.prove(source.path, run.out, evidence, run.log) | rows
        laps.done("prove")
        run.log.event("proof", **proof)
        size = sum(path.stat().st_size for path in run.out.iterdir() if path.suffix in (".gguf", ".safetensors"))
        shape = run.facts[self.model].shape if self.model in run.facts else None
        facts: dict[str, Any] = {"type": "export", "bytes": size}
        if shape is not None:
            facts |= {"shape": shape.model_dump(), "context": run.facts[self.model].context}
        return {
            "format": kind_of(self.format),
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
