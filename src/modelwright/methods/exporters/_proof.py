"""Two engines on the same texts: the same tokens, how much worse the second predicts, how often both answer the same.

Source: perplexity as the exponential of the mean negative log-likelihood over all tokens but each text's first (Jelinek et
al. 1977); llama.cpp judges its own quantisations by the rise of perplexity, too (tools/perplexity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.engines import Engine, Request, Sampling
from modelwright.methods.exporters import Evidence

_SCORED_TOKENS = 1024
"""Longest part of a text that is scored and longest prompt that is answered; enough, and it bounds the proof's time."""
PROBES = (
    'def total(items: list[int], *, start: int = 0) -> int:\n    """Sum."""\n    return start + sum(i**2 for i in items)\n',
    "if x != y and 3.14e-10 <= z:\r\n\traise ValueError(f\"{x!r} isn't {y:>08.3f}\")  # they'll've failed\n\n\n    \n",
    "    indented\t\ttabs   spaces  \n \n\n trailing   ",
    "12345 67 8 1,234.56 0xFF ½ ² Ⅷ ٣٤٥ १२३",
    "don't I'M you'RE we'll they'd 'tis o'clock",
    "Größe façade naïve coöperate Straße ŒUVRE ǅ ﬁ",
    "cafe\u0301 a\u0308\u0323 e\u200d\u0301 \u00a0\u2003\u2028x\u3000y\ufeffz",
    "日本語のテキスト、中文文本。한국어 텍스트 กขค ไทย",
    "العربية مع تَشْكِيل עברית नमस्ते தமிழ் Ελληνικά кириллица",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇯🇵 👍🏽 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f9d1\u200d\U0001f4bb",
    "∑∫√≠≤ → ⇒ ∀x∈ℝ: x²≥0 «quoted» „low“ – — … €£¥",
    "\x00\x01\x7f\x1b[31mred\x1b[0m",
    "a" * 300,
    " " * 70 + "x" + "\n" * 40 + "y",
    "https://example.org/a_b?c=d&e=%20#f user@host.tld C:\\temp\\x",
    "",
)
"""Texts in which tokenizers are known to differ: code, digits, white space, accents, scripts, emoji, control characters."""


def same_tokens(before: Engine, after: Engine, texts: Sequence[str], normalise: Callable[[str], str]) -> dict[str, int]:
    """Both engines' ids of every text must be equal; UserError names the first place where they are not.

    normalise: what the tokenizer does to a text first (NFC, …). llama.cpp does not, so texts are compared as
    they are after it; those that it changes are counted.
    """
    total = changed = 0
    for text in texts:
        plain = normalise(text)
        changed += plain != text
        wanted, got = before.encode(plain), after.encode(plain)
        if wanted != got:
            at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
            one, two = ([before.decode([token]) for token in tokens[at : at + 4]] for tokens in (wanted, got))
            raise UserError(
                "the exported model cuts text into other tokens than the trained one",
                f"after {before.decode(wanted[:at])[-40:]!r}: {one} became {two}",
                "train the vocabulary with `method: {kind: bpe}`; if it was, this is a bug: please report the text",
            )
        total += len(wanted)
    return {"texts": len(texts), "tokens": total, "tokens_equal": total, "texts_normalised": changed}


def predictions(before: Engine, after: Engine, evidence: Evidence, answer_tokens: int) -> dict[str, Any]:
    """Perplexity of both on the texts, and the share of greedy answers, and of their tokens, that are equal."""
    context = min(before.context, after.context, _SCORED_TOKENS)
    encoded = [before.encode(text) for text in evidence.texts]
    rows = [tokens[:context] for tokens in encoded if len(tokens) > 1]
    if not rows:
        raise UserError(
            "there is no text to compare predictions on",
            "every text of the proof has fewer than two tokens",
            "give `data` with longer rows",
        )
    one, two = before.score(rows), after.score(rows)
    low, high = _rise_between(
        [[a - b for a, b in zip(first, second, strict=True)] for first, second in zip(one, two, strict=True)]
    )
    flat = [(a, b) for first, second in zip(one, two, strict=True) for a, b in zip(first, second, strict=True)]
    found: dict[str, Any] = {
        "perplexity_before": math.exp(-math.fsum(a for a, _ in flat) / len(flat)),
        "perplexity_after": math.exp(-math.fsum(b for _, b in flat) / len(flat)),
        "perplexity_rise_low_frac": low,
        "perplexity_rise_high_frac": high,
        "scored_tokens": len(flat),
        "cut_tokens": sum(len(tokens) - context for tokens in encoded if len(tokens) > context),
        "logprob_difference_mean": math.fsum(abs(a - b) for a, b in flat) / len(flat),
    }
    prompts = [tokens for prompt in evidence.prompts if 0 < len(tokens := before.encode(prompt)) < context]
    if prompts:
        requests = [Request(tokens, Sampling(max_tokens=answer_tokens)) for tokens in prompts]
        pairs = list(zip(before.generate(requests), after.generate(requests), strict=True))
        equal = sum(_common(a.tokens, b.tokens) for a, b in pairs)
        found |= {
            "answers": len(pairs),
            "answers_equal_frac": sum(a.text == b.text for a, b in pairs) / len(pairs),
            "answer_tokens_equal_frac": equal / max(1, sum(max(len(a.tokens), len(b.tokens)) for a, b in pairs)),
        }
    found["prompts_left_out"] = len(evidence.prompts) - len(prompts)
    return found


def _rise_between(losses: list[list[float]]) -> tuple[float, float]:
    """The 95 % interval of the perplexity's rise, as fractions, from what each token of each text lost (nats). Tokens of one
    text are not independent: the error is that of a mean over clusters (Miller 2024, arXiv:2411.00640, section 2.2), and over
    tokens, as llama.cpp's perplexity program has it, where there is one text only."""
    groups = losses if len(losses) > 1 else [[loss] for loss in losses[0]]
    count = sum(map(len, losses))
    mean = math.fsum(map(math.fsum, losses)) / count
    spread = math.fsum((math.fsum(group) - mean * len(group)) ** 2 for group in groups)
    error = math.sqrt(spread * len(groups) / max(1, len(groups) - 1)) / count
    return math.expm1(mean - 1.96 * error), math.expm1(mean + 1.96 * error)


class Limits(NamedTuple):
    """What a format may cost."""

    rise: float
    """Of perplexity, as a fraction."""
    difference: float
    """Of the log-probabilities of the texts' tokens, mean of absolute values in nats."""


def judged(proof: dict[str, Any], limits: Limits, kind: str) -> dict[str, Any]:
    """The proof with its verdict; UserError where the export is worse than `limits` allow.

    Perplexity alone would not do: a model that knows little has it, whatever a converter got wrong.
    """
    rise = proof["perplexity_after"] / proof["perplexity_before"] - 1
    difference = proof["logprob_difference_mean"]
    perplexity = f"perplexity {proof['perplexity_after']:.4g} after {proof['perplexity_before']:.4g}"
    fix = "a type with more bits; where it is f32 or bf16 already, this is a bug: please report it"
    if not difference <= limits.difference:  # not-a-number, too
        raise UserError(
            f"the {kind} export does not predict what the model does: log-probabilities differ by {difference:.3g} nats a token",
            f"accepted are {limits.difference:g}; {perplexity}",
            fix + ", or a larger `format.max_logprob_difference` if you accept the loss",
        )
    if not rise <= limits.rise:
        raise UserError(
            f"the {kind} export predicts worse than the model: {perplexity}",
            f"a rise of {100 * rise:.3g} %, accepted are {100 * limits.rise:.3g} %",
            fix + ", or a larger `format.max_perplexity_rise` if you accept the loss",
        )
    return {**proof, "perplexity_rise_frac": rise, "limits": limits._asdict()}


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
