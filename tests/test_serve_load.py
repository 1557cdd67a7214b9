"""The server under more than it can do: refusals but no faults, no growth, no slot lost, no admitted request lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import httpx
import pytest

from modelwright.core.spec import allow_code
from modelwright.methods.engines import ENGINES, Delta, open_with
from modelwright.serve import queue
from modelwright.serve.app import Settings
from modelwright.serve.guard import Rules
from modelwright.serve.metrics import memory_bytes
from tests import test_serve, test_serve_command
from tests.fake_engine import FakeEngine, FakeStream, wait_until

Running, start, process = test_serve.Running, test_serve.start, test_serve_command.process
LIGHT = Path(__file__).with_name("light_engine.py")


def request(path: str = "/v1/completions", **fields) -> bytes:
    """As bytes: a client that costs little."""
    body = json.dumps({"model": "tiny", "prompt": "SLOW", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, data: bytes) -> tuple[int, float, bytes]:
    """Status, seconds, all that came."""
    began_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        got = await reader.read()
        return int(got.split(b" ", 2)[1]), time.monotonic() - began_s, got
    finally:
        writer.close()


def press(server: Running, clients: int, seconds: float, tokens: int) -> tuple[Counter[int], list[float]]:
    """So many clients, each asking again at once; statuses, and the seconds of those that were answered."""
    statuses: Counter[int] = Counter()
    took_s: list[float] = []
    data = {stream: request(max_tokens=tokens, stream=stream) for stream in (True, False)}

    async def client(number: int, end_s: float) -> None:
        while time.monotonic() < end_s:
            status, seconds_, got = await ask(server.port, data[number % 2 == 0])
            statuses[status] += 1
            if status == 200:
                took_s.append(seconds_)
                assert got.endswith(b"[DONE]\n\n\r\n0\r\n\r\n") if number % 2 == 0 else b'"finish_reason":"length"' in got
            else:
                assert b"retry-after" in got.lower()
                await asyncio.sleep(
                    0.25
                )  # far less than it was told; not at all would measure the client, which shares our process

    async def all_of_them() -> None:
        end_s = time.monotonic() + seconds
        await asyncio.gather(*(client(number, end_s) for number in range(clients)))

    asyncio.run(all_of_them())
    return statuses, took_s


def test_four_times_as_many_as_there_is_room_for(start):
    server = start(settings=Settings(parallel=2, waiting=6, patience_s=5.0))
    statuses, _ = press(server, clients=32, seconds=1.5, tokens=3)
    assert set(statuses) == {200, 429} and statuses[200] > 4, statuses
    wait_until(server.idle)
    assert server.engine.most_active == 2
    numbers = server.http.get("/metrics").text
    assert f'endpoint="/v1/completions",status="200"}} {statuses[200]}' in numbers and "modelwright_slots_busy 0" in numbers


@pytest.mark.slow
def test_a_minute_at_four_times_capacity(start):
    patience_s, idle = 0.5, os.getloadavg()[0] < 1
    server = start(settings=Settings(parallel=4, waiting=4, patience_s=patience_s))
    _, alone_s = press(server, clients=4, seconds=5, tokens=10)  # all slots busy, nobody waits
    press(server, clients=32, seconds=5, tokens=10)
    before_bytes = memory_bytes()
    statuses, took_s = press(server, clients=32, seconds=60, tokens=10)
    assert set(statuses) == {200, 429}, statuses
    if idle:  # else it would measure what keeps the machine busy; `test_waits_are_bounded` proves the same without a clock
        assert quantiles(took_s, n=100)[98] <= 1.5 * median(alone_s) + patience_s
    wait_until(server.idle)
    assert memory_bytes() - before_bytes < 8e6


@pytest.mark.parametrize("clients", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_hang_up_leave_no_slot_busy(start, clients):
    server = start(settings=Settings(parallel=8, waiting=clients))
    data = request(max_tokens=900, stream=True)

    async def visit(turn: asyncio.Semaphore, number: int) -> None:
        async with turn:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            if number % 3:  # a third of them before anything came
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.transport.abort() if number % 2 else writer.close()

    async def all_of_them() -> None:
        turn = asyncio.Semaphore(50)
        await asyncio.gather(*(visit(turn, number) for number in range(clients)))

    asyncio.run(all_of_them())
    wait_until(server.idle, 10)
    assert server.queue.answering == server.queue.waiting == 0
    assert server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 200


class Flood(FakeStream):
    """Much text, until it is cancelled."""

    def _pieces(self):
        if "FLOOD" not in self.engine.asked(self.request.tokens):
            yield from super()._pieces()
            return
        while not self.cancelled.wait(0.0001):
            yield Delta("x" * 4000, (120,), (-1.0,))
        yield Delta("", finish="cancelled")


class FloodEngine(FakeEngine):
    context = 10**9

    def submit(self, asked):
        return Flood(self, asked)


def test_a_client_that_does_not_read_holds_nobody_up(start, monkeypatch):
    monkeypatch.setattr(queue, "MOST_PIECES", 50)
    server = start(engine=FloodEngine(), settings=Settings(parallel=2))
    before_bytes = memory_bytes()
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(request(prompt="FLOOD", stream=True, max_tokens=10**8))
        wait_until(lambda: server.queue.answering == 1)
        assert server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 200
        wait_until(lambda: server.queue.answering == 0)  # its answer is given up, and its slot free
        assert memory_bytes() - before_bytes < 60e6
        got = b""
        while part := link.recv(1 << 20):  # now it reads: what there is, and why there is no more
            got = (got + part)[-2000:]
        assert b"slow_reader" in got
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(request(prompt="FLOOD", stream=True, max_tokens=10**8))
        server.server._stall_s = 0.2
        wait_until(lambda: server.queue.answering == 1)
        wait_until(lambda: server.queue.busy == 0 and len(server.server.server_state.connections) <= 1)  # ours for `http`
        got = b""
        while part := link.recv(1 << 20):
            got = (got + part)[-2000:]
        assert not got.endswith(b"0\r\n\r\n")  # cut, not ended


def test_a_client_that_does_not_say_what_it_wants_is_hung_up_on(start):
    """In the middle of a request's head, before the first one and after another."""
    server = start()
    server.server._stall_s = 0.5
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    links = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(4)]
    for link, said in zip(links, (b"", whole[:20], whole + whole[:20], request(prompt="SLOW", max_tokens=200)), strict=True):
        link.sendall(said)
    began_s = time.monotonic()
    assert links[0].recv(1000) == links[1].recv(1000) == b""
    assert links[2].recv(1000).startswith(b"HTTP/1.1 200") and links[2].recv(1000) == b""
    assert time.monotonic() - began_s > 0.4
    assert links[3].recv(1000).startswith(b"HTTP/1.1 200"), "one that waits for its answer is none of them"
    assert server.http.get("/health").status_code == 200
    for link in links:
        link.close()


def test_sigterm_loses_no_admitted_request(process):
    child, url = process("--parallel", "2", "--queue", "20")
    port, answers = int(url.rpartition(":")[2]), []
    data = [request(max_tokens=20, stream=stream) for stream in (True, False)]

    def visit(number: int) -> None:
        answers.append(asyncio.run(ask(port, data[number % 2])))

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(12)]
    for visitor in visitors:
        visitor.start()

    def admitted() -> int:
        state = httpx.get(f"{url}/ready").json()
        return state["answering"] + state["waiting"] + len(answers)

    wait_until(lambda: admitted() == 12)
    child.send_signal(signal.SIGTERM)
    for visitor in visitors:
        visitor.join(20)
    assert [status for status, _, _ in answers] == [200] * 12
    assert all(b"length" in got for _, _, got in answers)
    assert child.wait(10) == 0 and child.stderr.read() == "stopped\n"


def test_a_killed_engine_is_told_and_started_again(caplog):
    allow_code(LIGHT)
    engine = open_with(ENGINES.load(str(LIGHT))(), Path(), supervised=True)
    engine.active = 0  # as `Running.idle` asks
    server = Running(engine, Settings(parallel=2), Rules())
    try:
        heard = []
        visitor = threading.Thread(target=lambda: heard.append(asyncio.run(ask(server.port, request(max_tokens=1500)))))
        visitor.start()
        wait_until(lambda: server.queue.answering == 1 and engine._life is not None)
        time.sleep(0.1)
        os.kill(engine.process, signal.SIGKILL)
        visitor.join(10)
        status, _, got = heard[0]
        assert status == 503 and b"engine_died" in got and b"SIGKILL" in got
        again = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert again.status_code == 200 and engine.restarts == 1 and "started again" in caplog.text
        wait_until(server.idle)
    finally:
        server.stop()
        engine.close()
