"""The tokenizer stage: a folder that transformers opens, exact text, special tokens first, honest fertility."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.record import Record, write_records
from modelwright.core.stage import STAGES, Input, Run, Stage
from modelwright.methods.templates import TEMPLATES, encode_chat, parity
from modelwright.methods.tokenizers import TOKENIZERS, Tokenizer
from modelwright.stages._tokenizer_figures import specimen

from .test_data_steps import CODE, prose

ODD = ["", " \n\t\r\n  x", "naïve – 東京 🙂🏽 \u0000\u0301", "1234567 3.14e-10 0x1F", "<|im_end|> inside", "\xa0\u2028é" * 3]
CHAT = [{"role": "user", "content": "How many? 12"}, {"role": "assistant", "content": "def f(x):\n    return x"}]


def stage(**fields: Any) -> Stage:
    spec = STAGES.load("tokenizer").model_validate({"kind": "tokenizer", "data": "./data.jsonl", **fields})
    assert isinstance(spec, Stage)
    return spec


def method(**fields: Any) -> Tokenizer:
    spec = TOKENIZERS.load("bpe").model_validate({"kind": "bpe", **fields})
    assert isinstance(spec, Tokenizer)
    return spec


def setup(tmp_path: Path, rows: list[Record], name: str = "out") -> Run:
    write_records(tmp_path / "data.jsonl", rows)
    (tmp_path / name).mkdir()
    return Run(tmp_path / name, {"./data.jsonl": Input("./data.jsonl", "path", tmp_path / "data.jsonl")}, 0, Log(None))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    rows = [Record(f"p{i}", text=prose(i, 200)) for i in range(60)] + [Record(f"c{i}", text=text) for i, text in enumerate(CODE)]
    run = setup(tmp_path_factory.mktemp("tokenizer"), rows)
    return run.out, stage(method={"kind": "bpe", "size": 500}).run(run)


def test_transformers_opens_it_with_its_template(made: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made[0])
    assert len(tokenizer) == 500
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>",) * 3
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHow many? 12<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert (
        encode_chat(tokenizer, tokenizer.chat_template, CHAT).ids == ids
        and parity(tokenizer, tokenizer.chat_template, CHAT) is None
    )
    assert tokenizer("hi 12")["input_ids"] == tokenizer.backend_tokenizer.encode("hi 12").ids  # nothing is added
    for odd in ODD:
        assert tokenizer.decode(tokenizer(odd)["input_ids"], skip_special_tokens=False) == odd


def test_stats_and_files(made: tuple[Path, dict[str, Any]]) -> None:
    out, stats = made
    assert {path.name for path in out.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["modelwright_pre"] == stats["pre"] == "smollm" and config["modelwright_stop"] == "<|im_end|>"
    assert stats["vocab_size"] == 500 == stats["facts"][""]["rows"] and stats["special"][0] == "<|endoftext|>"
    measured = stats["measured"]
    assert stats["measured_on"] == "one row in 20, not learned from" and measured["texts"] == 3
    assert stats["bytes_per_token"] == pytest.approx(measured["bytes"] / measured["tokens"], abs=1e-3)
    assert stats["reference"]["bytes_per_token"] == 1 < stats["bytes_per_token"] < stats["limit"]["bytes_per_token"]
    assert stats["limit"]["tokens_per_word"] < stats["tokens_per_word"] < stats["reference"]["tokens_per_word"]
    assert stats["preview"] and stats["longest"] and stats["unknown_tokens"] == 0
    assert stats["learned_by"].startswith(("rustbpe ", "tokenizers "))
    kinds = stats["by_kind"]
    assert sum(figures["bytes"] for figures in kinds.values()) == measured["bytes"] and kinds["prose"]["bytes_per_token"] > 1


def test_pre_tokenizers_are_the_ones_llama_cpp_names() -> None:
    tree = {pre: json.loads(method(size=300, pre=pre).train(iter(["ab 12"]), ("<s>",)).to_str()) for pre in ("smollm", "gpt2")}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert tree["gpt2"]["pre_tokenizer"] == byte_level
    digits = {"type": "Digits", "individual_digits": True}
    assert tree["smollm"]["pre_tokenizer"] == {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    for node in tree.values():
        assert node["normalizer"] is None and node["post_processor"] is None and node["model"]["type"] == "BPE"
        assert node["decoder"]["type"] == "ByteLevel" and not node["model"]["byte_fallback"]


def test_fields_of_the_method_do_something() -> None:
    texts = [prose(i) + " 2024 2024 2024" for i in range(20)]

    def vocabulary(**fields: Any) -> dict[str, int]:
        result: dict[str, int] = method(**{"size": 450, **fields}).train(iter(texts), ("<s>",)).get_vocab()
        return result

    base = vocabulary()
    assert vocabulary() == base and len(base) == 450 and base["<s>"] == 0
    assert len(vocabulary(size=400)) == 400 and len(vocabulary(min_frequency=50)) < 450
    assert "2024" not in base and any("202" in token for token in vocabulary(pre="gpt2"))


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib\nfrom modelwright.methods.tokenizers.bpe import BPE\n"
        "texts = [f'word{i % 97} other{i % 31} x{i}' for i in range(2000)]\n"
        "print(hashlib.sha256(BPE(size=600).train(iter(texts), ('<s>',)).to_str().encode()).hexdigest())"
    )
    digests = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


def test_little_text_and_templates(tmp_path: Path) -> None:
    run = setup(tmp_path, [Record("a", messages=CHAT)])
    notes: list[str] = []
    run = run._replace(log=Log(None, lambda name, fields: notes.append(fields["text"]) if name == "note" else None))
    stats = stage(method={"kind": "bpe", "size": 1000}, template="plain").run(run)
    assert stats["measured_on"] == "the text learned from" and stats["special"] == ["<|endoftext|>"]
    assert any("fewer than the 1000" in note for note in notes)
    assert (run.out / "chat_template.jinja").read_text() == TEMPLATES.load("plain").model_validate({"kind": "plain"}).jinja()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="choose one: alpaca, chatml, gemma, llama3, mistral, plain"):
        stage(template="own")


def test_weights_and_epochs_count(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [Record(f"a{i}", text="aaaa bbbb") for i in range(100)])
    write_records(tmp_path / "b.jsonl", [Record(f"b{i}", text="cccc dddd") for i in range(100)])
    inputs = {f"./{n}": Input(f"./{n}", "path", tmp_path / n) for n in ("a.jsonl", "b.jsonl")}

    def learned(**b: Any) -> list[int]:
        spec = stage(data=["./a.jsonl", {"ref": "./b.jsonl", **b}])
        rows = [record.text for record in spec._rows(Run(tmp_path, inputs, 0, Log(None)))]  # type: ignore[attr-defined]
        return [rows.count("aaaa bbbb"), rows.count("cccc dddd")]

    assert learned() == [100, 100] and learned(epochs=3) == [100, 300]
    half = learned(epochs=0.5)
    assert half[0] == 100 and 30 < half[1] < 70
    both = stage(data=[{"ref": "./a.jsonl", "weight": 1}, {"ref": "./b.jsonl", "weight": 4}])
    rows = [record.text for record in both._rows(Run(tmp_path, inputs, 0, Log(None)))]  # type: ignore[attr-defined]
    assert rows.count("cccc dddd") == 100 and 10 < rows.count("aaaa bbbb") < 40


def test_kinds_of_text_are_told_apart() -> None:
    rows = [Record("a", messages=CHAT), Record("b", text=CODE[0]), Record("c", text=prose(1)), Record("d", text="東京は夜 x")]
    assert [specimen(row).kind for row in rows] == ["chats", "code", "prose", "other scripts"]
    assert specimen(Record("src/m.py", text="x = 1")).kind == "code"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char_bpe", "unigram"])
def test_every_kind_with_special_tokens_and_a_mask(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = [Record(f"p{i}", text=prose(i, 100)) for i in range(19)] + [Record("new", text="龘靐齉 the river")]
    run, notes = setup(tmp_path, rows), []
    run = run._replace(log=Log(None, lambda name, fields: notes.append(fields["text"]) if name == "note" else None))
    stats = stage(method={"kind": kind, "size": 320}, special=["<|tool|>"], mask="<|mask|>").run(run)
    tokenizer = AutoTokenizer.from_pretrained(run.out)
    assert tokenizer.mask_token == "<|mask|>" and tokenizer.eos_token == "<|endoftext|>"
    assert len(tokenizer) == stats["vocab_size"] and {"<|tool|>", "<|mask|>"} < {*stats["special"]}
    ids = tokenizer("the<|tool|>river", add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|tool|>")) == 1
    assert (stats["unknown_tokens"] > 0) is (kind != "bpe") is any("unknown to the vocabulary" in note for note in notes)
    assert "learned by" in notes[0] and (json.loads((run.out / "tokenizer_config.json").read_text()).get("modelwright_pre")) == (
        "smollm" if kind == "bpe" else None
    )


def test_estimate_and_empty_data(tmp_path: Path) -> None:
    spec = stage(method={"kind": "bpe", "size": 1000})
    given = Given(Machine("m", 2, 8e9), {"./data.jsonl": Facts(type="path", bytes=4e6)})
    found = spec.estimate(given)
    assert found.facts[""].rows == 1000 and 0.5 < found.seconds.value < 10 and found.memory.value > 9e7
    run = setup(tmp_path, [])
    with pytest.raises(UserError, match=r"holds no rows|it has no row"):
        spec.run(run)
    assert not spec.random
