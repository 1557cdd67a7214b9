"""Which model to start from, and what of it fits: the training stage's own account, and its weights where it will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.parallel import Parallel
from modelwright.core.stage import STAGES, Stage
from modelwright.core.units import bytes_text, count_text, seconds_text, usd_text
from modelwright.plan import fit
from modelwright.plan._advise_answers import answer_tokens
from modelwright.plan._advise_facts import Start, data, method
from modelwright.plan._advise_recipe import FEW_TESTS, batch_tokens, passes, row_length, tasks
from modelwright.plan._advise_tree import ADAPTED, HEADS, Room, Situation
from modelwright.plan._fit_asked import fewer_answers
from modelwright.plan.models import named
from modelwright.plan.needs import Need

NF4_BYTES = 4.127 / 8
"""Of a frozen weight in QLoRA: four bits, and its share of the scales of both levels (Dettmers et al. 2023, arXiv:2305.14314)."""
SERVING = 1.2
"""Of the weights' bytes: a fifth more for the cache and what runs it, as the field's rule of thumb has it."""
BYTES_OF_BITS = {16: 2.0, 8: 1.06, 4: 0.6}
"""Of a weight as served; 8 and 4 as in llama.cpp's q8_0 and q4_k_m."""
PHONE_FRAC = 0.1
"""Of a phone's memory, for one app (Liu et al. 2024, MobileLLM, arXiv:2402.14905, section 1)."""
PLACES = {"laptop": (16e9, 51.2e9), "phone": (8e9, 51.2e9), "gpu": (24e9, 300e9)}
"""Memory and bandwidth where the model is to run and nobody says more: two channels of DDR4-3200, or 64 bits of LPDDR5-6400, are
51.2 GB/s; a card as an L4."""
LENGTH = 1024
"""Tokens of the longest row where nobody knows it. No more than that is computed at once: more is only faster."""
ROW_TOKENS = 300
"""Of a row whose length is not known: a question and an answer of a paragraph."""
DAY_HOURS = 24.0
"""The longest training that is advised where nobody says how long it may take."""
MOST_PARAMS = 10e9
"""The largest model that is advised to begin with: a first one that is too large costs the most."""
MOST_HEAD_PARAMS = 0.4e9
"""The same where a text is judged and none written: BERT's large one has 340M (Devlin et al. 2018, arXiv:1810.04805)."""
DATA, START = "./data/", "./start/"
"""References of the stages that are only reckoned with."""


class Chosen(NamedTuple):
    """A model to start from, what fits of it, and what it costs."""

    start: Start | None
    """None: the user's own, or a new one."""
    room: Room
    seconds: float
    """Of its training as the recipe has it, that of the first method where there are several."""
    usd: float
    why: str
    unit_s: float
    """Of one pass as SFT of all weights, which other methods are told beside."""
    trains: str
    """What `seconds` are of, in words; '' where nothing is trained."""
    beside_s: float = 0.0
    """Of what else the recipe has: trainings behind it, and models that are measured before and after."""


def stage(objective: str, way: str, machine: Machine, s: Situation, new: bool = False, alone: bool = False) -> Stage:
    """A training as the recipe would have it. `alone`: it takes as many tokens at once as it likes, else those of a row."""
    length = row_length(objective, s.length or LENGTH)
    tree: dict[str, Any] = {
        "kind": "train",
        "start": START,
        "data": DATA,
        "objective": objective,
        "epochs": passes(objective, new),
        "length": length,
        "batch_tokens": batch_tokens(objective, length),
        "micro_tokens": None if alone else length,
        "precision": precision(machine),
    }
    if way == "lora":
        tree["adapter"] = {"kind": "lora", "rank": 32}
    return cast("Stage", STAGES.build(tree))


def precision(machine: Machine) -> str:
    """The fastest that the machine has; float32 where products in 16 bits would be emulated."""
    return "bf16" if machine.bf16_flops_per_s else "fp16" if machine.device == "cuda" else "fp32"


def _tokens(s: Situation, objective: str) -> float:
    if objective in ("next_token", "masked_token"):
        return s.text_tokens or 1e6
    answers = 2 if objective == "dpo" else 1
    rows = {"dpo": s.pairs, "classify": s.labelled, "classify_tokens": s.labelled, "regress": s.labelled, "contrastive": s.near}
    return (s.row_tokens or ROW_TOKENS * answers) * (rows.get(objective, s.rows) or 1_000)


def reckoned(name: str, shape: Shape, s: Situation, machine: Machine, objective: str, way: str, new: bool = False) -> Chosen:
    """What of this model fits, and what its training takes in this way (of all weights, where no adapter can be)."""
    given = _given(s, shape, machine, objective)
    heads = objective in HEADS
    tried = {one: fit.tried(stage(objective, "full" if heads else one, machine, s, new), given) for one in ("full", "lora")}
    found = {one: _fits(one, trial.need) for one, trial in tried.items()}
    lora = tried["lora"].need
    saved = (4 - NF4_BYTES) * shape.params / machine.devices
    smaller = lora._replace(takes=lora.takes._replace(value=lora.takes.value - saved, low=None, high=None))
    found["qlora"] = _fits("qlora", smaller)
    seconds = tried[way].estimate.seconds.value
    times = passes(objective, new)
    cost = times * method("full" if heads else way).advice.cost * (method(objective).advice.cost or 1.0)
    trains = f"{times} {'pass' if times == 1 else 'passes'} of {objective}"
    there = Room(name, shape.params, found, bits(shape.params, s, machine))
    usd = seconds / 3600 * machine.usd_per_hour
    return Chosen(None, there, seconds, usd, f"{count_text(shape.params)} weights", seconds / cost, trains)


def tight(shape: Shape, s: Situation, machine: Machine, objective: str, way: str) -> bool:
    """It fits with as few tokens at once as are reckoned with here, and may not with as many as it takes by itself."""
    least, alone = (stage(objective, way, machine, s, alone=by_itself) for by_itself in (False, True))
    longest, usual = (_given(s, shape, machine, objective, usual=known) for known in (False, True))
    return fit.tried(least, longest).fits and not all(fit.tried(alone, given).fits for given in (longest, usual))


def at_once(asked: Mapping[str, Any], shape: Shape, s: Situation, machine: Machine) -> dict[str, Any]:
    """What an evaluation's engine is told where so many answers as it takes by itself do not fit; {} where they do."""
    now = _asking(asked, shape, machine, s.length or LENGTH)
    option = None if now.fits else fewer_answers(now, {})
    values = option.values if option is not None else {}
    return {path.removeprefix("engine."): value for path, value in values.items()}


def _asking(asked: Mapping[str, Any], shape: Shape, machine: Machine, row_tokens: float) -> fit.Tried:
    """An evaluation on rows of such a length."""
    rows = Facts(type="records", rows=FEW_TESTS, tokens=FEW_TESTS * row_tokens)
    given = Given(machine, {START: Facts(type="model", shape=shape, head="causal"), DATA: rows})
    return fit.tried(cast("Stage", STAGES.build({**asked, "model": START, "data": DATA})), given)


def changes(s: Situation, shape: Shape, machine: Machine) -> tuple[fit.Change, ...]:
    """What would make SFT with LoRA fit, cheapest first, as `modelwright fit` has it."""
    return fit.fit(stage("sft", "lora", machine, s), _given(s, shape, machine, "sft"), "answers").changes


def _given(s: Situation, shape: Shape, machine: Machine, objective: str, usual: bool = False) -> Given:
    """`usual`: rows are as long as they are on average, else as long as they may be."""
    tokens = _tokens(s, objective)
    rows = tokens / s.row_tokens if usual and s.row_tokens else None
    facts = {START: Facts(type="model", shape=shape), DATA: Facts(type="records", tokens=tokens, rows=rows)}
    return Given(machine, facts, parallel=Parallel(shard=machine.devices))


def _fits(way: str, need: Need) -> tuple[bool, str]:
    title = {"full": "all weights take", "lora": "LoRA takes", "qlora": "QLoRA takes"}[way]
    takes = f"{bytes_text(need.takes.value)}, at most {bytes_text(need.high_bytes)}"
    return need.fits, f"{title} about {takes}, of {bytes_text(need.has_bytes)} of {need.what}"


def bits(params: float, s: Situation, machine: Machine) -> dict[int, tuple[bool, str]]:
    """At which bits a weight it can be served where it is to run, most first."""
    memory, bandwidth, where = _place(s, machine)
    found = {}
    for number, size in BYTES_OF_BITS.items():
        weights = size * params
        fact = f"{number} bits: {bytes_text(SERVING * weights)} of {bytes_text(memory)} {where}"
        fits = SERVING * weights <= memory
        if s.latency_ms is not None and bandwidth:
            token_ms = weights / bandwidth * 1e3
            fits = fits and token_ms <= s.latency_ms
            fact += f", {token_ms:.3g} ms a token of {s.latency_ms:g}"
        found[number] = (fits, fact)
    return found


def _place(s: Situation, machine: Machine) -> tuple[float, float, str]:
    """Memory and bandwidth where it is to run, and in words whose."""
    if s.target in (None, "same"):
        return machine.device_memory_bytes or machine.memory_bytes, machine.bandwidth_bytes_per_s, "where it is made"
    memory, bandwidth = PLACES[s.target]
    told = s.target_bytes or memory
    if s.target == "gpu" and s.target_bytes is None and machine.device_memory_bytes:
        told, bandwidth = machine.device_memory_bytes, machine.bandwidth_bytes_per_s
    whose = f"on the {s.target}" + ("" if s.target_bytes or s.target == "gpu" else ", as is usual")
    return (PHONE_FRAC if s.target == "phone" else 1.0) * told, bandwidth, whose


def choose(s: Situation, machine: Machine, objective: str, methods: Sequence[str] = ()) -> Chosen:
    """The user's start, or the largest public one whose training and serving fit machine, time and budget. `methods`: of the
    recipe, where it has others, too."""
    if s.shape is not None:
        named_by_user = reckoned(s.start or "your model", s.shape, s, machine, objective, "lora")
        return named_by_user._replace(why="the one that you named")
    wanted = [start for start in data().starts if start.chats is not (objective in ("next_token", *HEADS))]
    candidates = sorted(wanted, key=lambda start: named(start.like).params)
    ways = ("full", "lora") if objective == "next_token" else ("lora",)  # new knowledge wants all weights
    for way in ways:
        best, beyond = None, ""
        for start in candidates:
            shape = named(start.like).shape
            found = reckoned(start.name, shape, s, machine, objective, way)._replace(start=start)
            found = found._replace(beside_s=beside_s(shape, s, machine, objective, way, methods))
            if reason := _too_much(found, s, way, objective):
                beyond = f"; {start.name} would not do: {reason}"
                break
            best = found
        if best is not None:
            return best._replace(why=f"the largest of the pinned public models that does{beyond}")
    smallest = candidates[0]
    found = reckoned(smallest.name, named(smallest.like).shape, s, machine, objective, "lora")
    why = f"the smallest of the pinned public models, and even there {_too_much(found, s, 'lora', objective)}"
    return found._replace(start=smallest, why=why)


def beside_s(shape: Shape, s: Situation, machine: Machine, objective: str, way: str, methods: Sequence[str]) -> float:
    """Seconds of the recipe's other trainings, and of its evaluations: before and after SFT, and behind preferences."""
    rest = [name for name in methods if name in ADAPTED and name != objective and method(name).state == "kind"]
    trained = sum(
        fit.tried(stage(name, way, machine, s), _given(s, shape, machine, name)).estimate.seconds.value for name in rest
    )
    times = (2 + ("dpo" in methods)) if "sft" in methods else 0
    asked = {"kind": "evaluate", "tasks": tasks(False, answer_tokens(s))}
    return trained + (times * _asking(asked, shape, machine, s.row_tokens or ROW_TOKENS).estimate.seconds.value if times else 0.0)


def shrunk(s: Situation, machine: Machine) -> Chosen:
    """A model that is made smaller as it is: the user's, or the largest public one that can be opened here and held there."""

    def kept(name: str, shape: Shape, why: str) -> Chosen:
        return reckoned(name, shape, s, machine, "sft", "lora")._replace(seconds=0.0, usd=0.0, trains="", why=why)

    if s.shape is not None:
        return kept(s.start or "your model", s.shape, "the one that you named")
    best, reason, why = None, "", "the largest of the pinned public models that does"
    for start in sorted((one for one in data().starts if one.chats), key=lambda one: named(one.like).params):
        found = kept(start.name, named(start.like).shape, why)._replace(start=start)
        if reason := _too_much_to_shrink(found.room, machine):
            break
        best = found
    if best is None:
        return found._replace(why=f"the smallest of the pinned public models, and even there {reason}")
    return best._replace(why=f"{why}; {found.room.name} would not do: {reason}" if reason else why)


def _too_much_to_shrink(room: Room, machine: Machine) -> str:
    opened = 4.0 * room.params
    if opened > machine.memory_bytes:
        return f"opening it takes {bytes_text(opened)} of {bytes_text(machine.memory_bytes)} of memory"
    if not room.bits[4][0]:
        return room.bits[4][1]
    return "" if room.params <= MOST_PARAMS else f"more than {count_text(MOST_PARAMS)} weights are much for a first one"


def _too_much(found: Chosen, s: Situation, way: str, objective: str) -> str:
    """What of it does not fit; '' where all does."""
    fits, fact = found.room.ways[way]
    if not fits:
        return fact
    hours, seconds = s.hours or DAY_HOURS, found.seconds + found.beside_s
    usd = found.usd * seconds / max(found.seconds, 1e-9)
    what, many = ("training and measuring", "") if found.beside_s else ("training", "s")
    if seconds > 3600 * hours:
        return f"{what} take{many} about {seconds_text(seconds)} of {hours:g} hours"
    if s.usd is not None and usd > s.usd:
        return f"{what} cost{many} about {usd_text(usd)} of {usd_text(s.usd)}"
    if not found.room.bits[4][0]:
        return found.room.bits[4][1]
    most = MOST_HEAD_PARAMS if objective in HEADS else MOST_PARAMS
    return "" if found.room.params <= most else f"more than {count_text(most)} weights are much for a first one"


def beside(names: Mapping[str, str], chosen: Chosen, machine: Machine) -> list[dict[str, str]]:
    """The methods side by side: `names` to what they are here (`advised`, `turned down`)."""
    rows = []
    sft_usd = chosen.unit_s / 3600 * machine.usd_per_hour
    for name, role in names.items():
        found = method(name)
        advice = found.advice
        seconds = chosen.unit_s * advice.cost
        rows.append(
            {
                "method": found.title,
                "here": {"kind": "yes", "way": "yes", "missing": "not yet"}[found.state],
                "role": role,
                "cost": f"x{advice.cost:g}" + (f", {usd_text(sft_usd * advice.cost)}" if sft_usd else "") if advice.cost else "-",
                "time": seconds_text(seconds) if advice.cost else "-",
                "energy": f"{seconds * machine.power_w / 3.6e6:.2g} kWh" if advice.cost and machine.power_w else "-",
                "memory": f"x{advice.memory:g}" if advice.memory else "-",
                "data": advice.needs + (f" ({advice.least_rows} or more)" if advice.least_rows else ""),
                "data quality": advice.quality or "-",
                "deployment": advice.deployment or "-",
            }
        )
    return rows
