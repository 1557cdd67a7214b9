"""Adapters under llama.cpp: the same answers as natively, rows with different ones in one engine, swapped while answers come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.methods.engines import ENGINES, Request, Sampling, open_engine
from modelwright.methods.engines._llama_memory import Sequences
from modelwright.methods.exporters import EXPORTERS
from modelwright.methods.exporters._gguf_lora import Base, write
from tests import engine_kit as kit

pytest.importorskip("xllamacpp")

FAMILIES = {"Llama": {}, "Qwen3": {"head_dim": 16}}


class Bench(NamedTuple):
    folder: Path
    native: Any
    llama: Any
    adapters: dict[str, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    base, kind = tmp_path_factory.mktemp("base"), request.param
    folder = kit.folder(base / "model", kind=kind, **FAMILIES[kind])
    (base / "gguf").mkdir()
    EXPORTERS.load("gguf")(type="f32").write(folder, base / "gguf", Log(None))

    def model() -> Any:
        return kit.model(kind, len(kit.tokenizer()), **FAMILIES[kind])

    adapters = {
        "all": kit.adapter(base / "all", model(), 1, r=4, lora_alpha=8, target_modules=kit.PROJECTIONS),
        "few": kit.adapter(base / "few", model(), 2, r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_rslora=True),
        "uneven": kit.adapter(base / "uneven", model(), 3, r=3, target_modules=["k_proj", "up_proj"], rank_pattern={"up_proj": 6},
                       alpha_pattern={"up_proj": 5}),
    }  # fmt: skip
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(where, ENGINES.load(name)(threads=1, max_batch=4, **more)))
            for name, where, more in (("native", folder, {"device": "cpu"}), ("llamacpp", base / "gguf", {"prefill_tokens": 32}))
        ]
        yield Bench(folder, *engines, adapters)


def test_rows_with_different_adapters_answer_as_natively(bench: Bench) -> None:
    for engine in (bench.native, bench.llama):
        for name, folder in bench.adapters.items():
            engine.load_adapter(name, folder)
    asked = [Request(prompt, Sampling(max_tokens=6), adapter=name) for prompt in kit.PROMPTS for name in ("", *bench.adapters)]
    ours, theirs = (engine.generate(asked) for engine in (bench.llama, bench.native))
    for request, one, two in zip(asked, ours, theirs, strict=True):
        assert one.tokens == two.tokens, (request.adapter, len(request.tokens))
        assert one.logprobs == pytest.approx(two.logprobs, abs=0.02), request.adapter
    assert len({one.tokens for one in ours[:4]}) == 4, "each adapter has an answer of its own"
    assert bench.llama.adapters == tuple(bench.adapters)
    assert bench.llama.score(kit.PROMPTS[:1])[0] == pytest.approx(bench.native.score(kit.PROMPTS[:1])[0], abs=0.02), "without any"
    again = bench.llama.generate(asked)
    assert [one.tokens for one in again] == [one.tokens for one in ours], "what was kept of one is not taken for another"


def test_adapters_are_swapped_while_answers_come(bench: Bench) -> None:
    """What is under way keeps the adapter that it began with, whatever happens to its name."""
    engine, request = bench.llama, Request(kit.PROMPTS[0], Sampling(max_tokens=60))
    engine.load_adapter("mine", bench.adapters["all"])
    engine.load_adapter("other", str(bench.adapters["few"]))
    named = request._replace(adapter="mine")
    before = {name: engine.generate([request._replace(adapter=name)])[0].tokens for name in ("", "mine", "other")}
    streams = {"mine": engine.submit(named), "": engine.submit(request)}
    read = {name: iter(stream) for name, stream in streams.items()}
    first = {name: next(pieces) for name, pieces in read.items()}
    engine.load_adapter("mine", bench.adapters["uneven"])
    engine.unload_adapter("other")
    swapped = engine.generate([named])[0].tokens
    for name, pieces in read.items():
        rest = [token for piece in pieces for token in piece.tokens]
        assert (*first[name].tokens, *rest) == before[name], name
    assert swapped not in before.values()
    for name in ("other", "never"):
        with pytest.raises(UserError, match=f"there is no adapter '{name}'"):
            engine.generate([request._replace(adapter=name)])
    with pytest.raises(UserError, match="there is no adapter 'other'"):
        engine.unload_adapter("other")
    engine.unload_adapter("mine")
    assert engine.generate([request])[0].tokens == before[""]
    cancelled = engine.submit(request._replace(adapter="all"))
    engine.unload_adapter("all")
    cancelled.cancel()
    assert list(cancelled)[-1].finish in ("cancelled", "stop", "length")
    assert not engine._loras._worn or engine._loras._worn.named, "one that is gone is in no batch"
    engine.load_adapter("all", bench.adapters["all"])


def test_gguf_files_are_taken_as_they_are(bench: Bench, tmp_path: Path) -> None:
    bench.llama.load_adapter("all", bench.adapters["all"])
    file = tmp_path / "one" / "all.gguf"
    file.parent.mkdir()
    told = write(bench.adapters["all"], file, bench.llama._base())
    assert told["matrices"] == 14 and told["ranks"] == [4]
    request = Request(kit.PROMPTS[0], Sampling(max_tokens=6))
    wanted = bench.llama.generate([request._replace(adapter="all")])
    for place in (file, file.parent):
        bench.llama.load_adapter("file", place)
        assert bench.llama.generate([request._replace(adapter="file")]) == wanted
    bench.llama.unload_adapter("file")


@pytest.mark.filterwarnings("ignore")  # PEFT's, about heads and tables
def test_what_cannot_be_attached_is_refused(bench: Bench, tmp_path: Path) -> None:
    def refuses(path: Path, why: str) -> None:
        with pytest.raises(UserError, match=why):
            bench.llama.load_adapter("x", path)
        assert "x" not in bench.llama.adapters

    refuses(tmp_path / "nowhere", "adapter_config.json")
    refuses(tmp_path, "adapter_config.json")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF torn")
    refuses(tmp_path / "bad.gguf", "cannot attach bad.gguf")
    dora = shutil.copytree(bench.adapters["few"], tmp_path / "dora")
    settings = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    refuses(dora, "use_dora")
    other = kit.adapter(
        tmp_path / "other", kit.model(hidden_size=32, num_attention_heads=2), 4, r=2, target_modules=["q_proj", "v_proj"]
    )
    refuses(other, "cannot attach")
    table = kit.adapter(tmp_path / "table", kit.model(), 5, r=2, target_modules=["embed_tokens"])
    refuses(table, "not that of a linear layer")
    head = kit.adapter(tmp_path / "head", kit.model(), 6, r=2, target_modules=["lm_head"])
    refuses(head, "cannot be attached")  # PEFT saves the table with it, which is the head
    with pytest.raises(UserError, match="phi3"):
        write(bench.adapters["all"], tmp_path / "x.gguf", Base("phi3", 4, 2))
    assert bench.llama.generate([Request(kit.PROMPTS[2], Sampling(max_tokens=2))])[0].tokens, "the engine lives on"


def test_a_memory_of_one_adapter_is_not_that_of_another() -> None:
    class Memory:
        """Positions of each sequence."""

        def __init__(self) -> None:
            self.last = [-1, -1]

        def llama_memory_seq_rm(self, _: Any, sequence: int, start: int, end: int) -> bool:
            self.last[sequence] = start - 1 if start > 0 else -1
            return True

        def llama_memory_seq_pos_max(self, _: Any, sequence: int) -> int:
            return self.last[sequence]

        def llama_memory_seq_pos_min(self, _: Any, sequence: int) -> int:
            return 0 if self.last[sequence] >= 0 else -1

    held, one, other = Sequences(Memory(), None, 2), object(), object()
    sequence, kept = held.take([1, 2, 3, 4], one)  # type: ignore[arg-type]
    assert kept == 0
    held.held[sequence] += [1, 2, 3]
    held.free.append(sequence)
    assert held.take([1, 2, 3, 4], other)[1] == 0  # type: ignore[arg-type]
    assert held.take([1, 2, 3, 4], one) == (sequence, 3)  # type: ignore[arg-type]
