"""Memory of a forward and a backward pass through our own layers (`nn/forward.py`), moment by moment: pure arithmetic.

What a layer keeps for its backward pass, and what the largest operations need beside it, are read off that file tensor by tensor;
`benchmarks/plan_closed_form.py` holds the sums against counted bytes. Every layer keeps as much as any other and gradients are
where they were after the last step, so the peak is in the forward or backward pass of one of the last two layers, in the loss, or
in the step.
"""

from __future__ import annotations

from typing import NamedTuple

from modelwright.core.estimate import Shape
from modelwright.core.memory.kernels import PLAIN, How
from modelwright.core.memory.weights import head_width

MOST_WANTED = 0.8
"""Share of positions in the loss from which on the last layer runs for all tokens (`nn/model.py`)."""


class Texts(NamedTuple):
    """Texts of one sort in a micro-batch."""

    tokens: float
    wanted: float
    """Positions of each where the loss looks."""
    targets: float
    """Predictions of each; several may be made at one position."""
    before: float = 0.0
    """Tokens of the text that it continues, which is computed once."""
    number: float = 1.0


class Work(NamedTuple):
    """A micro-batch."""

    texts: tuple[Texts, ...]
    later: bool = False
    """It is not the first of its step: what the loss of the one before it holds is freed only when its own is there."""
    of_step: int = 1
    """Micro-batches of the step."""

    def shared(self, processes: int) -> Work:
        """What each of so many processes computes of it, where they share the tokens of every text."""
        if processes == 1:
            return self
        texts = [
            text._replace(**{name: getattr(text, name) / processes for name in ("tokens", "wanted", "targets")})
            for text in self.texts
        ]
        return self._replace(texts=tuple(texts))

    @property
    def tokens(self) -> float:
        return sum(text.number * text.tokens for text in self.texts)

    @property
    def wanted(self) -> float:
        return sum(text.number * text.wanted for text in self.texts)

    @property
    def targets(self) -> float:
        return sum(text.number * text.targets for text in self.texts)

    @property
    def branched(self) -> bool:
        """Some texts continue others."""
        return any(text.before for text in self.texts)

    @property
    def few(self) -> bool:
        """The last layer runs for the wanted positions alone."""
        return 0 < self.wanted < MOST_WANTED * self.tokens


class Moment(NamedTuple):
    """Bytes beside weights, gradients and states."""

    name: str
    activations: float
    """Kept for the backward pass."""
    working: float
    """Of what is computed at that moment."""
    logits: float = 0.0
    formed: float = 0.0
    """Share of the gradients of a layer that are there, where they are freed at once (`step_in_backward`)."""
    head: float = 1.0
    """The same of the head's gradient."""


class Sides(NamedTuple):
    """Sizes of a layer as formulas name them."""

    width: float
    queries: float
    keys: float
    heads: float
    wide: float
    """Of the MLP."""
    size: float
    """Bytes of a value in matrix products."""

    @staticmethod
    def of(shape: Shape, half: bool, parts: int = 1) -> Sides:
        """`parts`: processes that share the heads and the MLP's columns."""
        width = head_width(shape)
        return Sides(
            shape.hidden,
            width * shape.heads / parts,
            width * shape.kv_heads / parts,
            shape.heads / parts,
            shape.intermediate / parts,
            2.0 if half else 4.0,
        )


def mask_bytes(shape: Shape, texts: Texts, windowed: bool, asked: float, size: float) -> float:
    """Of the mask of each of these texts, as attention takes it; 0 where it needs none."""
    seen = texts.before + texts.tokens
    if asked == texts.tokens and not texts.before and not (windowed and texts.tokens > shape.window):
        return 0.0
    return asked * seen * size


def looked_at(sides: Sides, work: Work, card: bool, together: bool) -> float:
    """Values of keys, or of values, that attention keeps: those of a text's own chain where it continues another, and where a
    card's kernel for one text runs, a copy for every head that asks (`nn/attention.py`)."""
    chains = sum(text.number * (text.before + text.tokens) for text in work.texts)
    if card and (together or sides.queries > sides.keys):
        return chains * (sides.keys if together else sides.queries)
    return sides.keys * (work.tokens + sum(text.number * (text.before + text.tokens) for text in work.texts if text.before))


def turns(shape: Shape, sides: Sides, work: Work, size: float, how: How = PLAIN) -> float:
    """What all layers share: cosines and sines of the positions, and who sees whom where attention is told so."""
    kinds = 2 if 0 < shape.windowed_layers < shape.layers and (shape.norms > 2 or shape.both_ways) else 1
    masks = sum(text.number * mask_bytes(shape, text, shape.windowed_layers > 0, text.tokens, 1.0) for text in work.texts)
    return 2 * size * work.tokens * kinds * sides.queries / sides.heads + (0.0 if how.attention.together else masks)


def kept(shape: Shape, sides: Sides, work: Work, few: bool, windowed: bool, how: How = PLAIN) -> tuple[float, float]:
    """What a layer keeps: (all of it, what is still there when attention goes back). `few`: it is the last one, and runs for
    the wanted positions alone, document by document."""
    together = how.attention.together and not few
    tokens, size = work.tokens, sides.size
    asked = work.wanted if few else tokens
    before = 4 * tokens * (sides.width + 1) + (2 * size * asked * sides.queries / sides.heads if few else 0.0)
    if shape.qk_norm:
        before += size * (asked * sides.queries + tokens * sides.keys)
        before += 4 * (asked + tokens * sides.keys / sides.queries) * sides.heads
    before += size * (asked * sides.queries + 2 * looked_at(sides, work, how.card, together)) + 4 * asked * sides.heads
    before += size * asked * sides.queries
    pieces = 0.0
    for texts in work.texts:
        if not few or texts.wanted:
            pieces += texts.number
        if (not few or texts.wanted) and not together:
            before += texts.number * mask_bytes(shape, texts, windowed, texts.wanted if few else texts.tokens, size)
    after = 4 * asked * (sides.width + 1) + 2 * size * asked * sides.wide
    if pieces > 1 and not together:
        after += size * asked * sides.queries
    if shape.norms > 2:
        after += 2 * (size * asked * sides.width + 4 * asked)
    return before + after, before


def backward(
    shape: Shape, sides: Sides, work: Work, few: bool, how: How, ranks: tuple[float, float] | None
) -> list[tuple[str, float, float]]:
    """(moment, bytes, share of the layer's gradients that are there) in the backward pass of a layer, beside what it keeps.
    `ranks`: of what an adapter puts beside attention's and the MLP's matrices; None: the matrices themselves are trained."""
    asked = work.wanted if few else work.tokens
    half, share = sides.size == 2.0, 1 / 4 if ranks is None else 0.0
    size, row, mlp = sides.size, asked * sides.width, sides.size * asked * sides.wide
    beside_attention, beside_mlp = (2 * size * asked * rank for rank in ranks or (0.0, 0.0))
    outer = shape.norms > 2  # what attention and the MLP add is normed, too
    norm, (attention, mlps) = how.slope(asked, sides.width), ranks or (None, None)
    cast = 2 * sides.width * sides.wide * half
    down = cast + _matrix(how, sides.width, sides.wide, asked, mlps)
    up = cast + _matrix(how, sides.wide, sides.width, asked, mlps)
    arrives = 4 * row + (2 * row if half else 4 * row * outer)
    middle = arrives + 2 * mlp + 2 * size * row
    out = 2 * row * half + size * asked * sides.queries + beside_attention + 2 * sides.width * sides.queries * half
    out += _matrix(how, sides.width, sides.queries, asked, attention)
    last = max(norm, 4 * row + out) if outer else out
    # kernels of our own make both slopes at once, when the product has gone
    first = max(2 * mlp + down, 3 * mlp) if how.slopes else 3 * mlp + down
    return [
        ("the MLP's backward pass", arrives + first + beside_mlp, share),
        ("the backward pass of the MLP's first products", middle + up + beside_mlp, 3 * share),
        ("the backward pass of the norm before the MLP", middle + norm, 3 * share),
        ("the backward pass of attention's output", middle + 4 * row + last, 3 * share),
    ]


def _matrix(how: How, outputs: float, inputs: float, asked: float, rank: float | None) -> float:
    """Of a matrix's backward pass, what products take beside their results, and its gradient, or that of an adapter's two."""
    sides = ((outputs, inputs),) if rank is None else ((outputs, rank), (rank, inputs))
    return max([how.product(asked, outputs, inputs), *(how.formed(*of, asked) for of in sides if all(of))])


def attention_backward(sides: Sides, work: Work, few: bool, how: How = PLAIN) -> float:
    """Gradients of queries, keys and values behind that of what attention gave: once where one kernel makes them, else document
    by document and then whole."""
    tokens = work.tokens
    asked = work.wanted if few else tokens
    stream, keys = 4 * asked * sides.width, 2 * tokens * sides.keys
    if how.attention.together and not few:
        return stream + sides.size * (2 * asked * sides.queries + keys) + how.attention.scratch
    return stream + sides.size * (3 * asked * sides.queries + keys)


def entrance_backward(sides: Sides, work: Work, few: bool, how: How = PLAIN) -> float:
    """The norm before attention, which runs for all tokens, with what enters it; gradients of queries, keys and values are there
    twice where they came document by document, as they came and in order."""
    row = work.tokens * sides.width
    asked = work.wanted if few else work.tokens
    came = sides.size * (asked * sides.queries + 2 * work.tokens * sides.keys) * (1 if how.attention.together and not few else 2)
    return 4 * (row + work.tokens) + 4 * row + came + 2 * sides.size * row + how.slope(work.tokens, sides.width)
