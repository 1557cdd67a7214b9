"""What an open engine holds: the weights once, in the type that was asked for, and the memory of its rows."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.methods.engines import ENGINES, Request, Sampling, open_engine
from tests import engine_kit as kit


def held_bytes() -> int:
    """Of all tensors that are alive; storage that several share counts once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor) and found.device.type == "cpu"]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def memory_bytes(decoder: Any) -> int:
    memory = decoder.runner.memory
    shared = {id(one): one.bytes for one in memory.shared if one is not None}
    own = sum(part.numel() * part.element_size() for pair in memory.layers.values() for part in pair)
    return own + sum(shared.values()) + decoder._finished.bytes


@pytest.mark.parametrize(("precision", "item_bytes"), [("fp32", 4), ("bf16", 2)])
def test_no_copy_of_the_weights(tmp_path: Path, precision: str, item_bytes: int) -> None:
    folder = kit.folder(tmp_path, hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    before = held_bytes()
    with open_engine(folder, ENGINES.load("native")(threads=1, device="cpu", precision=precision, keep_mb=1)) as engine:
        worker: Any = vars(engine)["_worker"]
        decoder = worker._decoder.decoder
        weights = sum(weight.numel() for weight in decoder.model.parameters()) * item_bytes
        assert decoder.model.dtype.itemsize == item_bytes
        assert weights <= held_bytes() - before <= 1.15 * weights
        prompt = engine.encode("def first(items): return items[0]\n" * 6)
        engine.generate([Request([*prompt, token], Sampling(max_tokens=4)) for token in range(9, 17)])
        assert {part.dtype for pair in decoder.runner.memory.layers.values() for part in pair} <= {torch.float32}
        assert held_bytes() - before <= 1.15 * (weights + worker.call(partial(memory_bytes, decoder)))
    del engine, worker, decoder
    assert held_bytes() - before < 0.1 * weights, "and all of it goes"
