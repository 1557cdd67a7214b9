"""Decontamination on one core: our `decontaminate` step against the usual loop over a Python set of 13-word runs, on the same
documents in memory, after imports. The items are 1,300 passages of 30 to 60 words from documents that are left out of the text,
their words in another order, so that no other document holds them, as with a real test set; 20 are planted, and both have to
find these and nothing else. The text is the machine's own.

`python -m benchmarks decontaminate_vs_set [--megabytes 50] [--repeats 3]`
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._web_text import write

ITEMS, PLANTED, NGRAM = 1300, 20, 13
WORDS = re.compile(r"\w+")


def by_set(texts: list[str], items: list[str]) -> tuple[list[int], float]:
    """Numbers of the texts that have a run of an item, and processor seconds."""
    start = time.process_time()
    grams = set()
    for item in items:
        words = WORDS.findall(item.lower())
        grams.update(" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    found = []
    for number, text in enumerate(texts):
        words = WORDS.findall(text.lower())
        if any(" ".join(words[i : i + NGRAM]) in grams for i in range(len(words) - NGRAM + 1)):
            found.append(number)
    return found, time.process_time() - start


def by_step(texts: list[str], path: Path) -> tuple[list[int], float]:
    """The same of our step."""
    from modelwright.core.events import Log
    from modelwright.core.record import Record
    from modelwright.core.stage import Input, Run
    from modelwright.methods.steps import STEPS, Drop

    ref = str(path)
    step: Any = STEPS.build({"kind": "decontaminate", "against": ref, "ngram": NGRAM, "share": 1e-9})
    run = Run(path.parent, {ref: Input(ref, "path", path)}, 0, Log(None))
    list(step.apply(iter([Record("warm", text="so that everything is loaded " * 9)]), run))
    rows = [Record(str(number), text=text) for number, text in enumerate(texts)]
    start = time.process_time()
    found = [int(result.record.id) for result in step.apply(iter(rows), run) if isinstance(result, Drop)]
    return found, time.process_time() - start


def main() -> dict[str, float]:
    """Print the table; returns our rate over theirs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks decontaminate_vs_set")
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--repeats", type=int, default=3, help="medians are told")
    given = parser.parse_args(sys.argv[2:])
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.jsonl"
        write(rows, int(given.megabytes * 1e6))
        texts = [json.loads(line)["text"] for line in rows.read_bytes().splitlines()]
        draw = random.Random(0)
        others, texts = texts[: len(texts) // 10], texts[len(texts) // 10 :]
        items: list[str] = []
        while len(items) < ITEMS:
            words = draw.choice(others).split()
            at = draw.randrange(max(len(words) - 60, 1))
            if len(piece := WORDS.findall(" ".join(words[at : at + draw.randint(30, 60)]))) >= NGRAM:
                draw.shuffle(piece)
                items.append(" ".join(piece))
        for number in draw.sample(range(len(texts)), PLANTED):
            texts[number] += " " + draw.choice(items)
        path = Path(name) / "items.jsonl"
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items), encoding="utf-8")
        size = sum(len(text.encode()) for text in texts)
        theirs = [by_set(texts, items) for _ in range(given.repeats)]
        ours = [by_step(texts, path) for _ in range(given.repeats)]
    rate, peer = (size / 1e6 / median(seconds for _, seconds in runs) for runs in (ours, theirs))
    same = set(ours[0][0]) == set(theirs[0][0])
    print(f"{size / 1e6:.1f} MB, {len(texts)} documents, {ITEMS} items, {PLANTED} planted")
    print(f"modelwright   {rate:7.1f} MB/s, {len(ours[0][0])} documents with a run of an item")
    print(f"a Python set  {peer:7.1f} MB/s, {len(theirs[0][0])} documents: {'the same' if same else 'others'}")
    return {"speed": round(rate / peer, 2), "mb_per_s": round(rate, 1), "mb_per_s_peer": round(peer, 1), "same": float(same)}
