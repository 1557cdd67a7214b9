"""Turns in the queue, the time that a request has, readers that stay away. Where something depends on time, it is simulated."""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
from collections import Counter
from statistics import median, quantiles

import pytest

from modelwright.methods.engines import Delta
from modelwright.serve import logs, queue
from modelwright.serve.errors import ApiError
from modelwright.serve.limits import Client, Limits
from modelwright.serve.logs import Record
from modelwright.serve.queue import Queue
from modelwright.serve.work import Piece


class Script:
    """Work whose pieces the test gives, as an engine that calls its reader."""

    prompt_tokens = 3

    def __init__(self, deaf: bool = False) -> None:
        self.take, self.cancelled, self._deaf = None, False, deaf

    def submit(self):
        return self

    def begin(self):
        """Work for a thread."""

    def __iter__(self):
        raise AssertionError("it is listened to")

    def listen(self, take) -> bool:
        self.take = take
        if self.cancelled:
            self.end()
        return True

    def cancel(self) -> None:
        if not self.cancelled and self.take is not None:
            self.end()
        self.cancelled = True

    def end(self) -> None:
        if not self._deaf:
            self.take(Piece(0, Delta("", finish="cancelled")))
            self.take(None)

    def say(self, text: str, finish: str | None = None) -> None:
        assert self.take is not None
        self.take(Piece(0, Delta(text, tuple(text.encode()), (), finish)))
        if finish:
            self.take(None)


async def settle() -> None:
    """Let threads of the pool and the loop do what they have."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def begun(room: Queue, work: Script) -> queue.Answer:
    await room.enter()
    answer = room.answer(work)
    while work.take is None:
        await asyncio.sleep(0.001)
    return answer


def as_client(client: Client, coroutine, **fields):
    """A task whose requests are this client's."""

    async def run():
        logs.begin(Record(client, **fields))
        return await coroutine

    return asyncio.create_task(run())


def in_loop(test):
    @functools.wraps(test)
    def run(*arguments, **options):
        asyncio.run(test(*arguments, **options))

    return run


@in_loop
async def test_keys_take_turns():
    room, order = Queue(1, 10), []
    holder = Script()
    await begun(room, holder)
    ann, bob = Client("ann"), Client("bob")

    async def visit(name: str) -> None:
        await room.enter()
        order.append(name)
        work = Script()
        answer = room.answer(work)
        while work.take is None:
            await asyncio.sleep(0.001)
        work.say("x", "stop")
        assert [piece.delta.text async for piece in answer] == ["x"]

    tasks = [as_client(ann, visit(f"ann{i}")) for i in range(4)]
    await settle()
    tasks += [as_client(bob, visit(f"bob{i}")) for i in range(2)]
    await settle()
    assert room.waiting == 6 and room.busy == 7
    holder.say("", "stop")
    await asyncio.gather(*tasks)
    assert order == ["ann0", "bob0", "ann1", "bob1", "ann2", "ann3"]
    assert room.busy == 0 and not ann.answering and not bob.answering
    room.close()


@in_loop
async def test_a_full_room_is_shared():
    room = Queue(1, 3)
    await begun(room, Script())
    ann, bob = Client("ann"), Client("bob")
    waits = [as_client(ann, room.enter()) for _ in range(3)]
    await settle()
    more = as_client(ann, room.enter())
    with pytest.raises(ApiError, match="3 waiting"):
        await more
    first = as_client(bob, room.enter())  # takes the place of ann's newest
    await settle()
    assert [task.done() for task in waits] == [False, False, True] and not first.done() and room.waiting == 3
    assert waits[2].exception().status == 429 and waits[2].exception().retry_s >= 1
    second = as_client(bob, room.enter())  # two and one: no key has two more than the other
    with pytest.raises(ApiError, match="3 waiting"):
        await second
    small = Queue(1, 2)
    await begun(small, Script())
    waits_here = [as_client(ann, small.enter()) for _ in range(2)]
    await settle()
    as_client(bob, small.enter())
    await settle()
    assert [task.done() for task in waits_here] == [False, True] and small.waiting == 2
    small.cancel()
    small.close()
    room.cancel()
    await settle()
    assert [task.exception().code for task in (*waits[:2], first)] == ["shutting_down"] * 3 and room.waiting == 0
    room.close()


@in_loop
async def test_a_key_has_so_many_answers_at_once():
    room = Queue(2, 5)
    ann, bob = Client("ann", Limits(concurrent=1)), Client("bob")
    one, two, three = Script(), Script(), Script()
    await as_client(ann, begun(room, one))
    second = as_client(ann, begun(room, two))
    await settle()
    assert not second.done() and room.waiting == 1 and room.answering == 1  # a slot is free, and not for ann
    await as_client(bob, begun(room, three))
    assert room.answering == 2
    one.say("", "stop")
    await second
    assert room.answering == 2 and room.waiting == 0
    room.close()


@in_loop
async def test_patience_and_deadlines():
    room = Queue(1, 5, patience_s=0.01)
    work = Script()
    await begun(room, work)
    with pytest.raises(ApiError) as caught:
        await room.enter()
    assert (caught.value.status, caught.value.code) == (429, "queue_timeout") and caught.value.retry_s >= 1
    patient = Queue(1, 5)
    await begun(patient, Script())
    with pytest.raises(ApiError) as caught:
        await as_client(Client(), patient.enter(), deadline_s=0.0)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert room.waiting == patient.waiting == 0
    work.say("", "stop")
    for deaf in (False, True):  # an engine that does not listen to `cancel` holds its slot, not its reader
        silent, talking = Script(deaf), Script(deaf)
        await settle()
        answer = await as_client(Client(), begun(room, silent), deadline_s=0.0)
        with pytest.raises(ApiError, match="before its answer began"):
            await anext(aiter(answer))
        await settle()
        assert silent.cancelled and room.answering == (1 if deaf else 0)
        if deaf:
            silent.say("late", "stop")
            await settle()
        answer = await as_client(Client(), begun(room, talking))
        talking.say("so far")
        await settle()
        answer._expire()
        pieces = [piece.delta async for piece in answer]
        assert "".join(piece.text for piece in pieces) == "so far" and pieces[-1].finish == "length"
        assert talking.cancelled
        if deaf:
            talking.say("late", "stop")
        await settle()
        assert room.answering == 0
    room.close()
    patient.close()


class Simulated(asyncio.SelectorEventLoop):
    """Its clock goes to the next timer at once."""

    now_s = 0.0

    def __init__(self) -> None:
        selector = selectors.SelectSelector()
        look = selector.select

        def jump(timeout: float | None = None):
            self.now_s += max(0.0, timeout or 0.0)
            return look(0)

        selector.select = jump
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


class Inline:
    def submit(self, work) -> None:
        work()


@pytest.mark.parametrize("waiting", [4, 28])
def test_waits_are_bounded(waiting):
    """Four times as many clients as there is room for: those who are admitted are done in time."""
    rng, took_s, refused = random.Random(0), list[float](), Counter()
    patience_s, slots = 0.5, 4
    room = Queue(slots, waiting, patience_s)
    room._pool = Inline()
    loop = Simulated()

    async def visit(into: list[float]) -> None:
        began_s = loop.time()
        await room.enter()
        work = Script()
        answer = room.answer(work)
        loop.call_later(rng.uniform(0.08, 0.12), work.say, "x", "stop")
        assert [piece.delta.text async for piece in answer] == ["x"]
        into.append(loop.time() - began_s)

    async def client(into: list[float], end_s: float) -> None:
        while loop.time() < end_s:
            try:
                await visit(into)
            except ApiError as error:
                refused[error.code] += 1
                await asyncio.sleep(rng.uniform(0.1, 0.3))

    async def clients(count: int, seconds: float, into: list[float]) -> None:
        await asyncio.gather(*(as_client(Client(), client(into, loop.time() + seconds)) for _ in range(count)))

    alone_s: list[float] = []
    loop.run_until_complete(clients(slots, 5, alone_s))
    loop.run_until_complete(clients(4 * (slots + 4), 20, took_s))
    loop.close()
    assert len(took_s) > 20 * slots / 0.12 and room.busy == 0  # no slot was idle
    assert set(refused) == ({"queue_full"} if waiting == 4 else {"queue_timeout"})
    assert quantiles(took_s, n=100)[98] <= 1.5 * median(alone_s) + patience_s


@in_loop
async def test_pieces_that_wait_are_read_as_one():
    room, work = Queue(1, 1), Script()
    answer = await begun(room, work)
    for text in "abc":
        work.say(text)
    work.say("d", "stop")
    await settle()
    assert [piece.delta for piece in [piece async for piece in answer]] == [Delta("abcd", (97, 98, 99, 100), (), "stop")]
    assert room.busy == 0
    room.close()


@in_loop
async def test_a_reader_that_stays_away_loses_its_answer(monkeypatch):
    monkeypatch.setattr(queue, "MOST_PIECES", 5)
    room, work = Queue(1, 1), Script()
    answer = await begun(room, work)
    pieces = aiter(answer)
    work.say("a")
    assert (await anext(pieces)).delta.text == "a"
    for text in "bcdefg":  # the reader sends, and is held up
        work.say(text)
    await settle()
    assert work.cancelled and room.answering == 0
    assert (await anext(pieces)).delta.text == "bcdefg"
    with pytest.raises(ApiError) as caught:
        await anext(pieces)
    assert caught.value.code == "slow_reader"
    work = Script()
    answer = await begun(room, work)
    for _ in range(20):  # one that has not begun to read is not slow
        work.say("x")
    work.say("", "stop")
    await settle()
    assert "".join([piece.delta.text async for piece in answer]) == "x" * 20
    room.close()


@in_loop
async def test_one_that_gives_up_when_its_turn_comes_gives_the_slot_back():
    room, work = Queue(1, 5), Script()
    await begun(room, work)
    waits = asyncio.create_task(room.enter())
    await settle()
    assert room.waiting == 1
    room._leave(Client())  # the slot is its own now, and before it knows it is cancelled
    waits.cancel()
    await settle()
    assert waits.cancelled() and room.answering == 0 and room.waiting == 0
    room.close()


@in_loop
async def test_what_needs_no_thread_gets_none():
    class Quick(Script):
        begin = Script.submit

    room = Queue(1, 1)
    room._pool.submit = None
    for cancelled in (False, True):
        work = Quick()
        await room.enter()
        answer = room.answer(work)
        if cancelled:
            answer.cancel()
            assert [piece.delta.finish async for piece in answer] == ["cancelled"]
        else:
            work.say("a")
            work.say("b", "stop")
            assert [piece.delta.text async for piece in answer] == ["ab"]
        assert room.busy == 0
    room.close()


@in_loop
async def test_faults_of_an_engine_reach_the_reader():
    class Broken(Script):
        def submit(self):
            raise RuntimeError("no")

    class BrokenAtOnce(Script):
        begin = Broken.submit

    room = Queue(1, 1)
    for broken in (Broken, BrokenAtOnce):
        await room.enter()
        with pytest.raises(RuntimeError, match="no"):
            await anext(aiter(room.answer(broken())))
    work = Script()
    answer = await begun(room, work)
    work.say("a")
    work.take(RuntimeError("died"))
    with pytest.raises(RuntimeError, match="died"):
        [piece async for piece in answer]
    work = Script()
    answer = await begun(room, work)
    work.take(None)
    assert [piece async for piece in answer] == []
    assert room.busy == 0
    room.close()
