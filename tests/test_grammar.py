"""Answers under constraints: random weights at any temperature write only what the schema, pattern, grammar or list allows."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.methods.engines import ENGINES, Constraint, Engine, Request, Sampling, Speculate, open_engine
from modelwright.methods.engines._grammar import Grammar, grammar_of, refusal, words_of_bytes, words_of_fast
from modelwright.methods.exporters import EXPORTERS
from tests import engine_kit as kit

OBJECT = {"type": "object", "additionalProperties": False}
pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("model"), num_hidden_layers=1, hidden_size=32, intermediate_size=32)


@pytest.fixture(scope="module")
def native(folder: Path) -> Iterator[Engine]:
    with open_engine(folder, ENGINES.load("native")(max_batch=16, threads=1, device="cpu")) as engine:
        yield engine


@pytest.fixture(scope="module")
def llamacpp(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("xllamacpp")
    out = tmp_path_factory.mktemp("gguf")
    EXPORTERS.load("gguf")(type="f32").write(folder, out, Log(None))
    with open_engine(out, ENGINES.load("llamacpp")(max_batch=8, threads=1)) as engine:
        yield engine


@pytest.fixture(params=["native", "llamacpp"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


def answers(engine: Engine, constraint: Constraint, count: int = 3, **more: Any) -> list[str]:
    """Complete answers, half of them at temperature 2; one that the context cut off is left out."""
    prompt = engine.encode("def first")
    asked = [Sampling(**{"max_tokens": 240, "temperature": 2.0 * (n % 2), "seed": n, **more}) for n in range(count)]
    found = engine.generate([Request(prompt, sampling, constraint) for sampling in asked])
    assert all(answer.finish in ("stop", "length") for answer in found)
    return [answer.text for answer in found if answer.finish == "stop"]


# --- JSON schemas -------------------------------------------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """Small ones whose texts are short."""
    kind = rng.choice(
        ["integer", "boolean", "null", "string", "enum", "const", *(["object", "array", "anyOf"] * 2 if depth else [])]
    )
    if kind == "integer":
        low = rng.randrange(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(200)}
    if kind == "string":
        return rng.choice([{"type": "string", "maxLength": rng.randrange(1, 6)}, {"type": "string", "pattern": "^[a-c]{2,4}x?$"}])
    if kind == "enum":
        return {"enum": rng.sample(["a", "ü😀", 'quo"te', 3, -1.5, True, None], 3)}
    if kind == "const":
        return {"const": rng.choice(["fixed", 7, [1, "b"], {"k": None}])}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 3}
    if kind == "object":
        names = rng.sample(["a", "bc", "d e", "é"], rng.randrange(1, 4))
        properties = {name: random_schema(rng, depth - 1) for name in names}
        return {**OBJECT, "properties": properties, "required": names[:2]}
    return {"type": kind}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """For the keywords of `random_schema`."""
    if "anyOf" in schema:
        return any(valid(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(value) is type(one) and value == one for one in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return type(value) is bool
        case "null":
            return value is None
        case "string":
            return (
                isinstance(value, str)
                and len(value) <= schema.get("maxLength", 99)
                and bool(re.search(schema.get("pattern", ""), value))
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= 3
                and all(valid(item, schema["items"]) for item in value)
            )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(schema["properties"])
        and all(valid(item, schema["properties"][name]) for name, item in value.items())
    )


def test_every_finished_answer_keeps_to_its_schema(engine: Engine) -> None:
    complete = 0
    for seed in range(12):
        schema = random_schema(random.Random(seed))
        for text in answers(engine, Constraint("json_schema", json.dumps(schema))):
            assert valid(json.loads(text), schema), (schema, text)
            complete += 1
    assert complete > 24


def test_blanks_in_json_are_held_short(native: Engine) -> None:
    """A bias of 100 for every token of blanks would go on for ever where any amount of them is allowed."""
    blanks = tuple((token, 100.0) for token in range(3, native.vocabulary) if not native.decode([token]).strip())
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2, "minItems": 2}
    texts = answers(native, Constraint("json_schema", json.dumps(schema)), logit_bias=blanks)
    assert len(texts) == 3 and all(len(json.loads(text)) == 2 and len(text) > 20 for text in texts)


# --- patterns, choices, grammars ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["[a-f]{3}-[0-9]{2}", "(yes|no) ?!{0,3}", "é日😀x{1,4}", "\\d{1,3}\\.\\d", "a?"])
def test_patterns(engine: Engine, pattern: str) -> None:
    texts = answers(engine, Constraint("regex", pattern))
    assert len(texts) == 3 and all(re.fullmatch(pattern, text) for text in texts), texts


def test_choices(engine: Engine) -> None:
    choices = ["yes", "yes, surely", 'a "quoted" \\ one\n', "日本 😀", "{x}|y", "\x7f\x01", "<|im_end|>", ""]
    texts = answers(engine, Constraint("choices", json.dumps(choices)), count=8, temperature=2.0)
    assert len(texts) == 8 and set(texts) <= set(choices) and len(set(texts)) > 1
    for choice in choices[:6]:
        assert answers(engine, Constraint("choices", json.dumps([choice]))) == [choice] * 3


def test_grammars(engine: Engine) -> None:
    nested = Constraint("grammar", 'start: "(" inner ")"\ninner: /[ab]{1,3}/ | start')
    texts = answers(engine, nested, count=6)
    assert texts and all(re.fullmatch(r"(\(+)[ab]{1,3}(\)+)", text) and text.count("(") == text.count(")") for text in texts)


def test_a_cut_answer_is_the_beginning_of_a_right_one(engine: Engine) -> None:
    schema = {**OBJECT, "properties": {"a": {"type": "string", "maxLength": 8}, "b": {"const": 12}}, "required": ["a", "b"]}
    request = Request(engine.encode("x"), Sampling(200, 1.5, seed=3), Constraint("json_schema", json.dumps(schema)))
    whole = engine.generate([request])[0]
    assert whole.finish == "stop" and set(json.loads(whole.text)) == {"a", "b"}
    for count in range(1, len(whole.tokens), 3):
        part = engine.generate([request._replace(sampling=request.sampling._replace(max_tokens=count))])[0]
        assert (
            part.finish == "length" and part.tokens == whole.tokens[:count] and whole.text.startswith(part.text.rstrip("\ufffd"))
        )


# --- with everything else -------------------------------------------------------------------------------------------------------


def test_constraints_hold_under_other_rules(engine: Engine) -> None:
    letters = [engine.encode(letter)[0] for letter in "ab"]
    constraint = Constraint("regex", "[abc]{6}")
    more = {"repetition_penalty": 3.0, "min_p": 0.2, "typical_p": 0.5, "top_k": 1, "frequency_penalty": 1.0}
    assert all(re.fullmatch("[abc]{6}", text) for text in answers(engine, constraint, **more))
    banned = answers(engine, constraint, logit_bias=tuple((letter, -100.0) for letter in letters), temperature=0.0)
    assert banned == ["cccccc"] * 3


def test_others_in_the_batch_are_not_touched(engine: Engine) -> None:
    prompt, constraint = engine.encode("def"), Constraint("regex", "[xyz]{9}")
    free = [Request(prompt, Sampling(9, 1.0, seed=n)) for n in range(3)]
    held = [request._replace(constraint=constraint) for request in free]
    alone = engine.generate(free)
    together = engine.generate([request for pair in zip(free, held, strict=True) for request in pair])
    assert [one.tokens for one in together[::2]] == [one.tokens for one in alone]
    assert all(re.fullmatch("[xyz]{0,9}", one.text) for one in together[1::2])
    streamed = "".join(piece.text for piece in engine.submit(held[0]._replace(sampling=Sampling(50))))
    assert re.fullmatch("[xyz]{9}", streamed)


def test_constraints_hold_where_tokens_are_proposed(native: Engine) -> None:
    """Of several tokens verified in one pass, each is asked of the rule in its turn."""
    constraint = Constraint("regex", "(ab){2,5}[0-9]{1,3}!")
    for sampling in (Sampling(40), Sampling(40, 2.0, seed=1), Sampling(40, 1.0, seed=2, min_p=0.01, presence_penalty=0.5)):
        plain = Request(native.encode("ababab12!ababab12!"), sampling, constraint)
        one, other = native.generate([plain, plain._replace(speculate=Speculate("lookup"))])
        assert other.finish == "stop" and re.fullmatch(constraint.text, other.text) and other.proposed
        if sampling.temperature == 0:
            assert one.tokens == other.tokens


def test_log_probabilities_are_the_models_own(engine: Engine) -> None:
    prompt = engine.encode("def")
    answer = engine.generate([Request(prompt, Sampling(8, 1.0, min_p=0.1), Constraint("regex", "[0-9]{5}"))])[0]
    scored = engine.score([[*prompt, *answer.tokens]])[0][len(prompt) - 1 :]
    assert list(answer.logprobs) == pytest.approx(scored, abs=1e-2)


def test_a_copy_goes_its_own_way(native: Engine) -> None:
    words = words_of_fast(kit.tokenizer(), [2])
    one = grammar_of(Constraint("choices", '["ab", "ba"]'), words)
    other = one.copy()
    a, b = (native.encode(letter)[0] for letter in "ab")

    def allowed(grammar: Grammar) -> set[int]:
        logits_V = np.zeros(400, dtype=np.float32)
        grammar.mask(logits_V)
        return set(np.flatnonzero(np.isfinite(logits_V)).tolist()) & {a, b, 2}

    one.accept(a)
    assert allowed(one) == {b} and allowed(other) == {a, b}
    one.accept(b)
    assert allowed(one) == {2} and 2 not in allowed(other.copy())
    longer_V = np.zeros(410, dtype=np.float32)
    one.mask(longer_V)
    assert np.isinf(longer_V[400:]).all(), "places of the head that no token has"


# --- what cannot be -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "what", "why"),
    [
        (Constraint("json_schema", '{"type": "strin"}'), "JSON schema", "strin"),
        (Constraint("json_schema", '{"uniqueItems": true, "type": "array"}'), "JSON schema", "uniqueItems"),
        (Constraint("json_schema", '{"type": '), "JSON schema", "EOF"),
        (Constraint("json_schema", '{"$ref": "http://localhost/x"}'), "JSON schema", "does not fetch"),
        (Constraint("regex", "(a"), "regular expression", "unclosed group"),
        (Constraint("regex", "(?=a)b"), "regular expression", "look-around"),
        (Constraint("grammar", "start: missing"), "grammar", "missing"),
        (Constraint("grammar", f"start: {'(' * 9_000}"), "grammar", "deeply nested"),
        (Constraint("json_schema", '{"not": ' * 9_000), "JSON schema", "recursion"),
        (Constraint("regex", "a" * 120_001), "regular expression", "120001 characters"),
        (Constraint("choices", "[" * 9_000), "list of choices", "recursion"),
        (Constraint("choices", "[]"), "list of choices", "one at least"),
        (Constraint("choices", "no list"), "list of choices", "Expecting value"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_followed_is_refused(native: Engine, constraint: Constraint, what: str, why: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        native.submit(Request([5], constraint=constraint))
    assert why in error.value.why and len(str(error.value)) < 700


def test_an_adapter_that_nobody_loaded_is_refused(llamacpp: Engine) -> None:
    assert {"rules", "constrain", "adapters"} <= llamacpp.capabilities
    with pytest.raises(UserError, match="adapter 'mine'"):
        llamacpp.generate([Request([5], adapter="mine")])


def test_the_package_is_named_where_it_is_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with open_engine(folder, ENGINES.load("native")(threads=1, device="cpu")) as engine:
        with pytest.raises(UserError, match=r"pip install 'modelwright\[structured\]'"):
            engine.submit(Request([5], constraint=Constraint("regex", "a")))
        assert engine.generate([Request([5], Sampling(2))])[0].tokens


def test_tokenizers(folder: Path) -> None:
    """Tokens joined by `Metaspace` have bytes of their own; WordPiece's and a suffix's depend on their neighbours."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.Unigram())
    bare.pre_tokenizer, bare.decoder = (
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoders.Metaspace(prepend_scheme="never"),
    )
    bare.train_from_iterator(
        ["the cat sat on the mat"] * 4,
        trainers.UnigramTrainer(vocab_size=30, special_tokens=["</s>", "<unk>"], unk_token="<unk>"),
    )
    words = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", unk_token="<unk>")
    assert refusal(words) == "" and refusal(kit.tokenizer()) == ""
    grammar, rng, tokens = grammar_of(Constraint("regex", "( ?(cat|mat)){3}"), words_of_fast(words, [0])), random.Random(0), []
    while 0 not in tokens:
        logits_V = np.zeros(len(words), dtype=np.float32)
        grammar.mask(logits_V)
        tokens.append(rng.choice(np.flatnonzero(np.isfinite(logits_V)).tolist()))
        grammar.accept(tokens[-1])
    assert re.fullmatch("( ?(cat|mat)){3}", words.decode(tokens, skip_special_tokens=True))
    for decoder in (decoders.WordPiece(), decoders.BPEDecoder()):
        bare.decoder = decoder
        assert "depends on its neighbours" in refusal(PreTrainedTokenizerFast(tokenizer_object=bare))


def test_an_engine_whose_tokens_have_no_bytes_says_so(folder: Path, tmp_path: Path) -> None:
    import shutil

    copied = shutil.copytree(folder, tmp_path / "words")
    saved = json.loads((copied / "tokenizer.json").read_text())
    saved["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    (copied / "tokenizer.json").write_text(json.dumps(saved))
    with open_engine(copied, ENGINES.load("native")(threads=1, device="cpu")) as engine:
        assert "constrain" not in engine.capabilities
        with pytest.raises(UserError, match="cannot be held to a regex"):
            engine.submit(Request([5], constraint=Constraint("regex", "a")))


def test_a_dead_end_fails_one_answer_only(native: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that cannot spell the rest of what is allowed."""
    tokens = [b"", b"", b"<end>", *(bytes([byte]) for byte in range(97, 123))]
    poor = words_of_bytes(tokens, [2], [2], lambda text: [text.encode()[0] - 94])
    monkeypatch.setattr(native, "_table", poor)
    monkeypatch.setattr(native, "_grammars", {})
    stuck = native.submit(Request([5], Sampling(20), Constraint("regex", "ab[A-Z]")))
    fine = native.submit(Request([5], Sampling(20), Constraint("regex", "[ab]{4}")))
    with pytest.raises(UserError, match="cannot be held to its constraint any further"):
        list(stuck)
    assert list(fine)[-1].finish == "stop"
