"""Memory of the parts of a training step that run otherwise on one processor than on another, or on a card: pure arithmetic over
what `nn/_attend_many.py`, `nn/logps.py` and `nn/gradients.py` take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelwright.core.processor import Processor

LANES, QUERIES, KEYS = 16, 64, 96
"""Of `nn/_attend_many.py`: what a head's width is a multiple of, and the sides of its blocks."""
CHUNK_BYTES, CHUNK_POSITIONS = 16 << 20, 192
"""Logits are made in chunks of at least so many bytes in float32 and positions (`nn/logps.py`), twice as many in 16 bits: large
enough for full matrix speed, small beside the activations, and each goes over the whole gradient of the head once. At 49,152
tokens of vocabulary and width 576 the loss of 4,096 positions took 10.7 s of processor time with 85 positions at once, 7.7 with
192, 7.4 with 512 (2-core Xeon, float32)."""
PIECE_BYTES = 4 << 20
"""Logits in float32 that a processor makes of a chunk in 16 bits at once: they stay in its cache meanwhile."""
SLICE_BYTES = 4 << 20
"""Of a gradient that a processor adds to at once, where its product is in 16 bits (`nn/gradients.py`)."""
CHUNK_VALUES = 1 << 14
"""Of the rows that a thread takes at once, and leaves sums of, where norms are kernels of our own (`nn/_pieces.py`)."""
_ROWS, _COLUMNS, _INNER, _ALIGNED_BYTES = 256, 64, 512, 1024
"""Sides of oneDNN's blocks: at most so many rows, so many columns, and once or twice so much of what is summed over."""


class Attention(NamedTuple):
    """How a packed row's attention runs where all of its tokens ask."""

    together: bool = False
    """As one kernel for all documents; else one by one, with masks where a window ends, and their results put together."""
    scratch: float = 0.0
    """Bytes that the kernel takes in the backward pass."""


ALONE = Attention()


class How(NamedTuple):
    """What runs otherwise here than elsewhere."""

    half: bool = False
    """Products in 16 bits."""
    card: bool = False
    flash: bool = False
    """The card has torch's flash attention, of products in 16 bits."""
    processor: Processor = Processor()
    threads: int = 1
    attention: Attention = ALONE
    """Of a layer whose tokens all ask."""

    @property
    def room(self) -> float:
        """Bytes that a product takes beside its result, for each value of that: a processor without products in bfloat16 sums
        them up in float32."""
        return 4.0 if self.half and not self.card and not self.processor.half else 0.0

    def product(self, rows: float, inner: float, columns: float, turned: bool = False) -> float:
        """Bytes that a product [rows, inner] @ [inner, columns] takes beside its result; `turned`: of a gradient's rows."""
        if not self.half or self.card:
            return 0.0
        if self.room:
            return self.room * rows * columns
        return self.threads * float(block_bytes(round(rows), round(inner), turned)) if rows and inner else 0.0

    def formed(self, outputs: float, inputs: float, tokens: float) -> float:
        """Bytes of adding a product to a weight's gradient: none in float32, else a slice of it, and on a processor the slice in
        float32 (`nn/workspaces.py`)."""
        if not self.half:
            return 0.0
        if self.card:
            return 2.0 * outputs * inputs
        rows = min(outputs, max(1.0, SLICE_BYTES // (4 * max(inputs, 1.0))))
        return 2.0 * rows * inputs + max(4.0 * rows * inputs, self.product(rows, tokens, inputs, True))

    @property
    def slopes(self) -> bool:
        """What lies between products is computed by kernels of our own, each in one pass."""
        return self.processor.pieces and not self.card

    def slope(self, rows: float, width: float) -> float:
        """Bytes that the backward pass of a norm takes."""
        if not self.slopes:
            return 12.0 * rows * width
        return 4.0 * rows * width * (1 + 1 / max(1, CHUNK_VALUES // width))


PLAIN = How()


def block_bytes(rows: int, inner: int, turned: bool) -> int:
    """Of one thread in a product in bfloat16 by hardware, within a quarter: blocks of both sides, the left one's where it lies
    `turned` over, and of their sums."""
    deep = inner if inner <= _INNER else min(inner // _INNER, 2) * _INNER
    high = -(-rows // -(-rows // _ROWS))
    return 2 * _COLUMNS * deep + 4 * _COLUMNS * high + 2 * high * deep * turned + _ALIGNED_BYTES


def attention_of(how: How, width: int, heads: float, kv_heads: float, texts: Sequence[tuple[float, float, float]]) -> Attention:
    """`texts`: (tokens, those of the text that it continues, number) of the documents. Flash attention is the kernel of cards."""
    number = sum(count for _, _, count in texts)
    if how.card:
        if not (how.half and how.flash and flash_takes(width)):
            return ALONE
        tokens, looked_at = (sum(count * (own + far * before) for own, before, count in texts) for far in (0, 1))
        return Attention(True, flash_bytes(tokens, number, heads, width, looked_at if kv_heads < heads else 0.0))
    if not (how.processor.dots if how.half else how.processor.wide) or width % LANES:
        return ALONE
    longest = max((tokens for tokens, _, _ in texts), default=0.0)
    return Attention(True, min(how.threads, number * kv_heads) * scratch_bytes(int(longest), width, how.half))


_FLASH_ROWS, _FLASH_LANES, _FLASH_WIDE = 128, 32, 192
"""Of flash attention: rows of a block, and what a head's width is rounded up to a multiple of, where it is no wider than that."""


def flash_takes(width: int) -> bool:
    """Whether it knows heads of this width."""
    return width <= 256 and width % 8 == 0


def flash_bytes(tokens: float, texts: float, heads: float, width: int, looked_at: float) -> float:
    """That flash attention's backward pass takes: gradients of queries in float32, a number for each row, and where heads share
    keys and values, gradients of these for every head (`looked_at`: of so many tokens)."""
    rounded = -(-width // _FLASH_LANES) * _FLASH_LANES if width <= _FLASH_WIDE else 256
    return 4 * heads * (tokens + _FLASH_ROWS * texts) * (rounded + 1) + 2 * 2 * looked_at * heads * width


def scratch_bytes(longest: int, width: int, half: bool) -> int:
    """Of one thread in the backward pass, with documents of at most so many tokens."""
    per = 2 if half else 1
    pairs, padded = -(-longest // per), -(-longest // QUERIES) * QUERIES
    blocks = QUERIES * ((4 if half else 2) * KEYS + width + 1)
    found = 4 * (width * (pairs + 4 * padded // per + 2 * longest + 2) + blocks + 2 * padded)
    return -(-found // 64) * 64


def chunk(vocab: float, positions: float, half: bool = False) -> tuple[float, float]:
    """(positions of a chunk of logits, chunks), as `nn/logps.py` cuts them."""
    return _parts(vocab, positions, max(CHUNK_BYTES, 4 * vocab * CHUNK_POSITIONS) * (2 if half else 1))


def _parts(vocab: float, positions: float, bytes_: float) -> tuple[float, float]:
    count = -(-positions // max(1, bytes_ // (4 * vocab)))
    return -(-positions // max(count, 1)), count


class Loss(NamedTuple):
    """Bytes of the loss at its two moments."""

    making: float
    """A chunk's logits are made, and of them their gradients."""
    back: float
    """These go through the head."""
    chunks: float


def loss_bytes(vocab: int, hidden: int, positions: float, how: How, rank: float = 0.0, frozen: bool = False) -> Loss:
    """Of the loss over so many positions: a chunk of logits whose gradients take their place, and in 16 bits its pieces in
    float32, of which the next is made before the last is let go, and the head's weights. `rank`: of an adapter beside the head;
    `frozen`: the head itself is."""
    size, chunks = chunk(vocab, positions, how.half)
    if not how.half:
        return Loss(4.0 * size * vocab, 4.0 * size * (vocab + hidden), chunks)
    of_piece, pieces = (size, 1.0) if how.card else _parts(vocab, size, PIECE_BYTES)
    piece, rows = 4.0 * of_piece * vocab, 2.0 * size * hidden
    always = 2.0 * vocab * (hidden + rank) + 2.0 * size * vocab + rows
    product = how.product(size, hidden, vocab) + piece * (chunks > 1)  # the last piece of the chunk before is still there
    making = max(product, piece * min(2.0, pieces * chunks))
    formed = 0.0 if frozen and not rank else how.formed(vocab, rank if frozen else hidden, size)
    back = piece + max(rows + how.product(size, vocab, hidden), formed)
    return Loss(always + making, always + back, chunks)
