"""Several models and adapters behind one server: opened once, closed for room, swapped under answers."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from modelwright.core.errors import UserError
from modelwright.serve.app import create_app
from modelwright.serve.errors import ApiError
from modelwright.serve.guard import Rules
from modelwright.serve.limits import Limits
from modelwright.serve.models import Models, Source
from tests.fake_engine import FakeEngine
from tests.test_serve import CHAT


class Shelf:
    """Models that count how often they are opened."""

    def __init__(self, sizes: dict[str, int], memory: int) -> None:
        self.engines: dict[str, list[FakeEngine]] = {name: [] for name in sizes}
        self.gate = threading.Event()
        self.gate.set()
        self.models = Models([Source(name, lambda name=name: self.open(name), size) for name, size in sizes.items()], memory)

    def open(self, name: str) -> FakeEngine:
        self.gate.wait(5)
        if name == "broken":
            raise UserError("the model is broken")
        self.engines[name].append(FakeEngine())
        return self.engines[name][-1]


def test_models_are_opened_once_and_the_one_idle_longest_makes_room():
    shelf = Shelf({"a": 4, "b": 4, "c": 4, "large": 8, "huge": 20, "broken": 1}, 10)

    async def use() -> None:
        models = shelf.models
        shelf.gate.clear()
        first = [asyncio.create_task(models.take("a")) for _ in range(3)]
        await asyncio.sleep(0.01)
        first[0].cancel()  # its client hung up; the others get the model
        shelf.gate.set()
        leases = [await task for task in first[1:]]
        assert len(shelf.engines["a"]) == 1
        (await models.take("b")).release()
        with pytest.raises(ApiError, match=r"'huge' takes 0.0 MiB; this server may use") as caught:
            await models.take("huge")
        assert caught.value.status == 400
        with pytest.raises(ApiError, match="try again later"):
            await models.take("large")
        assert not shelf.engines["b"][0].closed, "nothing is closed for a model that has no room even so"
        (await models.take("c")).release()
        assert shelf.engines["b"][0].closed and not shelf.engines["a"][0].closed, "a is in use"
        other = await models.take("c")
        with pytest.raises(ApiError, match="try again later") as caught:
            await models.take("b")
        assert caught.value.status == 503 and caught.value.retry_s
        for lease in leases:
            lease.release()
        (await models.take("b")).release()
        assert shelf.engines["a"][0].closed and len(shelf.engines["b"]) == 2
        other.release()
        with pytest.raises(ApiError, match="cannot be opened: the model is broken"):
            await models.take("broken")
        with pytest.raises(ApiError, match="no model 'd'"):
            await models.take("d")
        await models.close()
        assert all(engine.closed for engines in shelf.engines.values() for engine in engines)

    asyncio.run(use())


def test_what_models_are_found_to_take_counts(monkeypatch):
    """Caches grow, and a process has more in it than weights."""
    shelf = Shelf({"a": 2, "b": 2, "c": 2, "wide": 2, "free": 0}, 10)
    taken = {"a": 3, "b": 6, "c": 1, "wide": 30, "free": 30}

    def measured(engine: FakeEngine) -> int:
        return next(taken[name] for name, engines in shelf.engines.items() if engine in engines)

    monkeypatch.setattr("modelwright.serve.models.taken_bytes", measured)

    def open_now() -> set[str]:
        return {name for name, engines in shelf.engines.items() if any(not engine.closed for engine in engines)}

    async def use() -> None:
        for name, left in (("a", "a"), ("b", "a b"), ("c", "b c"), ("free", "b c free"), ("a", "c free a"), ("b", "free a b"),
                           ("wide", "free b wide"), ("c", "free c"), ("wide", "free wide"), ("a", "free a")):  # fmt: skip
            (await shelf.models.take(name)).release()
            assert open_now() == set(left.split()), name
        wide = await shelf.models.take("wide")
        with pytest.raises(ApiError, match="try again later"):
            await shelf.models.take("a")
        wide.release()
        (await shelf.models.take("a")).release()

    asyncio.run(use())


def test_an_adapter_is_swapped_under_answers(tmp_path):
    shelf = Shelf({"a": 0, "b": 0}, 0)

    async def use() -> None:
        models = shelf.models
        models.add("poet", "a", tmp_path)
        for bad in (("a", "a"), ("x:y", "a"), ("z", "nothing"), ("poet", "a"), ("poet", "b")):
            with pytest.raises(UserError):
                models.add(*bad, tmp_path)
        lease = await models.take("poet")
        same = await models.take("a:poet")
        assert same.adapter == lease.adapter == "poet#1" and (await models.take("a")).adapter == ""
        with pytest.raises(ApiError, match="no model 'b:poet'"):
            await models.take("b:poet")
        with pytest.raises(UserError, match="no adapter at"):
            await models.swap("poet", "a", tmp_path / "missing")
        assert (await models.take("poet")).adapter == "poet#1", "a failed swap changes nothing"
        await models.swap("poet", "a", tmp_path)
        engine = shelf.engines["a"][0]
        new = await models.take("poet")
        assert new.adapter != lease.adapter and lease.adapter in engine.adapters, "answers under way keep theirs"
        models.drop("poet")
        with pytest.raises(ApiError, match="no model 'poet'"):
            await models.take("poet")
        assert new.adapter in engine.adapters
        new.release()
        await asyncio.sleep(0.05)
        assert new.adapter not in engine.adapters and lease.adapter in engine.adapters

    asyncio.run(use())


def test_models_and_adapters_over_http(tmp_path):
    shelf = Shelf({"a": 1, "b": 1}, 1)
    app = create_app(shelf.models, "a", admin=True)

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):

            async def said(model: str) -> str:
                answer = (await client.post("/v1/chat/completions", json=CHAT | {"model": model})).json()
                return answer["choices"][0]["message"]["content"]

            assert await said("a") == await said("b") == "you said: hello"
            assert shelf.engines["a"][0].closed
            load = {"lora_name": "poet", "lora_path": str(tmp_path), "base_model_name": "b"}
            assert (await client.post("/v1/load_lora_adapter", json=load)).json()["parent"] == "b"
            assert await said("poet") == "as poet#1: hello" == await said("b:poet")
            assert (await client.post("/v1/load_lora_adapter", json=load)).status_code == 400
            assert (await client.post("/v1/load_lora_adapter", json=load | {"load_inplace": True})).status_code == 200
            assert await said("poet") == "as poet#2: hello"
            del load["base_model_name"]
            again = await client.post("/v1/load_lora_adapter", json=load | {"load_inplace": True})
            assert again.json()["parent"] == "b" and await said("poet") == "as poet#3: hello", "it stays with its model"
            told = await client.post("/v1/load_lora_adapter", json=load | {"lora_name": "new"})
            assert told.status_code == 400 and told.json()["error"]["param"] == "base_model_name"
            listed = (await client.get("/v1/models")).json()["data"]
            assert [(model["id"], model["open"]) for model in listed] == [("a", False), ("b", True), ("poet", True)]
            assert await said("a") == "you said: hello" and await said("poet") == "as poet#3: hello"
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "poet"})).status_code == 200
            assert (await client.post("/v1/chat/completions", json=CHAT | {"model": "poet"})).status_code == 404

    asyncio.run(use())
    assert all(engine.closed for engines in shelf.engines.values() for engine in engines)


@pytest.mark.parametrize("ends", ["opened", "cut", "broken"])
def test_a_drain_waits_for_a_model_that_is_being_opened(ends):
    """Who asked before the signal is served, or told in words when the time to drain is over."""
    shelf = Shelf({"a": 0, "broken": 0}, 0)
    app = create_app(shelf.models, "a")
    queue = app.state.queue

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            shelf.gate.clear()
            ask = CHAT | {"model": "broken" if ends == "broken" else "a"}
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=ask)) for _ in range(2)]
            while queue.busy < 2:
                await asyncio.sleep(0.01)
            queue.draining = True
            assert (await client.post("/v1/chat/completions", json=ask)).json()["error"]["code"] == "shutting_down"
            if ends == "cut":
                queue.cancel()
            else:
                shelf.gate.set()
            answers = [await one for one in asked]
            codes = [answer.json().get("error", {}).get("code") for answer in answers]
            assert codes == [{"opened": None, "cut": "shutting_down", "broken": "model_unavailable"}[ends]] * 2
            assert queue.busy == 0
            shelf.gate.set()

    asyncio.run(use())


def test_a_key_of_some_models_sees_and_changes_no_others(tmp_path):
    shelf = Shelf({"a": 0, "b": 0}, 0)
    shelf.models.add("poet", "b", tmp_path)
    app = create_app(shelf.models, "a", rules=Rules(limits=Limits(models=("a",))), admin=True)

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["a"]
            for name, status in (("a", 200), ("b", 403), ("poet", 403), ("b:poet", 403), ("c", 404)):
                assert (await client.get(f"/v1/models/{name}")).status_code == status, name
                assert (await client.post("/v1/chat/completions", json=CHAT | {"model": name})).status_code == status, name
            for path, body in (("load", {"lora_name": "new", "lora_path": str(tmp_path), "base_model_name": "b"}),
                               ("unload", {"lora_name": "poet"})):  # fmt: skip
                told = await client.post(f"/v1/{path}_lora_adapter", json=body)
                assert (told.status_code, told.json()["error"]["code"]) == (403, "not_allowed")
            assert shelf.models.names == ["a", "b", "poet"] and not shelf.engines["b"]

    asyncio.run(use())
