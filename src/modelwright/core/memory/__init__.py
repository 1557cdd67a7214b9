"""Memory of training: bytes by part at the moment when most are in use, by arithmetic over shapes alone.

A training holds weights, gradients and an optimizer's states all the time, and beside them, moment by moment, what forward and
backward passes, the loss and the step need. The account is the largest of the named moments; `plan --exact` counts the same bytes
operation by operation. In 32 bits but for products in bf16, as `nn/loop.py` trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

from modelwright.core.estimate import Part, Shape
from modelwright.core.memory import modules, spread
from modelwright.core.memory import own as ours
from modelwright.core.memory.kernels import How, attention_of, loss_bytes
from modelwright.core.memory.modules import Beside
from modelwright.core.memory.own import Moment, Sides, Texts, Work
from modelwright.core.memory.weights import Place, Weight, head_width, total
from modelwright.core.parallel import Parallel
from modelwright.core.processor import Processor
from modelwright.core.units import count_text

Asks = Literal["cross_entropy", "logps", "scores", "vectors"]
"""What an objective asks of the model: a loss formed with the logits, log-probabilities, or none over the vocabulary."""


class Stepper(Protocol):
    """What the account asks of an optimizer (`methods.optimizers.Optimizer`)."""

    elementwise: ClassVar[bool]

    def state_bytes(self, weight: Weight) -> float:
        """Kept between steps for one tensor of this shape."""
        ...

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        """Most that a step over these needs beside weights, gradients and states; `card`: not on a processor."""
        ...


class Training(NamedTuple):
    """What the memory of a training depends on."""

    shape: Shape
    work: Work
    trained: Sequence[Weight]
    """All weights with a gradient: the model's, or an adapter's, and what an objective adds."""
    optimizer: Stepper
    frozen: Sequence[Weight] = ()
    """Weights without a gradient."""
    half: bool = False
    """Products in 16 bits."""
    own: bool = True
    """Our own forward pass runs it, not transformers' modules."""
    full: bool = False
    """Layers are computed again in the backward pass."""
    asks: Asks = "cross_entropy"
    averaged: bool = False
    """A moving average of the trained weights is kept."""
    swapped: int = 0
    """Copies of the trained weights while averages are in the model and validation runs."""
    validated: bool = False
    """The loss is measured while training."""
    step_in_backward: bool = False
    beside: Beside | None = None
    """The adapter, where there is one."""
    ahead: float = 0.0
    """Heads that guess further ahead than the next token."""
    card: bool = False
    """It runs on a graphics card."""
    flash: bool = False
    """That has torch's flash attention."""
    processor: Processor = Processor()
    """That it runs on where it runs on no card."""
    threads: int = 1
    """Of that."""
    offload: Sequence[str] = ()
    """What lies in the processor's memory while the card does not use it."""
    parallel: Parallel = Parallel()
    last: bool = True
    """Of the processes of a pipeline, the one that computes the loss; else the first."""

    @property
    def owned(self) -> bool:
        """Each weight lies in parts on several processes, and one of them steps it."""
        return not self.optimizer.elementwise and spread.owners(self.parallel) > 1

    @property
    def how(self) -> How:
        """Which kernels run. Branches under a shared text have one of their own on cards alone."""
        found, branched = How(self.half, self.card, self.flash, self.processor, self.threads), self.work.branched
        if self.parallel.context > 1 or (branched and not self.card):
            return found
        heads, kv_heads = (number / self.parallel.tensor for number in (self.shape.heads, self.shape.kv_heads))
        texts = [(text.tokens, text.before, text.number) for text in self.work.texts]
        return found._replace(attention=attention_of(found, head_width(self.shape), heads, kv_heads, texts))


class Account(NamedTuple):
    """The bytes in use at the largest moment."""

    moment: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)


# --- what a token leaves, and how many are computed at once ------------------------------------------------------


def activation_bytes(shape: Shape, half: bool, own: bool = True, full: bool = False) -> float:
    """Bytes that a token of rows of 512 leaves for the backward pass, where all weights are trained. `full`: layers are computed
    again, one at a time, so that all but one leave only what enters them. `own`: our own forward pass runs it, which keeps about
    half as much as transformers' modules."""
    sides, trains = Sides.of(shape, half), modules.Trains()
    if shape.decoder_layers:  # a fifth of the tokens is written
        both = modules.halves(shape, sides, Work((Texts(410, 0, 0), Texts(102, 102, 102, before=410))), trains, full)
        return (both.layers + both.again) / 512
    work = Work((Texts(512, 511, 511, number=2),))
    layer = ours.kept(shape, sides, work, False, False)[0] if own else modules.kept(shape, sides, work, trains, False)
    return (shape.layers * 4.0 * shape.hidden if full else (shape.layers - 1) * layer / 1024) + layer / 1024


ROOM_BYTES, HALF_ROOM_BYTES = 0.9e9, 0.7e9
"""For activations of a micro-batch, in 32 bits and in 16: larger ones are no faster on a processor."""


def micro_tokens(
    shape: Shape, batch_tokens: int, half: bool, own: bool = True, full: bool = False, room_bytes: float = 0.0
) -> int:
    """Tokens of a micro-batch whose activations take about `room_bytes` (0: as much as a processor makes use of), at least 256:
    fewer make matrix products slow (135M weights, 2 cores: a step of 1,100 tokens is 7 % faster at once than in two halves)."""
    room_bytes = room_bytes or (HALF_ROOM_BYTES if half else ROOM_BYTES)
    return int(min(batch_tokens, max(256, room_bytes / activation_bytes(shape, half, own, full) // 64 * 64)))


def state_bytes(params: float, gradients: float, trained: float, of_each: float) -> float:
    """Weights and gradients in float32, and what an optimizer keeps `of_each` weight that is trained."""
    return (params + gradients) * 4.0 + trained * of_each


def state_of_each(params: float, gradients: float, trained: float, state_bytes_per_param: float, parallel: Parallel) -> float:
    """What one of several processes holds of them, about: as if all of a model were layers."""
    shares = spread.Shares.of(parallel)
    found = 4.0 * (params * shares.weights + gradients * shares.gradients + trained * shares.copy)
    return (found + trained * state_bytes_per_param * shares.states) / (parallel.tensor * parallel.pipeline)


# --- the account -------------------------------------------------------------------------------------------------


def training_account(training: Training) -> Account:
    """The largest moment of a training, on the process that holds most."""
    ends = (True, False) if training.parallel.pipeline > 1 else (True,)
    accounts = [account for last in ends for account in _accounts(training._replace(last=last))]
    return max(accounts, key=lambda account: account.bytes)


def _accounts(training: Training) -> list[Account]:
    parallel, layers = training.parallel, training.shape.layers
    trained, frozen = (spread.of_process(weights, parallel, layers) for weights in (training.trained, training.frozen))
    training = training._replace(trained=trained, frozen=frozen, work=training.work.shared(parallel.context))
    held = _held(training)
    return [_with(training, held, moment) for moment in _moments(training)]


def _held(training: Training) -> list[Part]:
    """There all the time."""
    trained, frozen = total(training.trained), total(training.frozen)
    shares = spread.Shares.of(training.parallel)
    states = [(weight.number, training.optimizer.state_bytes(weight)) for weight in training.trained]
    kept = sum(number * size for number, size in states) * shares.states
    if "states" in training.offload:
        kept = max((size for _, size in states), default=0.0)
    if training.owned:
        kept = max([kept, *(size for _, size in states)])
    found = [Part("weights", 4.0 * (trained + frozen) * shares.weights, f"{count_text(trained + frozen)} in float32")]
    if not training.step_in_backward:
        found.append(Part("gradients", 4.0 * trained * shares.gradients, f"of {count_text(trained)} weights, in float32"))
    found.append(Part("optimizer", kept + 4.0 * trained * shares.copy, f"states of {count_text(trained)} weights"))
    if training.averaged:
        found.append(Part("average", 4.0 * trained * shares.weights, "a moving average of what is trained"))
    whole = spread.gathered_bytes(training.trained, training.frozen, training.parallel, training.shape.layers)
    if whole:
        found.append(Part("gathered", whole, "weights of the layer at work and the next, and of all that is in no layer"))
    work = training.work
    found.append(Part("batch", 8.0 * work.tokens + 32.0 * work.targets, "token ids, places and targets"))
    return found


def _with(training: Training, held: Sequence[Part], moment: Moment) -> Account:
    work = training.work
    parts = list(held)
    if training.step_in_backward:
        parts.append(Part("gradients", _early(training, moment), "of the tables, and of one layer at a time"))
    more = [
        Part("activations", moment.activations, f"what {count_text(work.tokens)} tokens leave for the backward pass"),
        Part("logits", moment.logits, f"chunks of logits of {count_text(work.targets)} predictions"),
        Part("working", moment.working, f"at the peak, {moment.name}"),
    ]
    return Account(moment.name, tuple(parts + [part for part in more if part.bytes]))


def _early(training: Training, moment: Moment) -> float:
    """Gradients that exist where each is freed once its weight is stepped: the head's, and those of a layer as they come."""
    head: Place = "table" if training.shape.tied and not training.frozen else "head"
    heads = total(weight for weight in training.trained if weight.place == head)
    layers = total(weight for weight in training.trained if weight.place not in ("table", "head", "last"))
    return 4.0 * (moment.head * heads + moment.formed * layers / (training.shape.layers + training.shape.decoder_layers))


def _moments(training: Training) -> list[Moment]:
    parallel = training.parallel
    divided = parallel.shard > 1 and parallel.zero != 1  # then transformers' modules run
    found = _own(training) if training.own and not divided else _modules(training)
    if training.step_in_backward and not training.shape.tied:
        table = 4.0 * training.shape.vocab * training.shape.hidden
        found.append(Moment("the embeddings' backward pass", 0.0, table + 4.0 * training.work.tokens * training.shape.hidden))
    alone = training.step_in_backward or "states" in training.offload  # weight by weight
    stepped = [[weight._replace(number=1)] for weight in training.trained] if alone else [training.trained]
    step = max((training.optimizer.step_bytes(some, training.card) for some in stepped), default=0.0)
    if training.owned:
        step = spread.owned_bytes(training.trained, parallel, lambda some: training.optimizer.step_bytes(some, training.card))
    found.append(Moment("the optimizer's step", 0.0, step, formed=1.0))
    if summed := spread.summed_bytes(training.trained, parallel):
        found.append(Moment("gradients are summed over processes", 0.0, summed, formed=1.0))
    if training.swapped:
        copies = 4.0 * training.swapped * total(training.trained)
        held = copies + (_forward(training) if training.validated else 0.0)
        if not training.averaged:  # an optimizer's average is computed weight by weight, from the table to the head
            largest = sorted((4.0 * weight.values for weight in training.trained), reverse=True)
            heads = 4.0 * total(weight for weight in training.trained if weight.place == "head")
            held = max(held, copies + heads, sum(largest[:1]) * 2 + sum(largest[1:2]))
        found.append(Moment("validation of the average", 0.0, held))
    return found


def _own(training: Training) -> list[Moment]:
    """In our own forward pass."""
    work, half, parallel = training.work, training.half, training.parallel
    deep = -(-training.shape.layers // parallel.pipeline)
    shape = training.shape.model_copy(update={"layers": deep})
    few = work.few and training.last
    sides, windowed = Sides.of(shape, half, parallel.tensor), min(shape.windowed_layers, shape.layers)
    how = training.how
    enters, asked = 4 * work.tokens * sides.width, work.wanted if few else work.tokens
    # the last layer sees everything, where any does
    last_windowed = windowed == shape.layers
    before = [True] * (windowed - last_windowed) + [False] * (shape.layers - 1 - windowed + last_windowed)
    plain, window = (ours.kept(shape, sides, work, False, seen, how) for seen in (False, True))
    below = [enters if training.full else (window if seen else plain)[0] for seen in before]
    last = ours.kept(shape, sides, work, few, last_windowed, how)
    always = ours.turns(shape, sides, work, sides.size, how)
    rows = asked * (4 * sides.width + 4)
    ranks = (_rank(training, "attention"), _rank(training, "mlp")) if training.frozen else None
    if "activations" in training.offload:
        below = [0.0] * len(below)
    all_kept = always + sum(below) + (enters if training.full else last[0])
    found, left = _loss(training, all_kept + rows) if training.last else ([], 0.0)
    norm = 4 * asked * sides.width + how.slope(asked, sides.width)
    found.append(Moment("the backward pass of the last norm", all_kept + rows + left, norm))
    # the first process of a pipeline goes on with as many micro-batches as there are processes before one comes back
    left += 0.0 if training.last else (min(parallel.pipeline, work.of_step) - 1) * all_kept
    layers = [("last layer", last, few, sum(below))]
    if few and below:  # it runs for all tokens
        layers.append(("last layer but one", window if windowed else plain, False, sum(below) - max(below)))
    for name, (mine, attention), alone, deeper in layers:
        deeper += always + left
        for what, working, formed in ours.backward(shape, sides, work, alone, how, ranks):
            found.append(Moment(f"{what} of the {name}", deeper + mine, working, formed=formed))
        working = ours.attention_backward(sides, work, alone, how)
        found.append(Moment(f"attention's backward pass of the {name}", deeper + attention, working, formed=1.0))
        working = ours.entrance_backward(sides, work, alone, how)
        found.append(Moment(f"the backward pass of the norm before attention of the {name}", deeper, working, formed=1.0))
    return found


def _modules(training: Training) -> list[Moment]:
    """Through transformers' modules."""
    shape, work, half, parts = training.shape, training.work, training.half, training.parallel.tensor
    sides, row = Sides.of(shape, half, parts), 4 * work.tokens * shape.hidden
    places = {weight.place for weight in training.trained}
    trains = modules.Trains("attention" in places, bool(places & {"mlp", "experts"}), training.beside)
    casts = (modules.casts(shape) / parts + (2.0 * total(training.trained) if training.frozen else 0.0)) * half
    if shape.decoder_layers:
        both = modules.halves(shape, sides, work, trains, training.full)
        deeper = both.layers + both.always + (casts if not training.full else 0.0)
        found, left = _loss(training, deeper)
        found.append(Moment("the last hidden states' backward pass", deeper + left, both.first))
        if training.full:
            again = both.again + casts / (shape.layers + shape.decoder_layers)
            found.append(Moment("the backward pass of an encoder's layer, computed again", deeper + left, again))
        return found
    how = training.how
    from_table = trains.beside is None or "table" in places or training.full  # else nothing leads back from the first layer
    windowed = min(shape.windowed_layers, shape.layers)
    plain, window = (modules.kept(shape, sides, work, trains, seen, how) for seen in (False, True))
    layers, enters = plain * (shape.layers - windowed) + window * windowed, row * from_table
    always = ours.turns(shape, sides, work, 4.0, how) + enters
    last = row * (trains.beside is None and not shape.both_ways)  # a norm's gain is trained
    if trains.beside is not None and not from_table and trains.attention:
        always -= 3 * work.tokens * trains.beside.noise_bytes(shape.hidden)
    if "activations" in training.offload:
        layers = max(plain, window * bool(windowed))
    if training.full:
        again = max(plain, window * bool(windowed)) + casts / shape.layers - row * (not shape.both_ways)
        layers, casts = shape.layers * row, 0.0
    found, left = _loss(training, layers + casts + always + last)
    if not shape.both_ways:
        found.append(Moment("the backward pass of the last norm", layers + casts + always + last + left, 5 * row))
    for name, working in modules.backward(shape, sides, work, trains, training.how, training.full):
        deeper = layers + casts + always + left - row + (again if training.full else 0.0)
        found.append(Moment(f"{name} of the last layer", deeper, working))  # a gradient that is stepped at once is no layer's
    return found


def _forward(training: Training) -> float:
    """A forward pass without a backward one: the widest part of a layer, and under autocast all matrices in 16 bits."""
    shape, half = training.shape, training.half
    size = 2.0 if half else 4.0
    rows = size * 4 * shape.intermediate + training.how.room * shape.hidden
    if shape.experts:
        rows = 4.0 * shape.experts_per_token * (shape.hidden + 4 * shape.intermediate)
    casts = modules.casts(shape) if half and not training.own else 0.0
    return casts + training.work.tokens * (3 * 4.0 * shape.hidden + rows)


def _loss(training: Training, kept: float) -> tuple[list[Moment], float]:
    """Moments of the loss, and what stays of it while the model's backward pass runs."""
    shape, work, half = training.shape, training.work, training.half
    size, hidden = (2.0 if half else 4.0), 4.0 * work.targets * shape.hidden
    if training.asks in ("scores", "vectors"):
        return [Moment("the loss", kept, 2 * hidden)], 0.0
    rank = _rank(training, "head")
    frozen = bool(training.frozen)
    logits = loss_bytes(shape.vocab, shape.hidden, work.targets, training.how, rank, frozen)
    if training.asks == "logps":  # under a head that is trained, the chunks are made again in the backward pass
        name = "the loss" if frozen else "the loss's backward pass"
        return [Moment(name, kept, 2 * hidden, max(logits.making, logits.back))], 0.0
    low = size * work.targets * rank
    beside = 2 * low + (hidden / 2 if rank and half else 0.0)
    # heads that guess further ahead keep their input and their product, each in the type of products, and a gradient
    ahead = training.ahead * hidden
    left = hidden + ahead + low
    working = 2 * hidden + ahead * (1 + 2 * size / 4) + hidden * bool(ahead) + beside
    held = kept + (left if work.later else 0.0)
    first = logits.chunks == 1  # then the head's gradient is not there before the chunk goes back through the head
    making = Moment("the loss", held, working, logits.making, head=float(not first))
    return [making, Moment("the loss", held, working, logits.back)], left


def _rank(training: Training, place: Place) -> float:
    """Of an adapter's matrices in such places; 0: there are none."""
    ranks = (min(weight.sides) for weight in training.trained if training.frozen and weight.place == place)
    return float(max(ranks, default=0))
