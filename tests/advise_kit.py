"""Rows of every sort that the advisor tells apart, and recipes that it writes for them."""

import json
import random
from functools import cache
from pathlib import Path

from modelwright.plan.advise import Files, Known, advise
from modelwright.plan.devices import named as device_named
from tests.train_kit import chats, pairs, sentence, texts

named = cache(device_named)  # prices are read for each
T4 = named("t4")


def rows_in(folder: Path) -> Path:
    """The folder, with a file of 120 rows of each sort."""
    rng = random.Random(0)
    rows = [{"messages": record.messages} for record in chats(120)]
    judged = [{"prompt": r.messages, "chosen": r.chosen, "rejected": r.rejected} for r in pairs(120)]
    plain = [{"text": record.text} for record in texts(120)]
    labels = [{"text": sentence(rng, 9), "label": number % 2} for number in range(120)]
    spans = [{"tokens": sentence(rng, 6).split(), "ner_tags": [0, 1, 0, 0, 1, 0]} for _ in range(120)]
    near = [{"text": sentence(rng, 5), "positive": sentence(rng, 8)} for _ in range(120)]
    for name, found in (
        ("rows", rows),
        ("pairs", judged),
        ("texts", plain),
        ("labels", labels),
        ("spans", spans),
        ("near", near),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


FILES = Files(
    rows=("./rows.jsonl",),
    pairs=("./pairs.jsonl",),
    texts=("./texts.jsonl",),
    labelled=("./labels.jsonl",),
    near=("./near.jsonl",),
    length=128,
    amounts=dict.fromkeys(("rows", "pairs", "texts", "labelled"), 120),
)


def written(folder, name, situation, machine=T4, files=FILES):
    found = advise(Known(situation), machine, files=files)
    assert found.recipe, found.no_recipe
    path = folder / f"{name}.yaml"
    path.write_text(found.recipe)
    return found, path
