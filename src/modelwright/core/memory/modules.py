"""Memory of a forward and a backward pass through transformers' own modules, moment by moment: pure arithmetic.

Autograd keeps what each operation's derivative needs: beside the stream, what norms have before their gain, the MLP's steps, the
inputs of matrices that are trained, and under bf16 (torch's autocast) a cast of every matrix and of every input of one. Experts
run in float32 (torch's grouped product knows no autocast). Counted as in `core/memory/own.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from modelwright.core.estimate import Shape
from modelwright.core.memory.kernels import PLAIN, How
from modelwright.core.memory.own import Sides, Work, looked_at, mask_bytes
from modelwright.core.memory.weights import total, weights_of


class Beside(Protocol):
    """What the account asks of an adapter (`methods.adapters.Adapter`)."""

    def kept_bytes(self, inputs: float, readers: int, half: bool) -> float:
        """That a token leaves for matrices that read the same `inputs` values and have the adapter beside them."""
        ...

    def noise_bytes(self, inputs: float) -> float:
        """Of these, what is kept only where the inputs have a gradient: the noise of dropout before one matrix."""
        ...


class Trains(NamedTuple):
    """Which matrices of a layer have a gradient, or something beside them that has."""

    attention: bool = True
    mlp: bool = True
    beside: Beside | None = None
    """None: the weights themselves."""

    def inputs(self, values: float, readers: int, half: bool) -> float:
        """Of matrices that read the same rows: one copy of these, or under bf16 one for each that reads."""
        if self.beside is not None:
            return self.beside.kept_bytes(values, readers, half)
        return values * (2.0 * readers if half else 4.0)


def kept(shape: Shape, sides: Sides, work: Work, trains: Trains, windowed: bool, how: How = PLAIN) -> float:
    """What a layer keeps for its backward pass."""
    width, half, fused, together = sides.width, sides.size == 2.0, shape.both_ways, how.attention.together
    of_token = 2 * 4.0 * width + _norms(shape, sides, trains) + _attention(shape, sides, trains, how.card or not together)
    if trains.attention:
        of_token += trains.inputs(width, 1 if fused else 3, half) + _attended(sides, trains, work, together)
    if shape.experts:
        of_token += _experts(shape, sides, half)
    else:
        of_token += 3 * sides.size * sides.wide
        if trains.mlp:
            of_token += trains.inputs(width, 1 if fused else 2, half) + _product(sides, trains)
    masks = 0.0 if together else sum(t.number * mask_bytes(shape, t, windowed, t.tokens, sides.size) for t in work.texts)
    return work.tokens * of_token + masks + 2 * sides.size * looked_at(sides, work, how.card, together)


def _norms(shape: Shape, sides: Sides, trains: Trains) -> float:
    """What they have before a gain that is trained, and what goes into those of attention's and the MLP's results."""
    gains = 0.0 if shape.both_ways or trains.beside is not None else 4.0 * sides.width * shape.norms
    return gains + 4.0 * sides.width * (shape.norms - 2) + 4.0 * shape.norms


def _attention(shape: Shape, sides: Sides, trains: Trains, whole: bool) -> float:
    """But for the keys and values that are looked at. `whole`: kernels take parts of a product as they lie in it."""
    found = sides.size * 2 * sides.queries + 4 * sides.heads
    if shape.both_ways and whole:  # one product gives all three
        found += sides.size * (sides.queries + sides.keys)
    if shape.qk_norm:
        found += (sides.queries + sides.keys) * (4.0 + (sides.size if trains.beside is None else 0.0))
    return found


def _attended(sides: Sides, trains: Trains, work: Work, together: bool) -> float:
    """Input of the matrix behind attention: of one text, or where one kernel gives it, it is what attention itself keeps."""
    own = together or sum(text.number for text in work.texts) <= 1
    if trains.beside is not None:
        copied = sides.size == 2.0 or trains.beside.noise_bytes(sides.queries) > 0
        kept_bytes = trains.beside.kept_bytes(sides.queries, 1, sides.size == 2.0)
        return kept_bytes - (0.0 if copied or not own else 4.0 * sides.queries)
    return 0.0 if own else sides.size * sides.queries


def _product(sides: Sides, trains: Trains) -> float:
    if trains.beside is not None:
        return trains.beside.kept_bytes(sides.wide, 1, sides.size == 2.0)
    return sides.size * sides.wide


def _experts(shape: Shape, sides: Sides, half: bool) -> float:
    """Rows of a token for each of its experts, before and behind each product, and what routers tell and sort."""
    rows = shape.experts_per_token * 4.0 * (2 * sides.width + 4 * sides.wide)
    return sides.width * (2.0 if half else 4.0) + rows + 12.0 * shape.experts + 40.0 * shape.experts_per_token


def casts(shape: Shape) -> float:
    """Of all matrices of the layers, in 16 bits."""
    return 2.0 * total(weight for weight in weights_of(shape) if weight.place in ("attention", "mlp"))


def backward(shape: Shape, sides: Sides, work: Work, trains: Trains, how: How, again: bool = False) -> list[tuple[str, float]]:
    """(moment, bytes) in the backward pass of a layer, beside what it keeps; `again`: after it was computed a second time."""
    tokens, size = work.tokens, sides.size
    row, mlp = 4 * tokens * sides.width, size * tokens * sides.wide
    if shape.experts:
        taken = tokens * shape.experts_per_token * 4.0
        matrices = 4.0 * shape.experts * sides.width * sides.wide
        return [
            ("the backward pass of the experts' shares", row + 3 * taken * sides.width),
            ("the experts' gate backward", row + taken * (2 * sides.wide - sides.width)),
            ("the experts' first gradient", row + taken * sides.wide + matrices),
            ("the experts' last gradient", row + 2 * matrices - 2 * taken * sides.wide),
        ]
    matrix = sides.width * sides.wide * (4.0 if size == 4 else 6.0) * (trains.beside is None)
    product = tokens * _product(sides, trains) if trains.mlp else 0.0
    formed = max(matrix, how.product(tokens, sides.width, sides.wide))
    found = [
        ("the MLP's last product backward", row + mlp + formed + (row / 2 if size == 2 else 0.0)),
        ("the MLP's gate backward", row + 3 * mlp - product),
    ]
    if trains.beside is None:
        return found
    noise, result = trains.beside.noise_bytes(sides.wide), how.product(tokens, sides.wide, sides.width)
    whole = 4 * tokens * sides.wide if size == 2 else 0.0  # the product in float32, as the adapter reads it
    if again:  # while the gradient waits that asked for it
        rows = (2 + (shape.norms == 2) + size / 4) * row
        noisy = 4 * tokens * sides.wide if noise else 0.0
        found.append(("the MLP's last product, computed again,", rows + mlp * (size == 2) + whole + noisy + result))
    elif noise:  # the product is there beside what is made of it; noise is in float32, and so are its product and the input
        found.append(("the MLP's last product", 5 * row + mlp + whole + row * (size == 2) + result))
    return found


# --- encoder-decoders --------------------------------------------------------------------------------------------


class Halves(NamedTuple):
    """What both halves of an encoder-decoder keep."""

    layers: float
    always: float
    first: float
    """At the beginning of the backward pass: gradients of what is read and what is written, taken apart."""
    again: float
    """In the backward pass of a layer that is computed again, and holds all that it keeps then; 0 where none is."""


def halves(shape: Shape, sides: Sides, work: Work, trains: Trains, full: bool) -> Halves:
    """T5: scores are kept, since a bias that is trained is added to them, and are in float32 with what makes them; GELU by its
    formula keeps seven rows of the MLP."""
    read, written = (sum(text.number * text.tokens for text in work.texts if bool(text.before) == late) for late in (False, True))
    squares = [sum(text.number * text.tokens**2 for text in work.texts if bool(text.before) == late) for late in (False, True)]
    width, size, half = sides.width, sides.size, sides.size == 2.0
    row, gain = 4.0 * width, 4.0 * width if trains.beside is None else 0.0
    product = _product(sides, trains) if trains.mlp else 0.0
    mlp = 6 * size * sides.wide + product + (trains.inputs(width, 2, half) if trains.mlp else 0.0)

    def inputs(readers: int) -> float:
        return trains.inputs(width, readers, half) if trains.attention else 0.0

    attended = size * sides.queries * trains.attention
    own = 3 * 4.0 * sides.queries + inputs(3) + attended
    asked = 2 * size * sides.queries + 4 * sides.heads + inputs(1) + attended
    given = 2 * size * sides.queries + (inputs(2) if half else 0.0)
    reads = read * (2 * row + 2 * gain + own + mlp) + 4 * sides.heads * squares[0]
    writes = written * (3 * row + 3 * gain + own + asked + mlp) + 4 * sides.heads * squares[1] + read * given
    layers, again = shape.layers * reads + shape.decoder_layers * writes, 0.0
    distinct = sum({text.tokens**2 for text in work.texts})
    if full:
        layers = (shape.layers * read + shape.decoder_layers * written) * row
        biases = 2 * 4 * sides.heads * distinct
        again = reads - 2 * read * row - shape.decoder_layers * written * row
        # what lay behind the encoder has gone
        again += biases + read * (row + 3 * size * sides.wide - product) - (read * (gain + row) + written * (row + gain))
    always = read * (row + gain + row * (not half)) + written * (row + gain) + 8.0 * distinct
    return Halves(layers, always, 2 * row * (read + written), again)
