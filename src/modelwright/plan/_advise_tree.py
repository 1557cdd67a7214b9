"""The advisor's situation, what its decision trees are made of, and the walk from their root to a leaf.

A tree is data (`tree.yaml`): questions by name, each with where its answers lead. The walk keeps every question with its
answer and where the answer came from; what the branches that were not taken lead to are the alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from modelwright.core.estimate import Machine, Shape

Goal = Literal["behaviour", "facts", "domain", "labels", "preference", "reasoning", "search", "model", "smaller"]
"""What the model should do: a task in a form, answers from documents, a field's or another language, labels for texts, answers
that people like, problems with a right answer, finding texts, a model of one's own, an existing model made smaller."""
How = Literal["flag", "asked", "data", "task", "runs", "reckoned", "assumed"]
"""Where an answer came from: an option, the interview, the user's data, the words of the task, the user's own runs, arithmetic
over the machine and the model, or nowhere."""


ADAPTED = ("sft", "dpo", "next_token", "kto", "orpo", "grpo", "ppo", "distillation")
"""Methods whose weights may be trained in several ways; those with heads of their own train all of them."""
HEADS = ("classify", "classify_tokens", "regress", "contrastive")


class Room(NamedTuple):
    """What fits where, for one model to start from."""

    name: str
    params: float
    ways: Mapping[str, tuple[bool, str]]
    """`full`, `lora`, `qlora` -> whether its training fits the machine, and the sum."""
    bits: Mapping[int, tuple[bool, str]]
    """16, 8, 4 bits a weight -> whether it can be served so where it is to run, and the sum."""


class Situation(NamedTuple):
    """What is known. None is not known: a question then says what it assumes."""

    goal: Goal | None = None
    fresh: bool | None = None
    """Facts change oftener than a model would be trained again."""
    cited: bool | None = None
    """Answers must name where they are from."""
    reading_tokens: float | None = None
    """Tokens of all documents that answers come from."""
    text_tokens: float | None = None
    """Tokens of texts of the field, without questions and answers."""
    rows: float | None = None
    """Questions with a good answer each, or chats."""
    row_tokens: float | None = None
    """Of a usual row, questions and all its answers."""
    length: int | None = None
    """Tokens that nearly all rows have at most, for which the recipe is written."""
    label_kind: Literal["texts", "words", "numbers"] | None = None
    """What is labelled: whole texts, words in them, or texts with a number."""
    labelled: float | None = None
    """Texts with a label."""
    near: float | None = None
    """Pairs of texts that belong together."""
    pairs: float | None = None
    """Prompts with a better and a worse answer."""
    ratings: float | None = None
    """Single answers with thumbs up or down."""
    rankings: float | None = None
    """Prompts with several answers in order."""
    verifiable: float | None = None
    """Share of rows whose answer a program can check."""
    verifier: str = ""
    passes: float | None = None
    """Share of prompts that the start gets right now."""
    reasoning: bool | None = None
    """Thinking before the answer makes answers better."""
    traces: float | None = None
    """Share of rows that show the reasoning."""
    languages: tuple[str, ...] = ()
    duplicates: float | None = None
    """Share of rows that are another one's copy."""
    base: bool | None = None
    """There is a model that knows this language and this kind of data."""
    chats: bool | None = None
    """The start answers as an assistant; else it goes on with texts."""
    start: str = ""
    shape: Shape | None = None
    """Sizes of the start, where it is chosen already."""
    teacher: bool | None = None
    """A stronger model may be asked, and its answers may be used for training."""
    prompting: Literal["untried", "enough", "short"] | None = None
    """What prompts alone reach."""
    tasks: float | None = None
    """Tasks that are to be served from one model."""
    quality_first: bool | None = None
    """The last points of quality are worth ten times the work, and somebody knows RL."""
    machine: Machine | None = None
    usd: float | None = None
    hours: float | None = None
    target: Literal["laptop", "phone", "gpu", "same"] | None = None
    """Where the model is to run."""
    target_bytes: float | None = None
    """Memory there."""
    latency_ms: float | None = None
    """Longest time for a token there."""
    private: bool | None = None
    """Data may not leave the machine."""
    full_gain: float | None = None
    """By how much training all weights beat LoRA in the user's own runs, in points of their metric, where the interval leaves out
    zero; 0: no such difference is known."""
    few_labels: float = 100_000
    """Rows below which labels count as few."""
    chosen: tuple[str, ...] = ()
    """What the tree of methods answered, for the trees behind it."""
    room: Room | None = None


class Known(NamedTuple):
    """A situation, and where each of its fields came from."""

    situation: Situation
    origins: Mapping[str, tuple[How, str]] = {}
    """Field -> how it is known and the evidence."""


class Answer(NamedTuple):
    """A question's answer: the branch, and the fact behind it."""

    branch: str
    fact: str
    field: str
    """Field of the situation that decided."""


class Branch(NamedTuple):
    """One answer to a question."""

    when: str
    """What has to be so, as the end of `if …`."""
    to: str
    """Name of the next question or leaf."""


class Question(NamedTuple):
    """A fork of a tree."""

    asks: str
    why: str
    """Why it decides, with the threshold."""
    source: str
    """Name in `methods.yaml`'s sources."""
    answer: Callable[[Situation], Answer]
    branches: Mapping[str, Branch]


class Leaf(NamedTuple):
    """Where a path ends."""

    title: str
    methods: tuple[str, ...]
    """In order; none: nothing is trained or made here."""
    why: str


class Tree(NamedTuple):
    """Questions and leaves by name; `root` is where it begins."""

    name: str
    root: str
    questions: Mapping[str, Question]
    leaves: Mapping[str, Leaf]


class Step(NamedTuple):
    """A question on the path."""

    tree: str
    name: str
    asks: str
    answer: str
    """The branch, as its condition reads."""
    branch: str
    fact: str
    how: How
    evidence: str
    why: str
    source: str


class Alternative(NamedTuple):
    """A method that was turned down, and what would change that."""

    tree: str
    leaf: str
    title: str
    methods: tuple[str, ...]
    question: str
    when: str


class Walk(NamedTuple):
    """A path through one tree."""

    tree: str
    leaf: str
    end: Leaf
    steps: tuple[Step, ...]
    alternatives: tuple[Alternative, ...]


def walk(tree: Tree, known: Known) -> Walk:
    """The path that this situation takes, and where the branches beside it lead."""
    steps, name = _path(tree, known, tree.root)
    here = tree.leaves[name].methods
    turned: dict[tuple[str, ...], Alternative] = {}
    for step in reversed(steps):  # the question nearest to the end says most about what would have to change
        for when, leaf in _beside(tree, known, step, here):
            end = tree.leaves[leaf]
            turned.setdefault(end.methods, Alternative(tree.name, leaf, end.title, end.methods, step.name, when))
    return Walk(tree.name, name, tree.leaves[name], steps, tuple(turned.values()))


def _beside(tree: Tree, known: Known, step: Step, here: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(condition, leaf) of the branches that a step did not take. Where one comes to the same methods, those a fork further."""
    for branch, to in tree.questions[step.name].branches.items():
        if branch == step.branch:
            continue
        beyond, leaf = _path(tree, known, to.to)
        if tree.leaves[leaf].methods != here:
            yield to.when, leaf
            continue
        for second in beyond:
            for other, further in tree.questions[second.name].branches.items():
                _, leaf = _path(tree, known, further.to)
                if other != second.branch and tree.leaves[leaf].methods != here:
                    yield f"{to.when}, and {further.when}", leaf


def _path(tree: Tree, known: Known, name: str) -> tuple[tuple[Step, ...], str]:
    steps: list[Step] = []
    while name in tree.questions:
        question = tree.questions[name]
        found = question.answer(known.situation)
        how, evidence = known.origins.get(found.field, ("assumed", ""))
        if getattr(known.situation, found.field) in (None, ""):
            how, evidence = "assumed", ""
        to = question.branches[found.branch]
        steps.append(
            Step(tree.name, name, question.asks, to.when, found.branch, found.fact, how, evidence, question.why, question.source)
        )
        name = to.to
    return tuple(steps), name
