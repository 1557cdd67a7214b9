"""Our server over llama.cpp beside the HTTP listener of llama-server in the same xllamacpp wheel: tokens per second of one stream
and of eight, and the time to the first token that our server adds to the engine called directly. The same Q8_0 file of the
SmolLM-135M shape, random weights; two threads each; 128 tokens an answer, greedy, streamed from `/v1/completions` by one client,
which takes turns between the two. Each server is a process of its own, idle while the other is asked. Medians: of speeds, and of
each round's ratio. Ours sends the pieces of an answer at most 20 times a second, some tokens together; theirs each by itself.

`python -m benchmarks serve_vs_llama_server [--rounds 13] [--tokens 128] [--threads 2]`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks._training import SHAPE, VOCAB

CONTEXT, STREAMS = 1024, 8
ASKED = count()


def prompt() -> str:
    """A new one each time, so that nobody has read its beginning before."""
    return f"{next(ASKED):04} is the number of the question. The quick brown fox jumps over the lazy dog; then it sleeps. "


def word() -> str:
    """A short prompt, so that little else is measured; no two begin alike."""
    return blake2b(str(next(ASKED)).encode(), digest_size=4).hexdigest()


def write_model(folder: Path) -> Path:
    """A GGUF file of random weights whose 49,152 tokens are bytes, pairs and triples of printable characters: a token that is
    half a character would be told with the next one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from modelwright.core.events import Log
    from modelwright.methods.architectures.llama import Llama
    from modelwright.methods.exporters import EXPORTERS
    from modelwright.nn.model import build

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = [letter for letter in letters if letter.isascii()]
    pairs = [(a, b) for a in shown for b in shown]
    merges = pairs + [(a + b, c) for a, b in pairs for c in shown][: VOCAB - len(letters) - len(pairs) - 1]
    texts = ["<eos>", *letters, *(a + b for a, b in merges)]
    assert len(set(texts)) == VOCAB
    bare = Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, merges))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    torch.manual_seed(0)
    build(Llama(**SHAPE).config(VOCAB, CONTEXT)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<eos>").save_pretrained(folder)
    EXPORTERS.load("gguf")(type="q8_0").write(folder, folder, Log(None))  # type: ignore[attr-defined]
    return folder / "model.gguf"


def ours(path: Path, threads: int) -> None:
    """Our server; every line on standard input asks the engine directly, and is answered with the seconds to its first token."""
    from modelwright.methods.engines import ENGINES, Request, Sampling
    from modelwright.methods.engines._supervised import Supervised
    from modelwright.serve import run
    from modelwright.serve.asking import Settings
    from modelwright.serve.models import Models

    spec: Any = ENGINES.load("llamacpp")(context=CONTEXT, max_batch=STREAMS, threads=threads)  # type: ignore[call-arg]
    engine = Supervised(spec, path)  # as `modelwright serve` opens it

    def direct() -> None:
        for line in sys.stdin:
            began_s = time.perf_counter()
            request = Request(engine.encode(line.rstrip("\n")), Sampling(max_tokens=2, logprobs=False))
            stream = iter(engine.submit(request))
            next(stream)
            first_s = time.perf_counter() - began_s
            for _ in stream:  # the second token must not be under way when the server is asked next
                pass
            print(first_s, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # whoever asked is gone

    threading.Thread(target=direct, daemon=True).start()
    settings, told = Settings(parallel=STREAMS), partial(print, flush=True)
    run.serve(Models.of(engine, "model"), "model", run.Address(port=0), settings=settings, on_ready=told)
    engine.close()


def theirs(path: Path, threads: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx, params.port = STREAMS, CONTEXT * STREAMS, 0
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


class Told(NamedTuple):
    first_s: float
    """From the request to the first token."""
    tokens: int


def ask(address: tuple[str, int], tokens: int, text: str) -> Told:
    """One streamed answer, over a bare socket, so that the client costs as little as may be."""
    body = {"model": "model", "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_s = time.perf_counter()
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        got, first_s = b"", 0.0
        while b"[DONE]" not in got[-64:]:
            part = link.recv(1 << 16)
            assert part, got[-500:]
            got += part
            if not first_s and b"data: " in got:
                first_s = time.perf_counter() - began_s
    events = [json.loads(line[6:]) for line in got.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: {")]
    return Told(first_s, events[-1]["usage"]["completion_tokens"])


def speed(address: tuple[str, int], streams: int, tokens: int) -> float:
    """Tokens per second of so many at once."""
    found: list[Told] = []
    threads = [threading.Thread(target=lambda: found.append(ask(address, tokens, prompt()))) for _ in range(streams)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == streams and all(told.tokens == tokens for told in found), found
    return streams * tokens / (time.perf_counter() - began_s)


@contextmanager
def process(side: str, path: Path, threads: int) -> Iterator[tuple[Any, tuple[str, int]]]:
    command = [sys.executable, "-m", "benchmarks.serve_vs_llama_server", side, str(path), str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[1]) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            host, _, port = child.stdout.readline().strip().removeprefix("http://").rpartition(":")
            yield child, (host, int(port))
        finally:
            child.terminate()


def main() -> dict[str, float]:
    """Print both sides; returns the ratios and the milliseconds."""
    options = argparse.ArgumentParser(prog="serve_vs_llama_server")
    options.add_argument("--rounds", type=int, default=13)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args(sys.argv[2:])
    speeds: dict[tuple[str, int], list[float]] = {(side, n): [] for side in ("ours", "theirs") for n in (1, STREAMS)}
    served, direct = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = write_model(Path(folder))
        sides = {side: stack.enter_context(process(side, path, given.threads)) for side in ("ours", "theirs")}
        for _, address in sides.values():
            ask(address, 8, prompt())  # its first answer warms it up
        for _ in range(given.rounds):
            for streams in (1, STREAMS):
                for side, (_, address) in sides.items():
                    speeds[side, streams].append(speed(address, streams, given.tokens))
            for _ in range(16):
                child, address = sides["ours"]
                served.append(ask(address, 2, word()).first_s)
                child.stdin.write(f"{word()}\n")
                child.stdin.flush()
                direct.append(float(child.stdout.readline()))
    for (side, streams), found in speeds.items():
        print(f"{side:6s} {streams} streams {median(found):8.1f} tokens/s   {' '.join(f'{one:.1f}' for one in found)}")
    added_ms = 1000 * (median(served) - median(direct))
    print(f"first token: served {1000 * median(served):.2f} ms, engine alone {1000 * median(direct):.2f} ms")
    ratio = {n: median(a / b for a, b in zip(speeds["ours", n], speeds["theirs", n], strict=True)) for n in (1, STREAMS)}
    return {"single": round(ratio[1], 3), "eight": round(ratio[STREAMS], 3), "ttft_ms": round(added_ms, 2)}


if __name__ == "__main__":
    {"ours": ours, "theirs": theirs}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
