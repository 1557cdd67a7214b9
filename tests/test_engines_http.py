"""Engines that ask a server: what is sent, repeated and kept, and errors in words. The server is a fake on loopback."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelwright.cli import chat as command
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import write_records
from modelwright.core.stage import STAGES
from modelwright.methods.decoders import DECODERS
from modelwright.methods.engines import ENGINES, Constraint, Request, Sampling, Speculate, Unavailable, open_engine, request_of
from modelwright.methods.engines import _http as http
from modelwright.methods.engines._cache import Cache
from modelwright.methods.engines._pace import Pace, delay_s
from modelwright.methods.engines._providers import PROVIDERS
from modelwright.methods.tasks import Generate, Likelihood
from modelwright.stages import _evaluate_ask as asking
from tests import engine_kit, train_kit
from tests.fake_engine import wait_until
from tests.remote_kit import USAGE, Fake
from tests.test_evaluate import make_run

CHAT = ({"role": "user", "content": "hello"},)
SHORT = Sampling(max_tokens=9)
KEY = "sk-secret-0123456789"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake().running() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits for a server's patience: what would have been waited is kept."""
    waited: list[float] = []
    monkeypatch.setattr(http.Call, "wait", lambda call, seconds: waited.append(seconds) if seconds else _live(call))
    return waited


def _live(call: Any) -> None:
    if call.cancelled:
        raise http.Cancelled


def spec(fake: Fake, kind: str = "openai", **fields: Any) -> Any:
    return ENGINES.load(kind)(**{"base_url": fake.url, "model": "tiny", **fields})


def chat(engine: Any, text: str = "hello", sampling: Sampling = SHORT, **more: Any) -> Request:
    return request_of(engine, [{"role": "user", "content": text}], sampling)._replace(**more)


def test_a_chat_is_sent_as_messages_and_counted(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    with open_engine(Path("tiny"), spec(fake, prompt_usd=1e6, answer_usd=2e6)) as engine:
        assert engine.capabilities == {"messages", "chat", "seed", "constrain"} and engine.context == 512
        done = engine.generate([chat(engine), chat(engine, "two", Sampling(max_tokens=1))])
        assert [answer.text for answer in done] == ["said hello and more", "said two"]
        assert [answer.finish for answer in done] == ["stop", "length"] and done[0].usage == (7, 3)
        pieces = list(engine.submit(chat(engine)))
        assert "".join(piece.text for piece in pieces) == "said hello and more" and len(pieces) == 4
        assert pieces[-1].finish == "stop" and pieces[-1].usage == (7, 3)
        text = engine.generate([request_of(engine, "once upon", SHORT)])[0]
        assert text.text == "said once upon and more"
        assert engine.usage[:5] == (4, 0, 28, 12, 28 + 24.0)
    first = next(row for row in fake.seen if row["body"].get("messages", [{}])[0].get("content") == "hello")
    assert first["body"] == {"model": "tiny", "max_tokens": 9, "temperature": 0.0, "messages": list(CHAT)}
    assert [row["path"] for row in fake.seen][-1] == "/v1/completions" and fake.seen[-1]["body"]["prompt"] == "once upon"
    assert "4 requests, 28 tokens of prompts and 12 of answers, 52.0000 dollars" in caplog.text


def test_every_setting_is_sent_or_refused_by_name(fake: Fake) -> None:
    asked = Sampling(5, 0.7, 0.9, 40, ("x",), 3, min_p=0.1, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.25)
    with open_engine(Path("tiny"), spec(fake, "lmstudio")) as engine, pytest.raises(UserError, match="does not take `min_p`"):
        engine.submit(chat(engine, sampling=asked))
    with open_engine(Path("tiny"), spec(fake, "lmstudio")) as engine:
        engine.generate([chat(engine, sampling=asked._replace(min_p=0.0))])
    body = {k: v for k, v in fake.seen[-1]["body"].items() if k not in ("messages", "model")}
    assert body == {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "stop": ["x"], "seed": 3,
                    "repeat_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.25}  # fmt: skip
    for refused in (Sampling(typical_p=0.5), Sampling(eta=0.1), Sampling(logit_bias=((3, 1.0),)), Sampling(top_k=2)):
        with open_engine(Path("tiny"), spec(fake)) as engine, pytest.raises(UserError, match="does not take"):
            engine.submit(chat(engine, sampling=refused))


def test_what_it_cannot_do_is_refused_by_name(fake: Fake) -> None:
    with open_engine(Path("tiny"), spec(fake)) as engine:
        for wrong, says in (
            (Request([1, 2], SHORT), "messages or with a text"),
            (chat(engine, adapter="blue"), "takes no adapters"),
            (chat(engine, speculate=Speculate("lookup")), "no way to guess ahead"),
            (chat(engine, constraint=Constraint("regex", "a+")), "cannot hold an answer to a regex"),
            (chat(engine, sampling=Sampling(max_tokens=0)), "max_tokens is 0"),
        ):
            with pytest.raises(UserError, match=says):
                engine.submit(wrong)
        for call in (lambda: engine.score([[1]]), lambda: engine.encode("a"), lambda: engine.render(CHAT)):
            with pytest.raises(UserError):
                call()
        schema = {"type": "object"}
        engine.generate([chat(engine, constraint=Constraint("json_schema", json.dumps(schema)))])
    sent = fake.seen[-1]["body"]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == schema and sent["json_schema"]["strict"]
    assert "score" in ENGINES.load("openai").lacks  # type: ignore[attr-defined]


def test_logprobs_come_with_numbers_that_decode_knows(fake: Fake) -> None:
    with open_engine(Path("tiny"), spec(fake, logprobs=True)) as engine:
        assert "logprobs" in engine.capabilities
        done = engine.generate([chat(engine, sampling=Sampling(9, top_logprobs=1))])[0]
        assert done.logprobs == (-0.5,) * 3 and engine.decode(done.tokens) == done.text
        assert engine.decode([done.top[0][0][0]]) == "no" and done.top[0][0][1] == -2.0
        pieces = list(engine.submit(chat(engine)))
        assert tuple(token for piece in pieces for token in piece.tokens) == done.tokens
    with pytest.raises(UserError, match="no log-probabilities"):
        ENGINES.load("openai")(base_url=fake.url, provider="anthropic", logprobs=True).open(Path())  # type: ignore


# --- keys and addresses ---------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.key = KEY
    asked = spec(fake, key_env="MY_KEY", cache=str(tmp_path / "kept"))
    with pytest.raises(UserError, match="MY_KEY is not set"):
        asked.open(Path())
    monkeypatch.setenv("MY_KEY", "wrong-" + KEY)
    with pytest.raises(UserError, match="does not accept the key") as caught, open_engine(Path("tiny"), asked) as engine:
        engine.generate([chat(engine)])
    assert KEY not in str(caught.value) and "MY_KEY" in str(caught.value)
    monkeypatch.setenv("MY_KEY", KEY)
    with caplog.at_level(logging.DEBUG), open_engine(Path("tiny"), asked) as engine:
        engine.generate([chat(engine)])
    written = "".join(path.read_text() for path in (tmp_path / "kept").iterdir()) + asked.model_dump_json() + caplog.text
    assert KEY not in written and "said hello" in written


def test_a_known_key_goes_to_its_owner_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match="is openai's and is not sent to 127"):
        spec(fake, key_env="OPENAI_API_KEY").open(Path())
    with open_engine(Path("tiny"), spec(fake, provider="openai")) as engine:  # the ways of one, at an address of our own: no key
        engine.generate([chat(engine)])
    assert "authorization" not in {name.lower() for name in fake.seen[-1]["headers"]}
    assert fake.seen[-1]["body"]["max_completion_tokens"] == 9
    with pytest.raises(ValueError, match="a password has no place"):
        spec(fake, base_url="http://me:pass@127.0.0.1/v1")
    with pytest.raises(UserError, match="no address to ask"):
        ENGINES.load("openai")().open(Path())  # type: ignore[attr-defined]


def test_providers_are_data_with_https() -> None:
    kinds = ENGINES.load("openai").model_fields["provider"].annotation.__args__  # type: ignore[union-attr]
    assert set(kinds) == {*PROVIDERS, "other"}
    for provider in PROVIDERS.values():
        assert provider.url.startswith("https://") and provider.key and {"max_tokens", "temperature"} <= set(provider.takes)


def test_which_model(fake: Fake) -> None:
    assert spec(fake, "ollama", model="").open(Path()).model == "tiny"
    fake.models = [{"id": "llama3:latest"}, {"id": "qwen3:4b"}]
    assert spec(fake, "ollama", model="llama3").open(Path()).model == "llama3:latest"
    for model, says in (("qwen3:4", "did you mean 'qwen3:4b'"), ("", "it has: llama3:latest, qwen3:4b")):
        with pytest.raises(UserError, match=says):
            spec(fake, "ollama", model=model).open(Path())
    with open_engine(Path("tiny"), spec(fake, model="gone", context=99, parallel=1)) as engine:
        with pytest.raises(UserError, match="has no model 'gone'") as caught:
            engine.generate([chat(engine)])
        assert "llama3:latest" in str(caught.value)


def test_nobody_answers() -> None:
    with Fake().running() as fake:
        pass
    with pytest.raises(UserError, match="nobody answers at") as caught:
        spec(fake, "ollama").open(Path())
    assert "ollama serve" in str(caught.value)


# --- again and again ------------------------------------------------------------------------------------

BUSY = {"error": {"message": "slow down"}}


def test_what_may_pass_is_asked_again(fake: Fake, quick: list[float]) -> None:
    with open_engine(Path("tiny"), spec(fake)) as engine:
        fake.script = [(429, {"retry-after": "7"}, BUSY), (503, {}, BUSY), "drop", (425, {}, BUSY)]
        assert engine.generate([chat(engine)])[0].text == "said hello and more"
        assert len(fake.seen) == 5 and quick[0] == 7 and all(0 <= wait < 8 for wait in quick)
        fake.script = [(429, {"retry-after": "7"}, BUSY)]
        first, *_ = engine.submit(chat(engine))
        assert first.text == "said hello" and engine.usage.requests == 2, "what was refused is not counted"


@pytest.mark.parametrize(
    ("answer", "tries", "says"),
    [
        ((400, {}, {"error": {"message": "bad\nthing"}}), 1, "400: bad thing"),
        (
            (400, {}, {"error": {"message": "maximum context length is 5", "code": "context_length_exceeded"}}),
            1,
            "longer than the",
        ),
        ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), 1, "insufficient_quota"),
        ((429, {"retry-after": "3600"}, BUSY), 1, "takes no more for now"),
        ((429, {}, BUSY), 3, "takes no more for now"),
        ((401, {}, {"error": {"message": "who?"}}), 1, "does not accept the key"),
        ((500, {}, [{"error": {"message": "oops"}}]), 3, "oops"),
        ("drop", 3, "the connection to other broke"),
        ((200, {}, {"choices": []}), 1, "gave no answer"),
    ],
)
def test_what_does_not_pass_is_told(fake: Fake, answer: Any, tries: int, says: str) -> None:
    fake.script = [answer] * 9
    with open_engine(Path("tiny"), spec(fake, retries=2)) as engine, pytest.raises(UserError, match=says) as caught:
        engine.generate([chat(engine)])
    assert len(fake.seen) == tries
    assert isinstance(caught.value, Unavailable) is not says.startswith(("400", "longer")), "whose fault it is"


def test_silence_ends_in_words(fake: Fake) -> None:
    fake.script = ["slow"]
    with (
        open_engine(Path("tiny"), spec(fake, timeout_s=0.05)) as engine,
        pytest.raises(Unavailable, match="said nothing for"),
    ):
        engine.generate([chat(engine)])


def test_a_torn_stream_is_told_and_nothing_of_it_kept(fake: Fake, tmp_path: Path) -> None:
    fake.script = ["torn"]
    with open_engine(Path("tiny"), spec(fake, cache=str(tmp_path))) as engine:
        stream = iter(engine.submit(chat(engine)))
        assert next(stream).text == "said hello"
        with pytest.raises(Unavailable, match="broke"):
            list(stream)
        assert not list(tmp_path.iterdir()) and len(fake.seen) == 1


def test_cancel_closes_the_connection(fake: Fake) -> None:
    fake.script = ["endless"] * 3
    with open_engine(Path("tiny"), spec(fake)) as engine:
        stream = engine.submit(chat(engine))
        pieces = iter(stream)
        next(pieces)
        threading.Timer(0.05, stream.cancel).start()
        assert list(pieces)[-1].finish == "cancelled"
        wait_until(fake.gone.is_set)
        stream.cancel()
        early = engine.submit(chat(engine))
        early.cancel()
        assert [piece.finish for piece in early] == ["cancelled"]
        fake.gone.clear()
        for _ in engine.submit(chat(engine)):
            break  # leaving the loop cancels
        wait_until(fake.gone.is_set)
        left = iter(engine.submit(chat(engine)))
        next(left)
    assert list(left)[-1].finish == "cancelled", "close ends what is under way"
    assert engine.usage.uncounted == engine.usage.requests == 3, "what was begun is paid for"


def test_no_more_at_once_than_allowed(fake: Fake) -> None:
    fake.script = ["slow"] * 6
    with open_engine(Path("tiny"), spec(fake, parallel=2)) as engine:
        answers = engine.generate([chat(engine, str(n)) for n in range(6)])
    assert [answer.text for answer in answers] == [f"said {n} and more" for n in range(6)] and fake.most_active <= 2


def test_pace() -> None:
    now = [0.0]
    pace = Pace(60, 1000, lambda: now[0])
    assert [pace.wait_s(10) for _ in range(60)] == [0.0] * 60
    assert pace.wait_s(10) == pytest.approx(1.0), "the sixty-first waits its second"
    now[0] = 60.0
    assert pace.wait_s(900) == 0.0 and pace.wait_s(500) == pytest.approx(400 / 1000 * 60)
    pace.settle(500, 100)
    assert pace.wait_s(0) == 0.0, "an answer that was shorter gives back"
    assert Pace(0, 0).wait_s(10**9) == 0.0 and Pace(0, 10, lambda: 0.0).wait_s(10**6) == 0.0
    assert delay_s(0, {"retry-after": "2.5"}) == 2.5 and 0 <= delay_s(0, {}) <= 0.5 and delay_s(99, {}) <= 60
    assert delay_s(0, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0 and delay_s(0, {"retry-after": "soon"}) <= 0.5


def test_images_are_sent_to_models_that_look_at_them(fake: Fake) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    asked = Request((), Sampling(9), messages=({"role": "user", "content": parts},))
    with open_engine(Path("tiny"), spec(fake, images=True)) as engine:
        assert "images" in engine.capabilities and engine.generate([asked])
    assert fake.seen[-1]["body"]["messages"][0]["content"] == parts
    with open_engine(Path("tiny"), spec(fake)) as engine, pytest.raises(UserError, match="images: true"):
        engine.generate([asked])


def test_half_characters_keep_their_bytes(fake: Fake, tmp_path: Path) -> None:
    entries = [{"token": "\ufffd", "bytes": [byte], "logprob": -0.5, "top_logprobs": []} for byte in "日".encode()]
    choice = {"message": {"content": "日"}, "finish_reason": "stop", "logprobs": {"content": entries}}
    fake.script = [(200, {}, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 3}})]
    for _ in range(2):  # from the disk, too
        with open_engine(Path("tiny"), spec(fake, cache=str(tmp_path), logprobs=True)) as engine:
            tokens = engine.generate([chat(engine)])[0].tokens
            assert len(set(tokens)) == 3 and engine.spell(tokens) == [bytes([byte]) for byte in "日".encode()]
            assert engine.decode(tokens) == "日"
    assert len(fake.seen) == 1


# --- what is kept ---------------------------------------------------------------------------------------


def test_the_same_question_is_paid_once(fake: Fake, tmp_path: Path) -> None:
    cached = spec(fake, cache=str(tmp_path), logprobs=True)
    for paid in (1, 0):
        with open_engine(Path("tiny"), cached) as engine:
            whole = engine.generate([chat(engine)])[0]
            pieces = list(engine.submit(chat(engine)))
            assert "".join(piece.text for piece in pieces) == whole.text and pieces[-1].finish == whole.finish == "stop"
            assert engine.decode([token for piece in pieces for token in piece.tokens]) == whole.text
            assert engine.usage.requests == paid and engine.usage.cached == 2 - paid
    with open_engine(Path("tiny"), spec(fake, "openai", cache=str(tmp_path), provider="groq")) as engine:
        engine.generate([chat(engine), chat(engine, sampling=Sampling(8))])
        assert engine.usage.cached == 0, "other requests"
    for path in tmp_path.iterdir():
        path.write_text("{")
    with open_engine(Path("tiny"), cached) as engine:
        assert engine.generate([chat(engine)])[0].text == whole.text and engine.usage.requests == 1, "a torn file is none"


def test_what_may_come_out_otherwise_is_not_kept(fake: Fake, tmp_path: Path) -> None:
    drawn = Sampling(9, temperature=1.0)
    with open_engine(Path("tiny"), spec(fake, cache=str(tmp_path), provider="google")) as engine:
        engine.generate([chat(engine, sampling=drawn)])
        assert not list(tmp_path.iterdir()), "no seed there"
    with open_engine(Path("tiny"), spec(fake, cache=str(tmp_path))) as engine:
        engine.generate([chat(engine, sampling=drawn)])
        assert len(list(tmp_path.iterdir())) == 1, "a seed"


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    for n in range(30):
        cache.put(["q", n], "x" * 98)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) <= 1000 and len(sizes) >= 5 and cache.get(["q", 29]) == "x" * 98 and cache.get(["q", 0]) is None
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]
    assert USAGE["total_tokens"] == 10


# --- those who ask --------------------------------------------------------------------------------------


def test_the_terminal_talks_to_a_server(fake: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main([f"{fake.url}#tiny", "--once", "hi", "--system", "be"]) == 0
    assert capsys.readouterr().out == "said hi and more\n"
    assert [message["role"] for message in fake.seen[-1]["body"]["messages"]] == ["system", "user"]
    card = tmp_path / "judge.json"
    card.write_text(json.dumps({"kind": "ollama", "base_url": fake.url}))
    assert command.main([str(card), "--once", "two"]) == 0 and capsys.readouterr().out == "said two and more\n"
    for wrong, says in ((["openai:m"], "OPENAI_API_KEY"), ([str(card), "--engine", "native"], "cannot open judge"),
                        ([str(card), "--engine", "natve"], "Did you mean")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            command.main([*wrong, "--once", "x"])


def test_an_evaluation_asks_a_server(fake: Fake) -> None:
    asks = {"a": Generate(tuple(CHAT)), "b": Generate(text="once upon", max_tokens=2)}
    counts: Counter[str] = Counter()
    with open_engine(Path("tiny"), spec(fake)) as engine:
        greedy: Any = DECODERS.load("greedy")()
        found = dict(asking.answers(engine, asks, greedy, 8, Log(None), "it", counts))
        assert found["a"].text == "said hello and more" and found["b"].text == "said once upon and"
        assert counts["prompt_tokens"] == 14 and counts["answer_tokens"] == 6 == found["a"].tokens + found["b"].tokens
        with pytest.raises(UserError, match="gives no probabilities"):
            list(asking.answers(engine, {"c": Likelihood("a text")}, greedy, 8, Log(None), "it", counts))


def test_what_an_engine_never_does_is_told_before_anything_runs(tmp_path: Path) -> None:
    fields = {"engine": {"kind": "openai", "provider": "groq", "model": "m"}, "tasks": ["perplexity", "exact_match"]}
    stage = STAGES.load("evaluate").model_validate({"kind": "evaluate", "model": "new", "data": "pairs:test", **fields})
    run, _ = make_run(tmp_path, stage)
    (check,) = [check for check in stage.checks(run) if not check.ok]  # type: ignore[attr-defined]
    assert "perplexity" in check.name and "engine: native" in check.fix


def test_a_plan_knows_the_engine_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads no torch here, and its prices are those of the work."""
    from modelwright import api

    monkeypatch.chdir(tmp_path)
    engine_kit.folder(tmp_path / "own")
    write_records(tmp_path / "chats.jsonl", train_kit.chats(40))
    served = {"kind": "openai", "provider": "groq", "model": "m"}
    (tmp_path / "paid.json").write_text(json.dumps(served | {"prompt_usd": 1000.0, "answer_usd": 2000.0}))
    (tmp_path / "free.json").write_text(json.dumps(served | {"provider": "other", "base_url": "http://127.0.0.1:1/v1"}))

    def planned(model: str, more: str = "") -> Any:
        data = "data: ./chats.jsonl, tasks: [rouge]"
        (tmp_path / "r.yaml").write_text(f"name: p\nstages:\n  it: {{kind: evaluate, model: {model}, {data}{more}}}\n")
        (row,) = api.load(tmp_path / "r.yaml").plan().rows
        return row

    own, paid, free = (planned(model) for model in ("./own/", "./paid.json", "./free.json"))
    named = planned("./paid.json", ", engine: {kind: openai, provider: groq, model: m, prompt_usd: 1000, answer_usd: 2000}")
    assert own.usd == free.usd == 0 and paid.usd == named.usd > 0.1
    paid_bytes, own_bytes = (row.estimate.memory.value - row.estimate.left_bytes for row in (paid, own))
    assert paid_bytes < 0.2e9 < own_bytes
