"""More tokens for a vocabulary that a model was trained with: text that holds none of them is cut as before.

What is done by the model of the tokenizer.json (https://huggingface.co/docs/tokenizers/api/models):

* BPE (Sennrich et al. 2016, arXiv:1508.07909): merges are applied in their order, so merges put behind the old ones join what
  the old ones leave, and no old pair contains a new token. A token is added by joining the pieces that it has now; what stands
  between pieces and token becomes a token too. So every one of them can be reached, which tokens and merges taken over from
  another vocabulary as they are cannot: the old merges come first (Purason et al. 2025, arXiv:2512.03989).
* WordPiece: the longest piece wins, a new entry is enough.
* Unigram (Kudo 2018, arXiv:1804.10959): the likeliest cut wins. A new piece is as likely as the rarest old one, or a little
  likelier than the best cut of its text.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from modelwright.core.errors import UserError
from modelwright.methods.tokenizers._bytes import read

LIKELIER_NATS = 0.1
"""What a new Unigram piece gains over the best cut of its text: enough against rounding, too little to win other text."""
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTES = "bytes as characters"
_NEVER = 1 << 60
"""Rank of a pair that no merge joins."""


class Added(NamedTuple):
    """A new token."""

    token: str
    """As the vocabulary writes it."""
    id: int
    pieces: list[int]
    """Tokens that its text was before; none where the old vocabulary could not write it, or for a special one."""
    origin: str
    """`tokens`, `vocab`, `special`, or `on the way`: a piece between old ones and a new one."""


class Extension(NamedTuple):
    """A tokenizer.json with more tokens, and what became of each that was wanted."""

    tree: dict[str, Any]
    added: list[Added]
    already: Counter[str]
    """By origin, those that the old vocabulary has."""
    left_out: Counter[str]
    """Tokens of `vocab` by the reason why they cannot be added."""
    size: int
    """Ids from 0 to the last."""


class _Unfit(Exception):
    """Why a token cannot be added."""


class _Vocabulary(Protocol):
    """What extends one model of a tokenizer.json."""

    def has(self, token: str) -> bool: ...
    def written(self, word: str) -> str:
        """A word, as it comes from cutting text, in the vocabulary's writing."""
        ...

    def add(self, token: str, room: int) -> list[str]:
        """Add it with at most so many entries; returns them, itself last."""
        ...

    def pieces(self, token: str) -> list[int]:
        """Old tokens that its text is made of; none where it cannot be written."""
        ...

    def model(self, ids: dict[str, int]) -> dict[str, Any]:
        """The model with the new entries; `ids`: of all tokens."""
        ...


class _Bpe:
    def __init__(self, model: dict[str, Any]) -> None:
        if model.get("continuing_subword_prefix") or model.get("dropout"):
            raise UserError(
                "this BPE vocabulary cannot be extended",
                "it marks inner pieces or drops merges at random",
                "start from a model with byte-level BPE, SentencePiece BPE, WordPiece or Unigram",
            )
        self._model = model
        self._old: dict[str, int] = model["vocab"]
        self._end: str = model.get("end_of_word_suffix") or ""
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        self._ranks: dict[tuple[str, ...], int] = {pair: rank for rank, pair in enumerate(pairs)}
        self._halves: dict[str, tuple[str, str]] = {}
        """New token -> the two that it is made of, in the order of adding."""

    def has(self, token: str) -> bool:
        return token in self._old or token in self._halves

    def written(self, word: str) -> str:
        return word + self._end

    def _cut(self, token: str) -> list[str]:
        """What all merges make of it, the earliest first."""
        body = token.removesuffix(self._end) if self._end else token
        parts = list(body)
        if body != token and parts:
            parts[-1] += self._end
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, _NEVER) for pair in pairwise(parts)]
            at = ranks.index(min(ranks))
            if ranks[at] == _NEVER:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

    def add(self, token: str, room: int) -> list[str]:
        if not all(self.has(part) for part in self._cut(token)):
            raise _Unfit("it has characters that the start cannot write")
        made: list[str] = []
        try:
            while len(parts := self._cut(token)) > 1:
                if len(made) == room:
                    raise _Unfit("there is no room for it and the pieces on the way to it")
                pair = next((pair for pair in pairwise(parts) if not self.has("".join(pair))), None)
                if pair is None:
                    raise _Unfit("its pieces would make an old token in a new way")
                made.append("".join(pair))
                self._halves[made[-1]] = pair
                self._ranks[pair] = len(self._model["merges"]) + len(self._halves)
        except _Unfit:
            for name in made:
                del self._ranks[self._halves.pop(name)]
            raise
        return made

    def pieces(self, token: str) -> list[int]:
        if token in self._halves:
            return [piece for half in self._halves[token] for piece in self.pieces(half)]
        return [self._old[token]]

    def model(self, ids: dict[str, int]) -> dict[str, Any]:
        spelt = any(isinstance(merge, str) for merge in self._model["merges"])
        more = [" ".join(pair) if spelt else list(pair) for pair in self._halves.values()]
        return {**self._model, "vocab": ids, "merges": [*self._model["merges"], *more]}


class _Whole:
    """A vocabulary to which a token comes whole: no other has to be there for it."""

    def __init__(self, model: dict[str, Any], old: dict[str, int]) -> None:
        self._model, self._old = model, old
        self._new: dict[str, None] = {}

    def has(self, token: str) -> bool:
        return token in self._old or token in self._new

    def written(self, word: str) -> str:
        return word

    def add(self, token: str, room: int) -> list[str]:
        if not room:
            raise _Unfit("there is no room for it and the pieces on the way to it")
        self._new[token] = None
        return [token]


class _WordPiece(_Whole):
    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__(model, model["vocab"])
        self._within: str = model["continuing_subword_prefix"]

    def add(self, token: str, room: int) -> list[str]:
        if len(token.removeprefix(self._within)) > self._model["max_input_chars_per_word"]:
            raise _Unfit("it is longer than the start's longest word")
        return super().add(token, room)

    def pieces(self, token: str) -> list[int]:
        """The longest old piece first, as the library cuts words."""
        mark, left = (self._within, token.removeprefix(self._within)) if token.startswith(self._within) else ("", token)
        found: list[int] = []
        while left:
            end = next((end for end in range(len(left), 0, -1) if mark + left[:end] in self._old), None)
            if end is None:
                return []
            found.append(self._old[mark + left[:end]])
            mark, left = self._within, left[end:]
        return found

    def model(self, ids: dict[str, int]) -> dict[str, Any]:
        return {**self._model, "vocab": ids}


class _Unigram(_Whole):
    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__(model, {piece: number for number, (piece, _) in enumerate(model["vocab"])})
        self._scores: dict[str, float] = dict(map(tuple, model["vocab"]))
        self._lowest = min(self._scores.values())

    def _best(self, text: str, scores: dict[str, float]) -> tuple[float, list[str]] | None:
        """Score and pieces of the likeliest cut."""
        best: list[tuple[float, list[str]] | None] = [(0.0, []), *([None] * len(text))]
        for end in range(1, len(text) + 1):
            for begin in range(end):
                before, piece = best[begin], text[begin:end]
                if before is None or piece not in scores:
                    continue
                found, score = best[end], before[0] + scores[piece]
                if found is None or score > found[0]:
                    best[end] = (score, [*before[1], piece])
        return best[-1]

    def pieces(self, token: str) -> list[int]:
        found = self._best(token, self._scores)
        return [self._old[piece] for piece in found[1]] if found else []

    def model(self, ids: dict[str, int]) -> dict[str, Any]:
        scores = dict(self._scores)
        for token in sorted(self._new, key=lambda token: (len(token), token)):  # a longer one beats cuts into shorter new ones
            cut = self._best(token, scores)
            scores[token] = max(self._lowest, cut[0] + LIKELIER_NATS) if cut else self._lowest
        by_id = sorted(ids, key=ids.__getitem__)
        assert [ids[token] for token in by_id] == list(range(len(by_id))), "a list has no holes"
        return {**self._model, "vocab": [[token, scores.get(token, self._lowest)] for token in by_id]}


_MODELS: dict[str, type[_Bpe] | type[_WordPiece] | type[_Unigram]] = {"BPE": _Bpe, "WordPiece": _WordPiece, "Unigram": _Unigram}


def writing(tree: dict[str, Any]) -> str:
    """How a vocabulary writes what stands in a text: tokens can be taken over between those that write alike."""
    model = tree["model"]
    parts = json.dumps([tree.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if model["type"] == "WordPiece":
        return f"inner pieces with {model['continuing_subword_prefix']}"
    if model.get("end_of_word_suffix"):
        return f"ends of words with {model['end_of_word_suffix']}"
    if '"ByteLevel"' in parts:
        return BYTES
    return "blanks as ▁" if "▁" in parts else "plain characters"


class Wanted(NamedTuple):
    """What to add."""

    tokens: tuple[str, ...]
    special: tuple[str, ...]
    donor: dict[str, Any] | None
    """The tokenizer.json to take tokens from."""
    size: int | None
    """Tokens in all at most; None: as many as come."""


def extended(tokenizer: Any, wanted: Wanted) -> Extension:
    """A `tokenizers.Tokenizer` with more tokens: those asked for, then those of the donor, in its order, then special ones."""
    tree = json.loads(tokenizer.to_str())
    made = _MODELS.get(tree["model"]["type"])
    if made is None:
        raise UserError(f"a vocabulary of type {tree['model']['type']} cannot be extended", f"known: {', '.join(_MODELS)}")
    ids = _ids(tree)
    listed = isinstance(tree["model"]["vocab"], list)
    vocabulary: _Vocabulary = made(tree["model"] if listed else {**tree["model"], "vocab": dict(ids)})
    added: list[Added] = []
    already: Counter[str] = Counter()
    left_out: Counter[str] = Counter()

    def take(token: str, origin: str, room: int) -> None:
        if token in ids:
            already[origin] += 1
            return
        for name in vocabulary.add(token, room):
            ids[name] = max(ids.values()) + 1 if not added else added[-1].id + 1
            added.append(Added(name, ids[name], vocabulary.pieces(name), origin if name == token else "on the way"))

    for word in wanted.tokens:
        try:
            token = vocabulary.written(_one_word(tokenizer, word))
            take(token, "tokens", len(token))
        except _Unfit as error:
            raise UserError(f"{word!r} cannot become a token", str(error), "leave it out, or name it in `special`") from None
    kept = len(set(wanted.special) - ids.keys())
    for token in _donated(tree, wanted):
        room = len(token) if wanted.size is None else wanted.size - kept - len(ids)
        if room < 1:
            break
        try:
            if token not in ids:
                _check_cut(tokenizer, token, tree)
            take(token, "vocab", room)
        except _Unfit as error:
            left_out[str(error)] += 1
    return _finished(tree, vocabulary, ids, (added, already, left_out), wanted.special)


def _ids(tree: dict[str, Any]) -> dict[str, int]:
    """Every token's id, those beside the model's own included: in the model's list too, new ids cannot collide with them."""
    vocab = tree["model"]["vocab"]
    ids = {piece: number for number, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return ids | {token["content"]: token["id"] for token in tree["added_tokens"]}


def _finished(
    tree: dict[str, Any],
    vocabulary: _Vocabulary,
    ids: dict[str, int],
    told: tuple[list[Added], Counter[str], Counter[str]],
    special: Iterable[str],
) -> Extension:
    added, already, left_out = told
    marks = {token["content"]: token for token in tree["added_tokens"]}
    for token in dict.fromkeys(special):
        if token in ids:
            already["special"] += 1
        else:
            ids[token] = max(ids.values()) + 1
            added.append(Added(token, ids[token], [], "special"))
        marks[token] = {"id": ids[token], "content": token, **_SPECIAL, **marks.get(token, {}), "special": True}
    whole = copy.deepcopy(tree)
    whole["model"] = vocabulary.model(ids)
    whole["added_tokens"] = sorted(marks.values(), key=lambda token: token["id"])
    return Extension(whole, added, already, left_out, max(ids.values()) + 1)


def _one_word(tokenizer: Any, text: str) -> str:
    """The text as cutting leaves it, before pieces are made."""
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)] if tokenizer.pre_tokenizer else [normal]
    if len(words) != 1:
        raise UserError(
            f"{text!r} cannot become a token",
            f"the start cuts it into {len(words)} words before pieces are made: {', '.join(map(repr, words[:6]))}",
            "name one word; or name it in `special`, whose tokens are found before text is cut",
        )
    return words[0]


def _check_cut(tokenizer: Any, token: str, tree: dict[str, Any]) -> None:
    """_Unfit where the start's way of cutting text never leaves the token's text whole."""
    text = _text(token, tree)
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if normal.replace("▁", " ").strip() != text.strip():
        raise _Unfit("the start's normaliser changes its text")
    if tokenizer.pre_tokenizer and len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) != 1:
        raise _Unfit("the start cuts text inside it")


def _text(token: str, tree: dict[str, Any]) -> str:
    """What the token stands for in a text."""
    model = tree["model"]
    if writing(tree) == BYTES:
        try:
            return (read(token) or b"\xff").decode()
        except UnicodeDecodeError:
            raise _Unfit("it is no whole characters") from None
    inner = token.removeprefix(model.get("continuing_subword_prefix") or "").removesuffix(model.get("end_of_word_suffix") or "")
    return inner.replace("▁", " ")


def _donated(tree: dict[str, Any], wanted: Wanted) -> list[str]:
    """The donor's ordinary tokens in the order of their ids."""
    if wanted.donor is None:
        return []
    ours, theirs = writing(tree), writing(wanted.donor)
    if ours != theirs:
        raise UserError(
            "the tokens of `vocab` are not those of the start",
            f"the start writes {ours}, `vocab` {theirs}",
            "train `vocab` with the method of the start's tokenizer (`bpe` for byte-level ones)",
        )
    marks = {token["content"] for token in wanted.donor["added_tokens"]}
    ids = _ids(wanted.donor)
    return [token for token in sorted(ids, key=ids.__getitem__) if token not in marks]
