"""Vocabulary extension: every new token is reached, old text stays as it was, first weights are what was asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.record import Record
from modelwright.core.stage import STAGES, Input
from modelwright.methods.tokenizers import TOKENIZERS, fast_encoding
from modelwright.nn import extend, heads
from modelwright.nn import model as models
from modelwright.stages._extend_tokens import Added, Wanted, extended
from modelwright.stages.extend import LIST
from tests import engine_kit
from tests import train_kit as kit

NEW = [" photosynthesis", " chlorophyll", "photo", " blattgrün"]
TEXT = "the cat sat on the mat. photosynthesis needs chlorophyll; photographs of blattgrün\n"
LETTERS = "abcdefghijklmnopqrstuvwxyzäü"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_kit.folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tokenizer(tmp_path_factory.mktemp("words"))


def of(tree: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(tree))


def trained(kind: str, **fields: Any) -> Any:
    method: Any = TOKENIZERS.load(kind).model_validate({"kind": kind, "size": 340, **fields})
    texts = [kit.sentence(random.Random(seed), 60) for seed in range(8)]
    return method.train(iter([*texts, f"{LETTERS} {' '.join(LETTERS)} " * 9]), ("<|end|>", *method.roles().values()))


def spelt(ids: list[int], added: list[Added]) -> list[int]:
    """With new tokens written as the old ones that they are made of."""
    pieces = {token.id: token.pieces for token in added}
    return [piece for token in ids for piece in pieces.get(token, [token])]


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


# --- the vocabulary -----------------------------------------------------------------------------------------


def test_every_new_byte_level_token_is_reached_and_old_text_is_cut_as_before(words: Path) -> None:
    before = engine_kit.tokenizer().backend_tokenizer
    donor = json.loads(models.load_tokenizer(words).backend_tokenizer.to_str())
    found = extended(before, Wanted((*NEW, " anan", " anananan"), ("<|tool|>",), donor, None))
    after = of(found.tree)
    assert [token.id for token in found.added] == list(range(400, found.size))
    for text, piece in zip(NEW, ("Ġphotosynthesis", "Ġchlorophyll", "photo", "ĠblattgrÃ¼n"), strict=True):
        assert after.encode(text).tokens == [piece]
    assert after.encode("a<|tool|>b").tokens == ["a", "<|tool|>", "b"]
    for token in found.added:
        if token.origin != "special":
            assert [item.id for item in after.model.tokenize(token.token)] == [token.id]
            assert spelt([token.id], found.added) == [item.id for item in before.model.tokenize(token.token)] == token.pieces
    draw = random.Random(0)
    vocabulary = [*NEW, *kit.WORDS, " the", "ananan", "été ", "1984", "\n\n", " river house", "photos"]
    for _ in range(200):
        text = "".join(draw.choice(vocabulary) for _ in range(12))
        assert spelt(ids(after, text), found.added) == ids(before, text)
        assert after.decode(ids(after, text)) == text
    # the kernel, with the same ids
    fast = fast_encoding(after)
    assert fast.encode is not None, fast.about
    assert [found.tolist() for found in fast.encode([TEXT * 3, "a<|tool|> b"])] == [
        ids(after, TEXT * 3),
        ids(after, "a<|tool|> b"),
    ]


def test_size_counts_what_stands_on_the_way_and_what_is_left_out(words: Path) -> None:
    before = engine_kit.tokenizer().backend_tokenizer
    donor = json.loads(models.load_tokenizer(words).backend_tokenizer.to_str())
    whole = extended(before, Wanted((), (), donor, None))
    some = extended(before, Wanted((), ("<|a|>", "<|im_end|>"), donor, 410))
    assert some.size == 410 < whole.size and some.already["special"] == 1
    assert [token.origin for token in some.added].count("special") == 1
    assert [token.token for token in some.added[:-1]] == [token.token for token in whole.added[:9]]
    assert whole.already["vocab"] >= 256, "the bytes"
    total = sum(token.origin == "vocab" for token in whole.added) + whole.already["vocab"] + sum(whole.left_out.values())
    assert total == len(donor["model"]["vocab"]) - len(kit.CHATML), "each token of the donor is added, there, or left out"
    marks = donor["model"]["vocab"].keys() | {token.token for token in whole.added}
    assert all(token.token in marks for token in whole.added)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "char_bpe"])
def test_other_vocabularies(kind: str) -> None:
    before = trained(kind)
    donor = json.loads(trained(kind, size=360).to_str())
    new = {"unigram": (" photosynthese", " chlorophyll"), "wordpiece": ("Photosynthese", "chlorophyll")}
    wanted = Wanted(new.get(kind, ("photosynthese", "chlorophyll")), ("<|tool|>",), donor, None)
    found = extended(before, wanted)
    after = of(found.tree)
    assert found.added and sum(token.origin == "tokens" for token in found.added) == 2
    old = before.get_vocab_size()
    assert [token.id for token in found.added] == list(range(old, found.size)) and after.get_vocab_size() == found.size
    for word in wanted.tokens:
        assert len(after.encode(word, add_special_tokens=False).ids) == 1 < len(before.encode(word, add_special_tokens=False).ids)
    for token in found.added:
        if token.origin == "tokens":
            assert token.pieces == ids(before, next(w for w in wanted.tokens if ids(after, w) == [token.id]))
    assert after.token_to_id("<|tool|>") == found.size - 1 and "<|tool|>" in after.encode("a <|tool|> b").tokens
    new_ids, same = {token.id for token in found.added}, 0
    for seed in range(60):
        text = kit.sentence(random.Random(seed), 6) + " chlorophyll" * (seed % 2)
        if new_ids.isdisjoint(ids(after, text)):
            same += 1
            assert ids(after, text) == ids(before, text)
    assert same > 10


def test_tokens_beside_the_model_keep_their_ids() -> None:
    """Qwen's and Llama's special tokens stand behind the model's own list."""
    before = trained("bpe")
    before.add_special_tokens(["<|behind|>", "<|last|>"])
    found = extended(before, Wanted((" photosynthesis",), ("<|tool|>",), None, None))
    after = of(found.tree)
    for token in ("<|end|>", "<|behind|>", "<|last|>"):
        assert after.token_to_id(token) == before.token_to_id(token)
        assert after.encode(f"a{token}b").tokens == before.encode(f"a{token}b").tokens
    assert found.added[0].id == before.token_to_id("<|last|>") + 1
    assert len({*after.get_vocab().values()}) == found.size


def llama2() -> Any:
    """BPE as SentencePiece has it in Llama 2: blanks as ▁, unknown characters as bytes, nothing cut before merging."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers import models as kinds

    base = trained("bpe")
    plain = {token for token in base.get_vocab() if token.isascii() and token.isalpha()} - {"end"}
    merges = [(a, b) for a, b in json.loads(base.to_str())["model"]["merges"] if {a, b, a + b} <= plain]
    kept = [*LETTERS[:26], "▁", ".", *dict.fromkeys(a + b for a, b in merges)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(kept)]
    tokenizer = Tokenizer(
        kinds.BPE({t: n for n, t in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(tokens[:3])
    return tokenizer


def llama3() -> Any:
    """Byte-level BPE that takes whole words first, its special tokens behind the list."""
    from tokenizers import Regex, pre_tokenizers

    base = json.loads(trained("bpe").to_str())
    base["model"]["ignore_merges"] = True
    tokenizer = of(base)
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_special_tokens(["<|begin|>", "<|eot|>"])
    return tokenizer


@pytest.mark.parametrize("make", [llama2, llama3])
def test_the_tokenizers_of_known_families(make: Any, tmp_path: Path) -> None:
    before = make()
    engine_kit.model("Llama", before.get_vocab_size(), eos_token_id=None).save_pretrained(tmp_path / "start")
    PreTrainedTokenizerFast(tokenizer_object=before, eos_token="</s>" if make is llama2 else "<|eot|>").save_pretrained(
        tmp_path / "start"
    )
    words = ["photosynthesis", "chlorophyll"] if make is llama2 else [" photosynthesis", " chlorophyll"]
    rows = [Record("a", text="photosynthesis. chlorophyll.\na photosynthesis\n" * 3), *kit.texts(9)]
    stats, out = ran(tmp_path, tmp_path / "start", rows, tokens=words, special=["<|tool|>"])
    after = models.load_tokenizer(out).backend_tokenizer
    added = {line["token"]: line["id"] for line in map(json.loads, (out / "added_tokens.jsonl").read_text().splitlines())}
    text = "a photosynthesis chlorophyll über fox<|tool|>"
    found = ids(after, text)
    assert {added["▁photosynthesis" if make is llama2 else "Ġphotosynthesis"], added["<|tool|>"]} <= set(found)
    assert (
        after.decode(found, skip_special_tokens=False).strip().replace("<|tool|>", "") == "a photosynthesis chlorophyll über fox"
    )
    assert ids(after, "the fox jumps über") == ids(before, "the fox jumps über")
    assert stats["proof"]["parts_same"] > 5 and stats["fertility"]["fewer_tokens_frac"] > 0


@pytest.mark.parametrize("name", ["Qwen2", "Llama", "Bert"])
def test_transformers_classes_that_build_their_own_tokenizer(name: str, tmp_path: Path) -> None:
    """They take the vocabulary from tokenizer.json and put their own way of cutting text around it."""
    import transformers

    made = {"Qwen2": lambda: trained("bpe"), "Llama": llama2, "Bert": lambda: trained("wordpiece")}[name]()
    model = json.loads(made.to_str())["model"]
    parts = {"vocab": model["vocab"]} | ({} if name == "Bert" else {"merges": [tuple(pair) for pair in model["merges"]]})
    tokenizer = getattr(transformers, f"{name}Tokenizer")(**parts, **({"unk_token": None} if name == "Qwen2" else {}))
    if name == "Bert":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
        BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "start")
    else:
        engine_kit.model(name, len(tokenizer), eos_token_id=None).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    word = " photosynthesis" if name == "Qwen2" else "photosynthesis"
    stats, out = ran(tmp_path, tmp_path / "start", kit.texts(9), tokens=[word], special=["<|x|>"])
    again = models.load_tokenizer(out)
    assert type(again) is type(tokenizer) and stats["proof"]["parts_same"] > 20
    assert again.tokenize(f"a{word} <|x|>" if name == "Qwen2" else f"a {word} <|x|>")[-1] == "<|x|>"
    assert any("photosynthesis" in token for token in again.tokenize(f"a {word.strip()}"))


def test_what_cannot_be_added_is_said(words: Path) -> None:
    before = engine_kit.tokenizer().backend_tokenizer
    with pytest.raises(UserError, match="cannot become a token") as caught:
        extended(before, Wanted((" two words",), (), None, None))
    assert "2 words" in str(caught.value) and "special" in str(caught.value)
    pieces = json.loads(trained("wordpiece").to_str())
    with pytest.raises(UserError, match="not those of the start"):
        extended(before, Wanted((), (), pieces, None))
    # the start cuts digits apart, the donor does not
    numbers: Any = TOKENIZERS.load("bpe").model_validate({"kind": "bpe", "size": 300, "pre": "gpt2"})
    donor = json.loads(numbers.train(iter(["1984 1984 ü über über"] * 9), ()).to_str())
    found = extended(before, Wanted((), (), donor, None))
    assert found.left_out["the start cuts text inside it"] > 0
    assert not any("1" in token.token for token in found.added)


# --- first weights ------------------------------------------------------------------------------------------


def stage(**fields: Any) -> Any:
    return STAGES.load("extend").model_validate({"kind": "extend", "start": "start", **fields})


def ran(tmp_path: Path, start: Path, data: list[Record] | None = None, **fields: Any) -> tuple[dict[str, Any], Path]:
    inputs = {"start": Input("start", "model", start)}
    if data is not None:
        inputs["data"] = kit.records(tmp_path / "rows", data)
        fields["data"] = "data"
    if "vocab" in fields:
        inputs["vocab"] = Input("vocab", "tokenizer", fields["vocab"])
        fields["vocab"] = "vocab"
    run = kit.run_of(tmp_path / "out", inputs)
    return stage(**fields).run(run), run.out


def tables(folder: Path) -> list[torch.Tensor]:
    model, _ = models.load(folder, head=heads.of_vocabulary(folder))
    head = models.head(model)
    return [model.get_input_embeddings().weight, head.weight, *([] if head.bias is None else [head.bias])]


@pytest.mark.parametrize("init", ["pieces", "mean"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_stage_keeps_the_old_model(tied: bool, init: str, tmp_path: Path, words: Path) -> None:
    start = engine_kit.folder(tmp_path / "start", tie_word_embeddings=tied)
    rows = [Record("a", text=TEXT * 4), *kit.texts(30)]
    stats, out = ran(tmp_path, start, rows, tokens=NEW, vocab=words, size=460, special=["<|tool|>"], init=init)
    assert stats["vocab_before"] == 400 and stats["vocab_size"] == stats["rows"] <= 460
    assert stats["proof"]["logprob_change_max"] < 1e-5 and stats["proof"]["tokens_compared"] > 100
    assert 0 < stats["proof"]["parts_same"] == stats["proof"]["parts_without_new_tokens"] < stats["proof"]["parts"]
    new = stats["vocab_size"] - 400
    # by Jensen's inequality n tokens at the mean of v take at most n / (v + n) (Hewitt 2021)
    if init == "mean":
        assert stats["initialised"] == {"mean": new} and 0 < stats["proof"]["mass_on_new"] <= new / (400 + new)
    else:
        assert stats["initialised"] == {"mean": 1, "pieces": new - 1}
    assert stats["fertility"]["after"]["tokens_per_word"] < 0.8 * stats["fertility"]["before"]["tokens_per_word"]
    assert stats["facts"][""]["shape"]["vocab"] == stats["rows"]
    lines = [json.loads(line) for line in (out / "added_tokens.jsonl").read_text().splitlines()]
    tokenizer = models.load_tokenizer(out)
    assert [line["id"] for line in lines] == list(range(400, stats["vocab_size"])) and len(tokenizer) == stats["vocab_size"]
    assert "<|tool|>" in tokenizer.all_special_tokens and tokenizer.chat_template == engine_kit.CHATML
    old = models.load_tokenizer(start)
    for before, after in zip(tables(start), tables(out), strict=True):
        assert torch.equal(before, after[: len(before)])
        for line in lines:
            plain = init == "mean" or line["origin"] == "special"
            pieces = [] if plain else old.convert_tokens_to_ids([piece for piece, _ in line["of"]])
            torch.testing.assert_close(after[line["id"]], before[pieces].mean(0) if pieces else before.mean(0))
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == stats["rows"] and config["tie_word_embeddings"] is tied


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_an_encoder_has_a_bias_too(name: str, tmp_path: Path) -> None:
    tokenizer = trained("wordpiece")
    roles: Any = TOKENIZERS.load("wordpiece").model_validate({"kind": "wordpiece"})
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    if name == "bert":
        model: Any = BertForMaskedLM(BertConfig(**sizes))
    else:
        marks = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
        model = ModernBertForMaskedLM(ModernBertConfig(**sizes, **marks))
    with torch.no_grad():
        head = models.head(model)
        assert head.bias is not None
        head.bias.normal_()
    model.save_pretrained(tmp_path / "start")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles.roles()).save_pretrained(tmp_path / "start")
    stats, out = ran(tmp_path, tmp_path / "start", tokens=["chlorophyll"])
    assert stats["added"] == {"tokens": 1} and stats["initialised"] == {"pieces": 1} and stats["fertility"] is None
    (line,) = [json.loads(line) for line in (out / "added_tokens.jsonl").read_text().splitlines()]
    pieces = [tokenizer.token_to_id(piece) for piece, _ in line["of"]]
    before, after = tables(tmp_path / "start"), tables(out)
    assert len(before) == 3 and len(pieces) > 1
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(two[line["id"]], one[pieces].mean(0))


@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_decoder_is_extended_too(tied: bool, tmp_path: Path) -> None:
    """T5's tokenizer keeps its marks of gaps under their ids, and both halves and the head learn of the new tokens."""
    pieces = [tuple(pair) for pair in json.loads(trained("unigram").to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=20)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes)).save_pretrained(
        tmp_path / "start"
    )
    tokenizer.save_pretrained(tmp_path / "start")
    stats, out = ran(tmp_path, tmp_path / "start", kit.texts(9), tokens=["photosynthesis"], special=["<|x|>"])
    assert stats["added"] == {"tokens": 1, "special": 1} and stats["rows"] == len(tokenizer) + 2
    assert stats["proof"]["logprob_change_max"] < 1e-5 and stats["proof"]["tokens_compared"] > 20
    assert 0 < stats["proof"]["mass_on_new"] < 0.1
    again = models.load_tokenizer(out)
    assert again.tokenize("the photosynthesis <extra_id_0><|x|>")[-3:] == ["▁photosynthesis", "<extra_id_0>", "<|x|>"]
    gaps = [f"<extra_id_{number}>" for number in range(20)]
    assert again.convert_tokens_to_ids(gaps) == tokenizer.convert_tokens_to_ids(gaps)
    (line,) = [line for line in map(json.loads, (out / LIST).read_text().splitlines()) if line["origin"] == "tokens"]
    old = tokenizer.convert_tokens_to_ids([piece for piece, _ in line["of"]])
    for before, after in zip(tables(tmp_path / "start"), tables(out), strict=True):
        torch.testing.assert_close(after[line["id"]], before[old].mean(0))


def test_spare_rows_are_used_first(tmp_path: Path) -> None:
    start = tmp_path / "start"
    words = engine_kit.tokenizer()
    engine_kit.model("Llama", 448).save_pretrained(start)
    words.save_pretrained(start)
    stats, out = ran(tmp_path, start, tokens=NEW)
    assert (stats["rows_before"], stats["rows"]) == (448, 448) and 400 < stats["vocab_size"] < 448
    before, after = tables(start)[0], tables(out)[0]
    assert torch.equal(before[:400], after[:400]) and torch.equal(before[stats["vocab_size"] :], after[stats["vocab_size"] :])


def test_sparsemax() -> None:
    torch.testing.assert_close(extend.sparsemax(torch.tensor([0.1, 1.5, 0.3])), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(extend.sparsemax(torch.tensor([0.5, 0.9, -2.0])), torch.tensor([0.3, 0.7, 0.0]))
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    weights = extend.sparsemax(scores)
    assert float(weights.sum()) == pytest.approx(1)
    low, high = float(scores.min()) - 1, float(scores.max())  # the threshold, by halving
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((scores - middle).clamp(min=0).sum()) > 1 else (low, middle)
    torch.testing.assert_close(weights, (scores - low).clamp(min=0), atol=1e-5, rtol=0)


def test_similar_finds_the_tokens_that_stand_in_the_same_places(tmp_path: Path, folder: Path) -> None:
    """A new word that is used as two old ones are begins between them, far from its spelling."""
    draw = random.Random(1)
    texts = []
    for _ in range(300):
        noun = draw.choice(["the", "return", "chlorophyll"])
        if noun == "the":
            texts.append(f"while False {noun} {draw.choice(['import', 'raise'])} json")
        else:
            texts.append(f"print f ( {noun} : value {draw.choice(['x', 'y'])} )")
    rows = [Record(str(n), text=text) for n, text in enumerate(texts)]
    stats, out = ran(tmp_path, folder, rows, tokens=[" chlorophyll", " photosynthesis"], init="similar")
    lines = {line["token"]: line for line in map(json.loads, (out / "added_tokens.jsonl").read_text().splitlines())}
    alike = lines["Ġchlorophyll"]
    assert alike["how"] == "similar" and alike["of"][0][0] == "Ġreturn", alike
    assert 0 < sum(weight for _, weight in alike["of"]) <= 1.001
    assert lines["Ġphotosynthesis"]["how"] == "pieces", "it is not in the text"
    assert set(stats["initialised"]) == {"similar", "pieces"}
    old = models.load_tokenizer(folder)
    before, after = tables(folder)[0], tables(out)[0]
    weights = torch.tensor([weight for _, weight in alike["of"]])
    mixed = weights @ before[old.convert_tokens_to_ids([token for token, _ in alike["of"]])]
    if len(alike["of"]) < 20:  # else the list shows the largest alone
        torch.testing.assert_close(after[alike["id"]], mixed, atol=1e-3, rtol=0)


# --- what comes after ---------------------------------------------------------------------------------------


def test_gguf_has_the_same_tokens(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("xllamacpp")
    from tests.test_export import export

    _, out = ran(tmp_path, folder, tokens=NEW, special=["<|tool|>"])
    written, proof = export(out, tmp_path / "gguf", type="f32")
    assert written["vocab"] > 400 and proof["tokens_equal"] == proof["tokens"]


def test_training_goes_on(tmp_path: Path, folder: Path) -> None:
    rows = [Record(str(n), text=TEXT) for n in range(8)]
    _, out = ran(tmp_path, folder, rows, tokens=NEW)
    inputs = {"data": kit.records(tmp_path / "rows", rows), "start": Input("start", "model", out)}
    stats = kit.stage(start="start", steps=12).run(kit.run_of(tmp_path / "trained", inputs))
    assert stats["loss_last"] < stats["loss_first"]


def test_checks_and_refusals(tmp_path: Path, folder: Path, words: Path) -> None:
    inputs = {"start": Input("start", "model", folder), "data": kit.records(tmp_path / "rows", kit.texts(10))}
    run = kit.run_of(tmp_path / "out", inputs)
    found = {check.name: check for check in stage(tokens=[" river"], data="data").checks(run)}
    assert found["tokens"].ok and found["new tokens are met"].ok
    assert not {check.name: check for check in stage(tokens=[" zebra"], data="data").checks(run)}["new tokens are met"].ok
    (none,) = stage(tokens=[" the"]).checks(run)
    assert not none.ok
    (refused,) = stage(tokens=[" a b"]).checks(run)
    assert not refused.ok and "a b" in refused.detail
    with pytest.raises(UserError, match="no token is new"):
        stage(tokens=[" the"]).run(run)
    run.inputs["vocab"] = Input("vocab", "tokenizer", words)  # type: ignore[index]
    with pytest.raises(UserError, match="leaves no room"):
        stage(vocab="vocab", size=300).run(run)
    for fields in ({}, {"tokens": ["a"], "init": "similar"}):
        with pytest.raises(ValidationError):
            stage(**fields)


def test_the_estimate_knows_the_larger_table() -> None:
    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=400)
    given = Given(
        Machine("m", 2, 8e9),
        {"start": Facts(type="model", shape=shape), "vocab": Facts(type="tokenizer", rows=300)},
    )
    found = [stage(vocab="vocab", **fields).estimate(given) for fields in ({}, {"size": 450})]
    sizes = [item.facts[""].shape for item in found]
    assert sizes[0] is not None and sizes[1] is not None and (sizes[0].vocab, sizes[1].vocab) == (700, 450)
    assert found[0].disk.value > found[1].disk.value > 4 * shape.params


def test_the_report_tells_what_was_added() -> None:
    from modelwright.report import StageView
    from modelwright.report.page import _extension

    stats = {
        "vocab_before": 400,
        "vocab_size": 460,
        "added": {"vocab": 40, "on the way": 20},
        "already": {"vocab": 300},
        "left_out": {},
        "initialised": {"pieces": 60},
        "fertility": {
            "before": {"tokens_per_word": 2.5, "bytes_per_token": 2.0},
            "after": {"tokens_per_word": 1.25, "bytes_per_token": 4.0},
            "new_tokens_frac": 0.4,
        },
        "proof": {"parts_same": 3, "parts_without_new_tokens": 3, "logprob_change_max": 1e-6, "mass_on_new": 0.01},
    }
    facts = dict(_extension(StageView("wider", "extend", "made", {"stats": stats}, Path(), ())).facts)
    assert facts["vocabulary"] == "400 → 460 tokens" and facts["tokens per word"] == "2.50 → 1.25"
    assert facts["added"] == "40 vocab, 20 on the way" and "left out" not in facts
