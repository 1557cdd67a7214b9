"""Encoder-decoders: packed rows against transformers' own T5, T5's span sampler, and the stage from end to end."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import STAGES, Input, Run
from modelwright.methods.architectures import ARCHITECTURES, shape_of
from modelwright.methods.objectives.span_corruption import SpanCorruption
from modelwright.nn import model as models
from modelwright.nn import seq2seq
from modelwright.nn.attention import Layout, Segment
from modelwright.nn.measure import micro_loss
from modelwright.nn.rows import FIRST, Packed, Row, Rows, pack, store
from modelwright.nn.spans import Spans, corrupted
from modelwright.stages._train_run import objective_loss
from tests import train_kit as kit

VOCAB, END = 89, 1
TINY: dict[str, Any] = {"depth": 2, "hidden": 32, "heads": 4, "head_dim": 16, "intermediate": 48, "buckets": 8, "far": 12}
T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "gated": T5Config(**T5, feed_forward_proj="gated-gelu"),
    "relu": T5Config(**T5),
    "unscaled, of unequal halves": T5Config(**T5, num_decoder_layers=1, tie_word_embeddings=False),
}
SPANS = SpanCorruption(rate=0.3, span=2.0, sentinels=12)


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = models.build(copy.deepcopy(CONFIGS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def fresh(**fields: Any) -> tuple[Any, Any]:
    architecture: Any = ARCHITECTURES.load("encoder_decoder").model_validate({"kind": "encoder_decoder", **TINY, **fields})
    torch.manual_seed(0)
    model = models.build(architecture.config(VOCAB, 64), "seq2seq")
    architecture.initialise(model)
    return architecture, model.eval()


# --- the architecture -----------------------------------------------------------------------------------

MORE: list[dict[str, Any]] = [{}, {"depth": 3}, {"decoder_depth": 1}, {"head_dim": 8}, {"intermediate": 40}, {"buckets": 16}]


@pytest.mark.parametrize("more", MORE, ids=str)
def test_the_arithmetic_of_a_shape_is_that_of_the_model(more: dict[str, Any]) -> None:
    architecture, model = fresh(**more)
    assert architecture.shape(VOCAB).params == sum(p.numel() for p in model.parameters())
    assert shape_of(model.config) == architecture.shape(VOCAB)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_of_a_model_that_was_there_before(name: str) -> None:
    model = made(name)
    shape = shape_of(model.config)
    own_head = 0 if shape.tied else VOCAB * shape.hidden  # in released v1.1; transformers builds none
    assert shape.params == sum(p.numel() for p in model.parameters()) + own_head


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_dial_alone_is_enough(depth: int) -> None:
    architecture: Any = ARCHITECTURES.load("encoder_decoder")(depth=depth)
    shape = architecture.shape(VOCAB)
    assert (shape.layers, shape.decoder_layers, shape.hidden, shape.heads) == (depth, depth, 64 * depth, depth)
    with torch.device("meta"):
        found = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_config(architecture.config(VOCAB, 64)).parameters())
    assert found == shape.params


def test_starting_weights_are_those_that_transformers_draws() -> None:
    architecture, ours = fresh(hidden=128, heads=4, intermediate=192)
    torch.manual_seed(1)
    theirs = models.build(architecture.config(VOCAB, 64), "seq2seq")
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name).detach()
        if parameter.ndim == 1:
            assert torch.equal(parameter, other)
        elif parameter.numel() > 1000:
            assert float(parameter.detach().std()) == pytest.approx(float(other.std()), rel=0.05), name


# --- packed rows against transformers' own ----------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_are_sound(name: str) -> None:
    models.check_packed(made(name))


def test_a_fault_is_found() -> None:
    model = made("gated")
    model.decoder.final_layer_norm.register_forward_hook(lambda module, inputs, out: out + out.mean(1, keepdim=True))
    with pytest.raises(UserError, match="same result on packed rows"):
        models.check_packed(model)


ROW = Layout([Segment(0, 9), Segment(9, 14, 0), Segment(14, 17, 0), Segment(17, 21), Segment(21, 30, 3)])
"""Two answers to the first text, one to the second."""


def test_no_document_sees_another() -> None:
    model = made("gated")
    models.packed(model)
    ids_T = torch.randint(2, VOCAB, (30,))
    before = models.Trunk(model).hidden(ids_T, ROW, torch.float32)
    for begin, end, touched in (
        (0, 9, [(0, 17)]),
        (9, 14, [(10, 14)]),
        (14, 17, [(15, 17)]),
        (17, 21, [(17, 30)]),
        (21, 30, [(22, 30)]),
    ):
        changed = ids_T.clone()
        changed[begin : end - (begin in (9, 14, 21))] += 1  # nothing looks at the last token that is written
        after = models.Trunk(model).hidden(changed % VOCAB, ROW, torch.float32)
        moved = torch.zeros(30, dtype=torch.bool)
        for first, last in touched:
            moved[first:last] = True
        assert torch.equal(before[~moved], after[~moved])
        assert bool((before[moved] != after[moved]).any(1).all())


def rows_of(folder: Path, lengths: tuple[int, ...] = (14, 5, 22, 9, 30)) -> Rows:
    rng = np.random.default_rng(0)
    return store((Row([*rng.integers(20, VOCAB, n).tolist(), END], [FIRST] * (n + 1)) for n in lengths), folder, VOCAB)


def spans(seed: int = 0) -> Spans:
    return Spans(SPANS.counts, tuple(range(2, 14)), END, seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_own_loss(name: str, tmp_path: Path) -> None:
    """Two packed micro-batches against `T5ForConditionalGeneration`'s loss on one padded batch, values and gradients."""
    model, rows = made(name), rows_of(tmp_path)
    models.packed(model)
    total, weight_sum, halves = 0.0, 0.0, []
    for group in ([0, 1], [2, 3, 4]):
        batch = corrupted(pack(rows, group, visit=1), spans())
        halves += list(torch.split(batch.ids_T, batch.layout.lengths))
        loss, weight, _ = micro_loss(models.Trunk(model), batch, objective_loss(SPANS), torch.float32)
        loss.backward()
        total, weight_sum = total + float(loss.detach()), weight_sum + float(weight)
    found = {key: p.grad / weight_sum for key, p in model.named_parameters()}
    models.unpacked(model)
    model.zero_grad()
    read, written = halves[0::2], halves[1::2]
    ids = torch.nn.utils.rnn.pad_sequence(read, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=-100)
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in read], batch_first=True)
    theirs = model(input_ids=ids, attention_mask=seen, labels=labels).loss
    theirs.backward()
    assert total / weight_sum == pytest.approx(float(theirs.detach()), abs=1e-5)
    for key, parameter in model.named_parameters():
        assert float((found[key] - parameter.grad).abs().max()) < 1e-5 * max(1.0, float(parameter.grad.abs().max())), key


def test_bfloat16_is_near(tmp_path: Path) -> None:
    model, batch = made("gated"), corrupted(pack(rows_of(tmp_path), [0, 2]), spans())
    models.packed(model)
    trunk = models.Trunk(model)
    logps = [
        trunk.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, dtype).logps()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    logps[1].sum().backward()
    assert float((logps[0] - logps[1]).detach().abs().max()) < 0.2


def test_other_encoder_decoders_are_refused() -> None:
    from transformers import BartConfig

    bart = models.build(BartConfig(vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1), "seq2seq")
    with pytest.raises(UserError, match="cannot be trained on packed rows"):
        models.packed(bart)


# --- the sampler ------------------------------------------------------------------------------------------


def test_lengths_are_those_of_the_released_code() -> None:
    """`random_spans_helper(512, 0.15, 3)` gives 568 tokens, of which 114 are to be written; so for 128: 141 and 29."""
    plain = SpanCorruption()
    for length, tokens, written in ((512, 568, 114), (128, 141, 29)):
        hidden, gaps = plain.counts(tokens)
        assert plain.row_tokens(length) == tokens and hidden + gaps + 1 == written
        assert tokens - hidden + gaps + 1 == length
    with pytest.raises(UserError, match=r"gaps, and there are 40 marks"):
        SpanCorruption(sentinels=40).row_tokens(1024)
    assert SpanCorruption(rate=0.9, span=1.0, sentinels=1000).row_tokens(64) >= 63


def pieces(batch: Packed) -> list[torch.Tensor]:
    return list(torch.split(batch.ids_T, batch.layout.lengths))


def test_halves_make_up_the_whole(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, (14, 5, 22, 1, 300))
    how = Spans(SpanCorruption().counts, tuple(range(2, 18)), END, 0)
    batch = corrupted(pack(rows, range(5), visit=3), how)
    parts = pieces(batch)
    assert len(parts) == 10 and batch.segments == 5
    assert torch.equal(batch.target_N, torch.cat(parts[1::2])) and torch.equal(batch.position_N, seq2seq.positions(batch.layout))
    for row, (read, written) in enumerate(zip(parts[0::2], parts[1::2], strict=True)):
        whole = pack(rows, [row]).ids_T.tolist()
        hidden, gaps = how.counts(len(whole) - 1)
        assert read[-1] == written[-1] == END and len(read) == len(whole) - hidden + gaps and len(written) == hidden + gaps + 1
        filled, left = [], written.tolist()[:-1]
        for token in read.tolist():
            if token in how.sentinels:
                assert left.pop(0) == token
                while left and left[0] not in how.sentinels:
                    filled.append(left.pop(0))
            else:
                filled.append(token)
        assert filled == whole and not left
        assert [t for t in read.tolist() if t in how.sentinels] == list(how.sentinels[:gaps])


def test_neither_packing_nor_order_changes_a_draw(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    together = pieces(corrupted(pack(rows, [3, 2, 4], visit=5), spans()))
    alone = pieces(corrupted(pack(rows, [2], visit=5), spans()))
    assert torch.equal(together[2], alone[0]) and torch.equal(together[3], alone[1])
    for other in (corrupted(pack(rows, [2], visit=6), spans()), corrupted(pack(rows, [2], visit=5), spans(seed=1))):
        assert not torch.equal(pieces(other)[0], alone[0])


def test_every_way_to_cut_is_equally_likely(tmp_path: Path) -> None:
    """Five tokens, two hidden in two gaps of one: kept 3 = 1 + 2 or 2 + 1."""
    rows = rows_of(tmp_path, (5,))
    how = Spans(lambda tokens: (2, 2), (2, 3), END, 0)
    reads = [tuple(pieces(corrupted(pack(rows, [0], visit=visit), how))[0].tolist()) for visit in range(400)]
    assert len(set(reads)) == 2 and 150 < reads.count(reads[0]) < 250


# --- the stage --------------------------------------------------------------------------------------------

SENTINELS = 12
OBJECTIVE = {"kind": "span_corruption", "sentinels": SENTINELS}
MODEL = {"kind": "encoder_decoder", **TINY}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = models.load_tokenizer(kit.tokenizer(folder / "vocab"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(SpanCorruption(sentinels=SENTINELS).marks())})
    tokenizer.save_pretrained(folder / "vocab")
    found = {"data": kit.records(folder / "texts", repeated(200, 0)), "vocab": Input("vocab", "tokenizer", folder / "vocab")}
    return {**found, "held": kit.records(folder / "held", repeated(20, 1))._replace(ref="held")}


def repeated(count: int, seed: int) -> list[Record]:
    """Each text is one word again and again: what is missing stands in what is read, and nowhere else."""
    draw = np.random.default_rng(seed)
    return [
        Record(f"text-{n}", text=" ".join([kit.WORDS[draw.integers(len(kit.WORDS))]] * int(draw.integers(8, 20))))
        for n in range(count)
    ]


def test_the_stage_learns_to_fill_gaps(inputs: dict[str, Input], tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    fields = {"validation": "held", "validate_every": 20, "batch_tokens": 512, "micro_tokens": 512, "steps": 60}
    stage = kit.stage(objective=OBJECTIVE, model=MODEL, **fields)
    stats = stage.run(run := kit.run_of(tmp_path / "out", inputs, events=events))
    losses = [fields["loss"] for name, fields in events if name == "validation"]
    assert stats["loss_first"] > 5 and losses[-1] < 0.25 * stats["loss_first"], (stats["loss_first"], losses)
    again, info = AutoModelForSeq2SeqLM.from_pretrained(run.out, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    assert stats["params"] == sum(p.numel() for p in again.parameters()) == shape_of(again.config).params
    tokenizer, ours = AutoTokenizer.from_pretrained(run.out), models.load_tokenizer(inputs["vocab"].path)
    text = "the quick <extra_id_0> fox"
    assert tokenizer(text)["input_ids"] == ours(text)["input_ids"]
    # what it writes is what transformers generates from what it read
    assert len(stats["samples"]) == 3 and all("<extra_id_0>" in sample["prompt"] for sample in stats["samples"])
    ids = tokenizer(stats["samples"][0]["prompt"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = tokenizer.decode(again.generate(ids, max_new_tokens=48)[0, 1:])
    assert answer == stats["samples"][0]["answer"]
    # and on from the artifact
    start = {"data": inputs["data"], "start": Input("start", "model", run.out)}
    on = kit.stage(objective=OBJECTIVE, start="start", steps=3, batch_tokens=512).run(kit.run_of(tmp_path / "on", start))
    assert on["loss_first"] < 0.4 * stats["loss_first"]
    with pytest.raises(UserError, match="cannot be a causal language model"):
        models.load(run.out)


def test_stopped_and_resumed_to_the_same_bits(inputs: dict[str, Input], tmp_path: Path) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "progress" and fields["label"] == "train" and fields["done"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stage = kit.stage(objective=OBJECTIVE, model=MODEL, steps=7)
    stage.run(whole := kit.run_of(tmp_path / "whole", inputs))
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(Run(broken, inputs, 0, Log(None, stop)))
    stage.run(kit.run_of(broken, inputs))
    assert (broken / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_the_soundness_checks_hold(inputs: dict[str, Input], tmp_path: Path) -> None:
    for check in kit.stage(objective=OBJECTIVE, model=MODEL).checks(kit.run_of(tmp_path / "out", inputs)):
        assert check.ok, check


def test_what_cannot_be_is_refused(inputs: dict[str, Input], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`seq2seq` head"):
        kit.stage(objective=OBJECTIVE)
    with pytest.raises(ValidationError, match="`causal` head"):
        kit.stage(model=MODEL)
    with pytest.raises(ValidationError, match="leave `grow` out"):
        kit.stage(objective=OBJECTIVE, start="start", grow={"kind": "deepen", "layers": 4})
    bare = {**inputs, "vocab": Input("vocab", "tokenizer", kit.tokenizer(tmp_path / "bare"))}
    with pytest.raises(UserError, match="the tokenizer lacks '<extra_id_0>'"):
        kit.stage(objective=OBJECTIVE, model=MODEL).run(kit.run_of(tmp_path / "out", bare))
    given = Given(Machine("laptop", 2, 16e9), {})
    with pytest.raises(UserError, match="there are 12 marks"):
        kit.stage(objective=OBJECTIVE, model=MODEL, length=512, batch_tokens=1024).estimate(given)


def test_what_only_decoders_can_do_is_refused_before_the_work() -> None:
    given = Given(
        Machine("laptop", 2, 16e9), {"pairs": Facts(type="model", head="seq2seq"), "data": Facts(type="records", rows=9)}
    )
    asked = {"kind": "evaluate", "model": "pairs", "data": "data", "tasks": ["perplexity"]}
    for tree in (asked, {"kind": "export", "model": "pairs", "format": "gguf"}):
        with pytest.raises(UserError, match="reads a text and writes another"):
            STAGES.load(tree["kind"]).model_validate(tree).estimate(given)
    with pytest.raises(UserError, match="has a `seq2seq` head"):
        kit.stage(start="pairs").estimate(given)


def test_estimates_know_both_halves() -> None:
    given = Given(
        Machine("laptop", 2, 16e9), {"data": Facts(type="records", chars=1e6), "vocab": Facts(type="tokenizer", rows=4096)}
    )
    fields: dict[str, Any] = {"length": 512, "batch_tokens": 4096, "micro_tokens": 1024, "steps": 500}
    both, half = (
        kit.stage(objective="span_corruption", model={"kind": "encoder_decoder", "depth": 6, **more}, **fields).estimate(given)
        for more in ({}, {"decoder_depth": 1})
    )
    shape = both.facts[""].shape
    assert shape is not None and shape.decoder_layers == 6
    # a fifth of the tokens is written, so five layers of twelve less save less than a third of the time
    assert 1.1 < both.seconds.value / half.seconds.value < 1.5 and both.memory.value > half.memory.value
