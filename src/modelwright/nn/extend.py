"""First weights of new tokens: mixtures of the old tokens' rows in the embedding and in the head.

A row is the mean of all old rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models",
https://nlp.stanford.edu/~johnhew/vocab-expansion.html: random rows may take all of the probability, the mean takes little), the
mean of the pieces that the token's text was before (Gee et al. 2022, "Fast Vocabulary Transfer", EMNLP industry track,
arXiv:2402.09977, section 3), or a mean of the tokens most alike, weighted by sparsemax over their cosines (Dobler and de Melo
2023, "FOCUS", arXiv:2305.14481, section 3; sparsemax: Martins and Astudillo 2016, arXiv:1602.02068, algorithm 1). Differs from
FOCUS: vectors of tokens are not fastText's but the positive mutual information of a token with its neighbours, which needs no
training (Levy, Goldberg and Dagan 2015, doi:10.1162/tacl_a_00134, with their smoothing 0.75 of neighbours' frequencies).
"""

# Shape suffixes: T tokens of all texts, S tokens with a vector, C neighbours that vectors count, V vocabulary, N new tokens.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelwright.nn import model as models
from modelwright.nn.seq2seq import Pairs

WINDOW = 5
"""Tokens to each side that count as neighbours, nearer ones more (1 / distance), as in word2vec and GloVe."""
LEAST_SEEN = 5
"""Times that a token must be seen to have a vector, as in word2vec and fastText."""
NEIGHBOURS, CANDIDATES = 2048, 20_000
"""Most frequent tokens that are counted as neighbours, and most frequent old tokens that a new one is compared with."""
SMOOTHING = 0.75


class Mixture(NamedTuple):
    """A new row."""

    row: int
    ids: Sequence[int]
    """Old tokens; none: the mean of all."""
    weights: Sequence[float]


@torch.no_grad()
def widen(model: Any, size: int, known: Sequence[int], mixtures: Sequence[Mixture]) -> int:
    """Give the model rows for ids below `size` and fill those of the mixtures; `known`: the old tokens' ids. Returns the number
    of rows, which may be more: some models have spare ones."""
    rows = max(size, int(models.core(model).get_input_embeddings().weight.shape[0]))
    with models.quiet():
        model.resize_token_embeddings(rows, mean_resizing=False)
    head = models.head(model)
    parts = [model.get_input_embeddings().weight, head.weight, *([] if head.bias is None else [head.bias])]
    for table in {id(part): part for part in parts}.values():  # a tied head is the embedding
        mean = table[torch.tensor(known)].mean(0)
        for mixture in mixtures:
            weight_n = torch.tensor(mixture.weights, dtype=table.dtype)
            table[mixture.row] = weight_n @ table[torch.tensor(mixture.ids)] if len(mixture.ids) else mean
    return rows


def similar(texts: Sequence[Sequence[int]], new: Sequence[int], old: Sequence[int]) -> dict[int, Mixture]:
    """New token -> the old ones that stand among the same neighbours; tokens seen too seldom have none. `texts`: ids by the new
    tokenizer."""
    ids_T = torch.tensor([token for text in texts for token in text], dtype=torch.long)
    text_T = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text) for text in texts], dtype=torch.long))
    if not len(ids_T):
        return {}
    seen_V = torch.bincount(ids_T, minlength=max(*new, *old) + 1)

    def frequent(ids: Sequence[int], most: int) -> Tensor:
        """The most frequent of them that are seen often enough; ties go by id."""
        id_n = torch.tensor(sorted(ids), dtype=torch.long)
        count_n = seen_V[id_n]
        order = torch.argsort(count_n, descending=True, stable=True)[:most]
        return id_n[order][count_n[order] >= LEAST_SEEN]

    new_N, old_O = frequent(new, len(new)), frequent(old, CANDIDATES)
    if not len(new_N) or not len(old_O):
        return {}
    vector_SC = _vectors(ids_T, text_T, torch.cat([new_N, old_O]), frequent([*new, *old], NEIGHBOURS))
    found = {}
    for number, row in enumerate(new_N.tolist()):
        weight_O = sparsemax(vector_SC[len(new_N) :] @ vector_SC[number])
        chosen = weight_O.nonzero()[:, 0]
        if vector_SC[number].any():
            found[row] = Mixture(row, old_O[chosen].tolist(), weight_O[chosen].tolist())
    return found


def _vectors(ids_T: Tensor, text_T: Tensor, token_S: Tensor, neighbour_C: Tensor) -> Tensor:
    """[S, C] positive mutual information of each token with each neighbour, rows of length 1 (0 where there is none)."""
    place_V = torch.full((int(max(ids_T.max(), token_S.max(), neighbour_C.max())) + 1,), -1, dtype=torch.long)
    column_V = place_V.clone()
    place_V[token_S] = torch.arange(len(token_S))
    column_V[neighbour_C] = torch.arange(len(neighbour_C))
    count = torch.zeros(len(token_S) * len(neighbour_C))
    for distance in range(1, min(WINDOW, len(ids_T) - 1) + 1):
        together = text_T[distance:] == text_T[:-distance]
        for token_T, other_T in ((ids_T[distance:], ids_T[:-distance]), (ids_T[:-distance], ids_T[distance:])):
            row_n, column_n = place_V[token_T[together]], column_V[other_T[together]]
            wanted = (row_n >= 0) & (column_n >= 0)
            code_n = row_n[wanted] * len(neighbour_C) + column_n[wanted]
            count.index_add_(0, code_n, torch.full((len(code_n),), 1 / distance))
    count_SC = count.view(len(token_S), -1)
    share_C = count_SC.sum(0).pow(SMOOTHING)
    share_C /= share_C.sum().clamp(min=1e-30)
    count_SC /= count_SC.sum(1, keepdim=True).clamp(min=1e-30)  # in place: the table is large
    count_SC /= share_C.clamp(min=1e-30)
    count_SC.clamp_(min=1).log_()
    return count_SC.div_(count_SC.norm(dim=1, keepdim=True).clamp(min=1e-30))


def sparsemax(score_O: Tensor) -> Tensor:
    """Weights that sum to 1: the nearest point of the simplex, most of them 0."""
    sorted_O = score_O.sort(descending=True).values
    sum_O = sorted_O.cumsum(0)
    rank_O = torch.arange(1, len(score_O) + 1)
    support = int((1 + rank_O * sorted_O > sum_O).sum())
    return (score_O - (sum_O[support - 1] - 1) / support).clamp(min=0)


class Said(NamedTuple):
    """What a model says of texts, as far as old tokens go."""

    logps: list[float]
    """Log-probability of each text's tokens among the old ones alone, in nats."""
    mass_new: float
    """Mean share of the probability that other rows than the old ones take."""


@torch.no_grad()
def said(model: Any, texts: Sequence[Sequence[int]], known: Sequence[int]) -> Said:
    """Of each text's next tokens, or its own: of an encoder, and of an encoder-decoder that reads the text and writes it once
    more; transformers' own forward pass, one text at a time."""
    pairs = Pairs.of(models.core(model))
    ahead = 0 if pairs is not None or models.looks_both_ways(model) else 1
    known_V = torch.tensor(known)
    place_V = torch.full((int(known_V.max()) + 1,), -1, dtype=torch.long)
    place_V[known_V] = torch.arange(len(known_V))
    logps: list[float] = []
    mass = 0.0
    for text in texts:
        ids_T = torch.tensor(text)
        written = {} if pairs is None else {"decoder_input_ids": pairs.shifted(ids_T)[None]}
        logits_TV = model(input_ids=ids_T[None], use_cache=False, **written).logits[0, : len(text) - ahead].float()
        old_TV = logits_TV[:, known_V]
        logps += old_TV.log_softmax(1).gather(1, place_V[ids_T[ahead:]][:, None])[:, 0].tolist()
        mass += float(1 - (old_TV.logsumexp(1) - logits_TV.logsumexp(1)).exp().mean()) / len(texts)
    return Said(logps, max(mass, 0.0))
