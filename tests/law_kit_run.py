"""The law of use for what runs a finished model: engines, exporters, tasks."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from modelwright.core.record import Record
from modelwright.methods import engines
from modelwright.methods.engines import Request, Sampling, open_engine
from modelwright.methods.exporters import Evidence
from modelwright.methods.tasks import Answer, Generate
from modelwright.methods.trackers import tracked
from tests import decoder_kit, engine_kit, launch_kit, law_kit_remote, tracker_kit
from tests.law_kit import Seen, Subject
from tests.law_kit_data import Listening

TEXTS = ["def first(items):\n    return items[0]\n" * 4, "1984 été 日本 😀 the cat sat on the mat\n" * 3]


# --- engines --------------------------------------------------------------------------------------------


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[int]]:
    """How often `owner.name` is called while this is open."""
    found, calls = getattr(owner, name), [0]

    def call(*args: Any, **fields: Any) -> Any:
        calls[0] += 1
        return found(*args, **fields)

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, found)


def see_engine(spec: Any, bench: Any) -> Seen:
    """Greedy answers to six prompts given at once, a long text's probabilities; and how the work was cut."""
    if not spec.local:
        return law_kit_remote.see(spec, bench)
    import torch

    llama = type(spec).__name__ == "LlamaCpp"
    with open_engine(bench.gguf if llama else bench.model, spec) as engine:
        worker: Any = vars(engine)["_worker"]
        with counted(worker._decoder, "step") as steps, counted(worker._decoder, "score") as scores:
            prompts = [engine.encode(text)[:100] for text in (*TEXTS, "the", "items", "1984", "return")]
            answers = engine.generate([Request(tokens, Sampling(max_tokens=8)) for tokens in prompts])
            logps = engine.score(prompts[:1])
            answers += engine.generate([Request(prompts[0], Sampling(max_tokens=2))])  # a prompt that it has just seen
        computed, weights = (
            (0, "") if llama else (worker._decoder.decoder.computed_tokens, str(worker._decoder.decoder.model.dtype))
        )
        if llama:
            from modelwright.methods.engines import _llama_c as c

            c.library().llama_n_threads.argtypes = [ctypes.c_void_p]
            threads = worker.call(lambda: c.library().llama_n_threads(worker._decoder._context))
        else:
            threads = worker.call(torch.get_num_threads)
        return Seen([[answer.text for answer in answers], logps, weights], effort=[steps, scores, threads, computed])


ENGINES = Subject(
    see_engine,
    bases={**law_kit_remote.BASES, "native": {"threads": 1, "device": "cpu"}, "llamacpp": {"threads": 1}},
    others={
        **law_kit_remote.OTHERS,
        "llamacpp.context": 64,
        "llamacpp.threads": 2,
        "native.precision": "bf16",  # what `auto` means differs from machine to machine
        "native.device": "cuda",
        "native.threads": 2,
    },
)


# --- decoders -------------------------------------------------------------------------------------------

SCRIPTED = ("self_consistency", "step_search", "budget_forcing")
"""Kinds that look for words, which a random model does not write."""


def see_decoder(spec: Any, bench: Any) -> Seen:
    """What comes of prompts that repeat themselves, the best first; what it costs."""
    if spec.name in SCRIPTED:
        engine: Any = decoder_kit.Drawing()
        requests = [Request(engine.encode("What is it?"), Sampling(40))]
    else:
        engine = _engine(bench.folder / "searched")
        tail = [50, 60, 61, 51, 60, 62, 50, 60]  # the newest token went on otherwise than the newest two
        requests = [Request([*engine.encode(TEXTS[0])[:begin], *tail], Sampling(16)) for begin in (60, 50, 40, 30)]
    from modelwright.nn import speculate

    guesses: list[Any] = []
    with recorded(speculate.Lookup, "propose", guesses), recorded(speculate.Draft, "propose", guesses):
        found = list(spec.run_all(engine, requests))
    answers = [[[c.text, c.tokens, c.finish] for c in one.completions] for one in found]
    tried = [[[c.proposed, c.accepted] for c in one.completions] for one in found]
    spent = [one.tokens_spent for one in found]
    return Seen([answers, [one.scores for one in found]], effort=[spent, spec.budget(10), tried, guesses])


@contextmanager
def recorded(owner: Any, name: str, told: list[Any]) -> Iterator[None]:
    """What `owner.name` returns while this is open."""
    found = getattr(owner, name)

    def call(*args: Any) -> Any:
        told.append(found(*args))
        return told[-1]

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, found)


@cache
def _engine(model: Path) -> Any:
    """A model of three layers with many tokens that end an answer. Opened once: it is only asked."""
    words = engine_kit.tokenizer()
    made = engine_kit.model(vocab=len(words), num_hidden_layers=3)
    made.generation_config.eos_token_id = list(range(300, 399))
    made.save_pretrained(model)
    words.save_pretrained(model)
    return engines.ENGINES.load("native")(threads=1, device="cpu").open(model)  # type: ignore[call-arg, attr-defined]


DECODERS = Subject(
    see_decoder,
    bases={
        "draft": {"model": "./model2/"},
        "beam.diversity_penalty": {"groups": 2},
        "budget_forcing.wait": {"least_tokens": 20},
        "self_consistency.answer": {"pattern": "[a-z]+ [AB]", "choices": ["A", "B"]},
        "self_consistency.pattern": {"answer": "regex", "pattern": "it is [0-9]"},
        "self_consistency.choices": {"answer": "choice", "choices": ["A"]},
    },
    others={"draft.model": "./model/", "beam.early_stopping": True},
)


# --- exporters ------------------------------------------------------------------------------------------

PROOF = "return items[0]\n"
"""A text of which the random model loses by rounding; of most it gains as often as not."""


def see_exporter(spec: Any, bench: Any) -> Seen:
    """Whether the proof accepts the file, and the numbers that it found; not what only repeats the fields."""
    out = bench.fresh()
    written = spec.write(bench.model, out, Listening())
    log = Listening()
    proof = spec.prove(bench.model, out, Evidence([PROOF], [text[:20] for text in TEXTS]), log)
    found = {name: value for name, value in {**written, **proof}.items() if name not in ("type", "precision", "limits")}
    return Seen(found, log.heard, spec.bytes_on_disk(bench.shape))


EXPORTERS = Subject(
    see_exporter,
    bases={
        "gguf.max_perplexity_rise": {"type": "q4_0", "max_perplexity_rise": 1e-7, "max_logprob_difference": 9.0},
        "gguf.max_logprob_difference": {"max_logprob_difference": 1e-7, "max_perplexity_rise": 9.0},
        "gguf.answer_tokens": {"type": "q4_0", "max_logprob_difference": 9.0, "max_perplexity_rise": 9.0},
        "safetensors.answer_tokens": {"answer_tokens": 200},  # bfloat16 answers otherwise only after some dozens
        "safetensors.max_perplexity_rise": {"max_perplexity_rise": 1e-7, "max_logprob_difference": 9.0},
        "safetensors.max_logprob_difference": {"max_logprob_difference": 1e-7, "max_perplexity_rise": 9.0},
    },
)


# --- tasks ----------------------------------------------------------------------------------------------

REPLIES = ("def f(x):\n    return x", "one two", "Three  words here.", "the\nanswers", "NONE", "jumping")


def questions() -> list[Record]:
    """Chats and documents in several groups and clusters, with answers of which each forgiveness makes one right."""
    right = ("x", "ONE two", "Three words here", "the", "none", "jump. jumped", "one two", "def f(x):\n    return x")
    rows = []
    for n in range(16):
        meta = {"sort": "ab"[n % 2], "from": ("prompt", "memory", "written")[n % 3], "object": f"o{n // 3}"}
        messages = [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": right[n % len(right)]}]
        rows.append(Record(f"q{n}", messages=messages, meta=meta))
    rows += [Record(f"t{n}", text="a text of some words " * (n + 1), meta={"from": "prompt", "sort": "t"}) for n in range(3)]
    return rows


def see_task(spec: Any, bench: Any) -> Seen:
    """Scores and their summary for an engine that knows six replies and stops after as many words as it may say."""
    samples = list(spec.samples(iter(questions())))
    scores = []
    for number, sample in enumerate(samples):
        ask = spec.ask(sample)
        if isinstance(ask, Generate):
            words = REPLIES[number % len(REPLIES)].split(" ")
            scores.append(spec.score(sample, Answer(" ".join(words[: ask.max_tokens]), (), 1)))
        else:
            text = ask.text or ask.messages[-1]["content"]
            count = len(text.split())
            scores.append(spec.score(sample, Answer(text, tuple(-1.0 - math.sin(number + i) / 2 for i in range(count)), count)))
    summary = [[spec.name, *metric] for metric in spec.summary(samples, scores)]
    return Seen([[s.id for s in samples], [s.value for s in scores], summary], effort=spec.new_tokens())


TASKS = Subject(see_task)


# --- trackers -------------------------------------------------------------------------------------------


def see_tracker(spec: Any, bench: Any) -> Seen:
    """What the library is told of a short training, and what people are told of where it went."""
    log = Listening()
    with tracker_kit.installed() as calls:
        with tracked(spec, "base-0123456789ab", {"steps": 4}, log):
            log.event("step", step=2, steps=4, loss=2.5, tokens=100, seconds=1.0)
            log.event("validation", step=2, loss=2.0)
        return Seen(calls, log.heard)


TRACKERS = Subject(see_tracker)


# --- launchers ------------------------------------------------------------------------------------------


def see_launcher(spec: Any, bench: Any) -> Seen:
    """What is started and asked for while every worker fails at once, and what people are told."""
    log = Listening()
    started = launch_kit.attempts(spec, bench.fresh(), log)
    return Seen(started, [fields["restarts_left"] for event, fields in log.heard if event == "worker_lost"])


LAUNCHERS = Subject(see_launcher)
