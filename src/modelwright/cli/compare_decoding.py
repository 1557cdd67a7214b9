"""`modelwright compare-decoding`: what several decoders make of one prompt, and what each of them spends on it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli import _model, _options
from modelwright.cli._output import check_place, write_page
from modelwright.core.errors import UserError
from modelwright.core.preview import visible

if TYPE_CHECKING:
    from modelwright.methods.decoders import Decoded, Decoder
    from modelwright.methods.engines import Completion, Engine
    from modelwright.report.decoding import Comparison, Strategy
    from modelwright.report.token_tree import Token

ABOUT = (
    "Let several decoders answer one prompt, side by side: each answer with the probability of its tokens and what it spent; "
    "and, as a page, the tree of tokens in which they part."
)
USUAL = ("greedy", "sample", "beam", "contrastive", "best_of_n")
SHADES = ("green", "bright_green", "yellow", "dark_orange", "red")
"""Colours of a token's probability, see `modelwright.report.decoding.LEVELS`."""


def options() -> argparse.ArgumentParser:
    parse = _options.parser("compare-decoding", ABOUT, recipe=False, json=False)
    parse.add_argument("model", help=_model.MODEL)
    parse.add_argument("prompt", help="a question where the model has a chat template, else a text to continue")
    _options.add_overrides(parse)
    parse.add_argument("--engine", help="native or llamacpp (default: the first that can open the model)")
    parse.add_argument(
        "--decoders",
        default="",
        metavar="A,B",
        help=f"kinds to compare (default: of {','.join(USUAL)} what the engine can)",
    )
    parse.add_argument(
        "--set", action="append", default=[], metavar="KIND.FIELD=VALUE", help="a field of one of them: beam.beams=8"
    )
    parse.add_argument("--tokens", type=int, default=48, metavar="N", help="longest answer (%(default)s)")
    parse.add_argument("--plain", action="store_true", help="continue the prompt as it stands, without the chat template")
    parse.add_argument("--deep", type=int, default=8, metavar="N", help="tokens of each answer in the tree (%(default)s)")
    parse.add_argument("--others", type=int, default=2, metavar="N", help="likely tokens beside them at each place (%(default)s)")
    parse.add_argument("--out", type=Path, metavar="FILE.html", help="write a page with the tree, too")
    return parse


def main(args: list[str]) -> int:
    parse = options()
    given = parse.parse_args(args)
    if given.tokens < 1 or given.deep < 1 or not 0 <= given.others <= 20:
        parse.error("--tokens and --deep take 1 or more, --others 0 to 20")
    check_place(given.out)
    decoders = _decoders(given)
    with _model.open_model(given) as (engine, name):
        from modelwright.report.decoding import Comparison

        if not given.decoders:
            lacking = {decoder.name: reason for decoder in decoders if (reason := decoder.lacks(engine.capabilities))}
            decoders = [decoder for decoder in decoders if decoder.name not in lacking]
            for reason in lacking.values():
                print(f"left out: {reason}, and this model's engine has it not", file=sys.stderr)
        found = Comparison(name, given.prompt, tuple(strategies_of(engine, given, decoders)))
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        _coloured(found)
    else:
        _plainly(found)
    if given.out:
        from modelwright.report.decoding import page

        write_page(given.out, page(found, given.deep, given.others))
        print(f"page: {given.out}")
    return 0


def _decoders(given: argparse.Namespace) -> list[Decoder]:
    """Those that the command line names, each with its fields."""
    import yaml
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    from modelwright.methods.decoders import DECODERS

    kinds = [kind.strip() for kind in given.decoders.split(",") if kind.strip()] or list(USUAL)
    trees: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in kinds}
    for text in given.set:
        path, equals, value = text.partition("=")
        kind, dot, field = path.partition(".")
        if not (equals and dot and kind in trees):
            raise UserError(f"--set {text}: not KIND.FIELD=VALUE of one of {', '.join(trees)}", fix="--set beam.beams=8")
        try:
            trees[kind][field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: no value", str(error), "--set beam.beams=8") from None
    found = []
    for kind, tree in trees.items():
        try:
            spec: Any = DECODERS.build(tree)
        except (ValidationError, PydanticCustomError) as error:
            raise UserError(f"the decoder {kind!r} cannot be made", _why(error)) from None
        found.append(spec)
    return found


def _why(error: Any) -> str:
    """The faults of its fields in words."""
    nested = (getattr(error, "context", None) or {}).get("errors", [])
    said = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for one in nested for fault in one.errors()]
    return "; ".join(said) or str(error)


def strategies_of(engine: Engine, given: argparse.Namespace, decoders: list[Decoder]) -> list[Strategy]:
    """Each decoder's answer. What one of them cannot do is refused before any begins."""
    from modelwright.methods.engines import Sampling, request_of

    for decoder in decoders:
        if reason := decoder.lacks(engine.capabilities):
            raise UserError(reason, "the engine of this model has it not", "leave it out of --decoders, or try --engine native")
    chat = "chat" in engine.capabilities and not given.plain
    tops = given.others + 1 if given.others and "logprobs" in engine.capabilities else 0
    asked: Any = [{"role": "user", "content": given.prompt}] if chat else given.prompt
    request = request_of(engine, asked, Sampling(given.tokens, top_logprobs=tops))
    return [_strategy(engine, decoder, list(request.tokens), decoder.run(engine, request)) for decoder in decoders]


def _strategy(engine: Engine, decoder: Decoder, prompt: list[int], done: Decoded) -> Strategy:
    from modelwright.report.decoding import Strategy

    best = done.completions[0]
    logprobs = list(best.logprobs)
    if not logprobs and best.tokens and "score" in engine.capabilities:  # some of its tokens are not the model's
        logprobs = engine.score([[*prompt, *best.tokens]])[0][len(prompt) - 1 :]
    settings = ", ".join(f"{name} {getattr(decoder, name)}" for name in sorted(decoder.model_fields_set - {"kind"}))
    mean = sum(logprobs) / len(logprobs) if logprobs else None
    given = best.text if best.tokens and best.text.strip() != engine.decode(best.tokens).strip() else ""
    return Strategy(
        decoder.name,
        settings,
        _tokens(engine, best, logprobs),
        given,
        best.finish,
        done.tokens_spent,
        mean,
        len(done.completions),
    )


def _tokens(engine: Engine, best: Completion, logprobs: list[float]) -> tuple[Token, ...]:
    from modelwright.report.token_tree import Token

    if not best.tokens:  # a server that tells none
        return (Token(-1, best.text, None),)
    found, before, last = [], "", len(best.tokens) - 1
    for place, token in enumerate(best.tokens):
        whole, text = engine.decode(best.tokens[: place + 1]), ""
        if not whole.endswith("\ufffd") or place == last:  # else a character that later tokens make whole
            text, before = whole.removeprefix(before), whole
        others = tuple((other, _name(engine, other), math.exp(logp)) for other, logp in (best.top[place] if best.top else ()))
        likely = math.exp(logprobs[place]) if logprobs else None
        found.append(Token(token, text, likely, others, _name(engine, token)))
    return tuple(found)


def _name(engine: Engine, token: int) -> str:
    """Its text; of a part of a character, which has none of its own, its bytes."""
    text = engine.decode([token])
    return f"‹{engine.spell([token])[0].hex(' ')}›" if "\ufffd" in text else text


def _lines(found: Comparison) -> Iterator[tuple[Strategy, str]]:
    """Each strategy with what is said of it."""
    for one in found.strategies:
        likely = f", {one.logprob:.3f} nats a token" if one.logprob is not None else ""
        many = f", the best of {one.answers}" if one.answers > 1 else ""
        ended = "ended by itself" if one.finish == "stop" else "cut at its length"
        settings = f" ({one.settings})" if one.settings else ""
        yield (
            one,
            f"{one.name}{settings}: {one.tokens_spent} tokens spent, {len(one.tokens)} in the answer{many}{likely}, {ended}",
        )


def _plainly(found: Comparison) -> None:
    for one, line in _lines(found):
        print(f"{line}\n{visible(''.join(token.text for token in one.tokens))}")
        if one.given:
            print(f"given as the answer: {visible(one.given)}")
        print()


def _coloured(found: Comparison) -> None:
    from rich.console import Console
    from rich.text import Text

    from modelwright.report.decoding import LEVELS, level

    console = Console(highlight=False, soft_wrap=True)
    legend = Text("probability of a token: ", "dim")
    for least, shade in zip(LEVELS, SHADES, strict=True):
        legend.append(f"at least {100 * least:g} %" if least else "less", shade).append("  ")
    console.print(legend)
    for one, line in _lines(found):
        console.print()
        console.rule(Text(line, "bold"), align="left", style="dim")
        shown = Text()
        for token in one.tokens:
            likely = level(token)
            shown.append(visible(token.text), "" if likely is None else SHADES[likely])
        console.print(shown)
        if one.given:
            console.print(Text("given as the answer: ", "dim").append(visible(one.given), "not dim"))
