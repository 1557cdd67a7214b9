"""Main content of web pages on one core: our step `main_content` against trafilatura as FineWeb sets it (for precision, without
comments, repeated pieces left out, as datatrove's extractor does), on pages whose main text is known. Over half of the bytes are
documentation: the sources of eight Python packages, built by Sphinx and MkDocs in 16 themes; the label is what the same source
gives as plain text. The rest are texts of this machine set into eight frames of web pages made here. MB of HTML a processor
second, after imports, medians of runs in turn. Precision, recall and F1 are of words in order, by the longest common subsequence
of a page's text and its label (ROUGE-L, Lin 2004, over the whole text), means over pages, as Bevendorff et al. 2023,
doi:10.1145/3539618.3591920, compare extractors.

`python -m benchmarks extract_vs_trafilatura [--frames 320] [--repeats 3]`
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from benchmarks import _web_frames
from benchmarks._peers import FOLDER, python_of

BUILDERS = (
    *("sphinx==8.1.3", "furo==2024.8.6", "sphinx-rtd-theme==3.0.2", "pydata-sphinx-theme==0.16.1", "sphinx-book-theme==1.1.3"),
    *("mkdocs==1.6.1", "mkdocs-material==9.5.50"),
)
TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""Words; of Chinese and Japanese, signs."""


class Page(NamedTuple):
    group: str
    html: str
    label: str


class Score(NamedTuple):
    precision: float
    recall: float
    f1: float


def documentation() -> Iterator[Page]:
    """Built once; the first time takes minutes and the package index."""
    script, built = Path(__file__).with_name("_web_sites.py"), FOLDER / "web-sites"
    if not (built / "ready").exists():
        shutil.rmtree(built, ignore_errors=True)
        subprocess.run([python_of("web-sites", *BUILDERS), str(script), str(built)], check=True, stdout=sys.stderr)
        (built / "ready").touch()
    for path in sorted((built / "pages").rglob("*.html")):
        yield Page(path.parent.name.partition("-")[0], path.read_text("utf-8"), path.with_suffix(".txt").read_text("utf-8"))


def score(text: str, label: str) -> Score:
    """Of words in order; nothing where nothing is to be found is right."""
    found, wanted = TOKENS.findall(text.lower()), TOKENS.findall(label.lower())
    if not found or not wanted:
        return Score(*[float(not found and not wanted)] * 3)
    both = common(found, wanted)
    precision, recall = both / len(found), both / len(wanted)
    return Score(precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0)


def common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, a bit a place: Hyyrö 2004, Bit-parallel LCS-length computation revisited."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    full = row = (1 << len(other)) - 1
    for word in one:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(other) - row.bit_count()


def ours(pages: list[str], verdicts: Counter[str]) -> Iterator[str]:
    from modelwright.core.events import Log
    from modelwright.core.record import Record
    from modelwright.core.stage import Run
    from modelwright.methods.steps import STEPS, Drop

    step: Any = STEPS.build({"kind": "main_content"})
    rows = (Record(str(number), text=page, meta={"media": "text/html"}) for number, page in enumerate(pages))
    for result in step.apply(rows, Run(Path(), {}, 0, Log(None))):
        verdicts[result.reason] += 1
        yield "" if isinstance(result, Drop) else result.record.text


def by_resiliparse(pages: list[str]) -> Iterator[str]:
    from resiliparse.extract.html2text import extract_plain_text

    return (extract_plain_text(page, main_content=True) for page in pages)


def by_trafilatura(pages: list[str], precise: bool) -> Iterator[str]:
    """`precise`: as FineWeb; else its fast way. It leaves out pieces that it has met on earlier pages; since the pages of a site
    share pieces, it forgets them here."""
    import trafilatura
    from trafilatura.deduplication import LRU_TEST

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    for page in pages:
        LRU_TEST.clear()
        options: dict[str, Any] = {"favor_precision": precise, "deduplicate": precise, "fast": not precise}
        yield trafilatura.extract(page, include_comments=False, **options) or ""


def main() -> dict[str, float]:
    """Print the table; returns our rate over theirs, and the scores."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks extract_vs_trafilatura")
    parser.add_argument("--frames", type=int, default=320, help="pages made here, of eight frames")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours and of trafilatura in turn; medians are told")
    given = parser.parse_args(sys.argv[2:])
    pages = [*documentation(), *(Page(f"frame: {frame}", *made) for frame, *made in _web_frames.pages(given.frames))]
    texts = [page.html for page in pages]
    size = sum(len(text.encode()) for text in texts) / 1e6
    verdicts: Counter[str] = Counter()
    ways: dict[str, Callable[[list[str]], Iterator[str]]] = {
        "modelwright": partial(ours, verdicts=verdicts),
        "trafilatura, FineWeb": partial(by_trafilatura, precise=True),
        "trafilatura, fast": partial(by_trafilatura, precise=False),
        "resiliparse": by_resiliparse,
    }
    found: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name in [*ways, *list(ways)[:2] * (given.repeats - 1)]:
        list(ways[name](texts[:2]))  # so that everything is loaded
        if name == "modelwright":
            verdicts.clear()
        start = time.process_time()
        found[name] = list(ways[name](texts))
        seconds[name].append(time.process_time() - start)
    return table(pages, found, {name: size / median(runs) for name, runs in seconds.items()}, verdicts)


def table(pages: list[Page], found: dict[str, list[str]], rates: dict[str, float], verdicts: Counter[str]) -> dict[str, float]:
    scores = {name: [score(text, page.label) for text, page in zip(texts, pages, strict=True)] for name, texts in found.items()}
    print(f"{len(pages)} pages, {sum(len(page.html.encode()) for page in pages) / 1e6:.1f} MB of HTML")
    for name, rate in rates.items():
        figures = " ".join(f"{value:.3f}" for value in means(scores[name]))
        print(f"{name:21} {rate:7.2f} MB/s   precision, recall, F1: {figures}")
    print(f"\n{'F1 of':18} pages  " + "  ".join(found))
    for group in sorted({page.group for page in pages}):
        here = [number for number, page in enumerate(pages) if page.group == group]
        figures = "  ".join(f"{means([own[i] for i in here]).f1:>{len(name)}.3f}" for name, own in scores.items())
        print(f"{group:18} {len(here):5}  {figures}")
    print("\nledger of ours: " + ", ".join(f"{reason}: {rows}" for reason, rows in sorted(verdicts.items())))
    first, peer, fast, bare = found
    f1 = {"f1": first, "f1_peer": peer, "f1_peer_fast": fast, "f1_resiliparse": bare}
    return {
        "speed": round(rates[first] / rates[peer], 1),
        "mb_per_s": round(rates[first], 2),
        "mb_per_s_peer": round(rates[peer], 3),
        **{key: round(means(scores[name]).f1, 4) for key, name in f1.items()},
    }


def means(scores: list[Score]) -> Score:
    return Score(*map(mean, zip(*scores, strict=True)))
