"""Branches of the native engine, for searches that run in other threads than the model's.

Source: the search is in `modelwright.nn.search`; each call waits its turn between two tokens of the requests under way (Yu et
al. 2022, "Orca", OSDI: iteration-level scheduling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modelwright.methods.engines import Rule
from modelwright.methods.engines._worker import Worker


class WorkerBranches:
    """See `modelwright.methods.engines.Branches`. `make` gives a `modelwright.nn.search.Search` and is called in the worker's
    thread; `rule` is the request's at the start of its answer."""

    def __init__(self, worker: Worker, make: Callable[[], Any], stop: frozenset[int], rule: Rule | None) -> None:
        self.stop, self._worker = stop, worker
        self._rules = [rule]
        self._search = worker.call(make)
        hidden_TE = self._search.prompt_hidden_TE
        self.prompt_hidden = None if hidden_TE is None else hidden_TE.cpu().numpy()

    def __enter__(self) -> WorkerBranches:
        return self

    def __exit__(self, *fault: object) -> None:
        self._search = None

    def logps(self) -> Any:
        return self._worker.call(lambda: self._search.logits_BV.log_softmax(-1).cpu().numpy())

    def ruled(self) -> Any:
        import numpy as np

        logps_BV = self.logps()
        for branch, rule in enumerate(self._rules):
            if rule is not None:
                logit_V = rule(logps_BV[branch].copy()).astype(np.float64)
                if rule.trouble is not None:
                    raise rule.trouble
                most = logit_V.max()
                logps_BV[branch] = logit_V - most - np.log(np.exp(logit_V - most).sum())
        return logps_BV

    def hidden(self) -> Any:
        return self._worker.call(lambda: self._search.hidden_BE.cpu().numpy())

    def keep(self, which: Sequence[int]) -> None:
        self._rules = [rule.copy() if rule is not None else None for rule in (self._rules[branch] for branch in which)]
        self._worker.call(lambda: self._search.keep(which))

    def extend(self, tokens: Sequence[int]) -> None:
        for rule, token in zip(self._rules, tokens, strict=True):
            if rule is not None:
                rule.accept(token)
        self._worker.call(lambda: self._search.extend(tokens))
