"""Perplexity: drops rows that a model of the user's own finds too unlikely, or too likely.

Sources: Wenzek et al. 2020, "CCNet", arXiv:1911.00359, section 3.4 (perplexity under a model of Wikipedia; thirds of a language's
pages by rank); Marion et al. 2023, "When Less is More", arXiv:2309.04564 (the middle of the distribution trains best). Bits per
byte, which do not depend on the tokenizer: Gao et al. 2020, "The Pile", arXiv:2101.00027, section 3.1.
"""

# Shape suffixes: T packed tokens, N of them that are predicted, R rows.

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Accepts, Run
from modelwright.methods.steps import Bound, Choice, Choosing, Numbers, Why, content
from modelwright.methods.steps._model import Reader, opened, packed, windows

LN_2 = math.log(2)


class Perplexity(Choosing):
    """Documents, and chats by the text of all their turns. A row without text stays."""

    bytes_per_s: ClassVar[float] = 20e3
    advice: ClassVar[Advice] = Advice(
        "you have a small model of text such as you want", "the model has not seen the language or the sort of text"
    )

    in_company: ClassVar[bool] = True

    kind: Literal["perplexity"] = "perplexity"
    model: Annotated[str, Accepts(("model",))] = Field(examples=["./model/"])
    """Reference to a model that goes on with text: a stage that trains one, or a folder. A small one will do."""
    measure: Literal["bits_per_byte", "perplexity"] = "bits_per_byte"
    """What is bounded. `bits_per_byte` compares under any tokenizer; `perplexity` (of a token) only under the model's own."""
    min: float | None = Field(None, ge=0, examples=[0.5])
    """Least value; raising it drops lists and other text that repeats itself. Default: none."""
    max: float | None = Field(None, gt=0, examples=[3.0])
    """Most value; lowering it drops what reads like no text that the model knows. Default: none."""
    lowest: float = Field(0.0, ge=0, lt=1, examples=[0.3])
    """Share of the rows (0 to 1) that goes, those with the lowest values; needs the last row before the first goes on."""
    highest: float = Field(0.0, ge=0, lt=1, examples=[0.3])
    """Share of the rows (0 to 1) that goes, those with the highest values (CCNet's tail: 0.33); needs the last row, too."""
    window: int | None = Field(None, ge=2, examples=[16])
    """Tokens that the model sees at once; longer rows are judged window by window. Raising it costs more. Default: as many as the
    model can see, at most 512, beyond which a small model gains little from context."""

    _opened: dict[str, Reader] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _drops_something(self) -> Perplexity:
        if self.min is None and self.max is None and not self.lowest and not self.highest:
            raise ValueError("needs `min`, `max`, `lowest` or `highest`; without a bound every row stays")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` {self.min:g} is above `max` {self.max:g}: no row could pass")
        if self.lowest + self.highest >= 1:
            raise ValueError("`lowest` and `highest` together leave no row")
        return self

    def keeps(self, rows: float | None) -> float:
        return 1 - self.lowest - self.highest

    def waits(self) -> bool:
        return bool(self.lowest or self.highest)

    def measured_by(self, run: Run) -> dict[str, Any] | None:
        if not (key := run.inputs[self.model].key):
            return None
        versions = {name: version(name) for name in ("torch", "transformers")}
        return {"name": "perplexity", "model": key, "measure": self.measure, "window": self.window, **versions}

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        of, value_D = self.measure.replace("_", " "), numbers["value"]
        return {
            "perplexity: below `min`": self.at_least(of, value_D, "min"),
            "perplexity: above `max`": self.at_most(of, value_D, "max"),
        }

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        """To within rounding the same in any company; NaN where there is nothing to predict."""
        import numpy as np

        path = str(run.inputs[self.model].path)
        if path not in self._opened:
            self._opened[path] = opened(path, self.window)
        texts = list(map(content, rows))
        nats_R, tokens_R = _nats(self._opened[path], texts)
        if not np.isfinite(nats_R).all():
            raise UserError(
                f"the model gives no finite probability to {rows[int(np.argmin(np.isfinite(nats_R)))].id!r}",
                "its weights hold NaN or infinite values",
                "name a model whose training went well",
            )
        if self.measure == "perplexity":
            return {"value": np.exp(nats_R / np.where(tokens_R, tokens_R, np.nan))}
        bytes_R = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts])
        return {"value": nats_R / LN_2 / np.where(tokens_R, bytes_R, np.nan)}

    def chooser(self, run: Run) -> Choice:
        return lambda numbers, rows: self._chosen(numbers["value"])

    def _chosen(self, value_R: Any) -> dict[int, Why]:
        import numpy as np

        judged = np.flatnonzero(~np.isnan(value_R))
        order = judged[np.argsort(value_R[judged], kind="stable")]
        low, high = round(self.lowest * len(order)), round(self.highest * len(order))
        gone = {
            "perplexity: below `min`": judged[value_R[judged] < self.min] if self.min is not None else judged[:0],
            "perplexity: above `max`": judged[value_R[judged] > self.max] if self.max is not None else judged[:0],
            "perplexity: among the lowest": order[:low],
            "perplexity: among the highest": order[len(order) - high :],
        }
        unit = self.measure.replace("_", " ")
        found: dict[int, Why] = {}
        for reason, places in gone.items():
            for row in places.tolist():
                found.setdefault(row, Why(reason, f"{value_R[row]:.3f} {unit}"))
        return found


def _nats(reader: Reader, texts: Sequence[str]) -> tuple[Any, Any]:
    """[R] sum of -log p of the tokens of each text, and how many they are. A window begins with a token that its first one is
    predicted from, where the tokenizer has one for it."""
    import numpy as np

    bos, eos = reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id
    nats_R, tokens_R = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for group in windows(reader, texts, [token for token in (bos, eos) if token is not None][:1]):
        _add(reader, [(row, piece) for row, piece in group if len(piece) > 1], nats_R, tokens_R)
    return nats_R, tokens_R


def _add(reader: Reader, group: Sequence[tuple[int, list[int]]], nats_R: Any, tokens_R: Any) -> None:
    """What the windows of a group say, to the rows that they are of."""
    import numpy as np
    import torch

    if not group:
        return
    ids_T, layout = packed(reader, group)
    position_N = torch.tensor([at for one in layout.segments for at in range(one.start, one.stop - 1)], device=reader.device)
    with torch.no_grad():
        policy = reader.trunk.policy(ids_T, layout, position_N, ids_T[position_N + 1], torch.float32)
        logp_N = policy.logps().double().cpu().numpy()
    owner_N = np.repeat([row for row, _ in group], [len(piece) - 1 for _, piece in group])
    np.subtract.at(nats_R, owner_N, logp_N)
    np.add.at(tokens_R, owner_N, 1)
