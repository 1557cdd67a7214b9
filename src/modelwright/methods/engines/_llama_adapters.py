"""LoRA adapters of a llama.cpp context: opened by name, set for one batch at a time, freed when nobody uses them any more.

Source: llama.h (`llama_adapter_lora_init`, `llama_set_adapters_lora`). llama.cpp sets adapters for a whole batch, so rows with
different ones take turns. All but `gguf_of` belongs to the thread that owns the context.
"""

from __future__ import annotations

from pathlib import Path

from modelwright.core.errors import UserError
from modelwright.methods.engines import _llama_c as c


class Lora:
    """One open adapter; its object is what tells it from another that had its name before."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0
        self.named = True


class Loras:
    """Those of one model and one context."""

    def __init__(self, model: int, context: int) -> None:
        self._model, self._context = model, context
        self.named: dict[str, Lora] = {}
        self._worn: Lora | None = None

    def load(self, name: str, file: Path) -> None:
        """In the place of one that has the name; rows under way keep theirs."""
        new = Lora(c.open_adapter(self._model, file))
        if name in self.named:
            self.drop(name)
        self.named[name] = new

    def drop(self, name: str) -> None:
        if name not in self.named:
            raise self._unknown(name, "name one of these")
        gone = self.named.pop(name)
        gone.named = False
        self._free(gone)

    def take(self, name: str) -> Lora | None:
        """For a row; None for ''. Give it back with `leave`."""
        if not name:
            return None
        if name not in self.named:
            raise self._unknown(name, "load it first, or ask without it")
        self.named[name].users += 1
        return self.named[name]

    def leave(self, lora: Lora | None) -> None:
        if lora is not None:
            lora.users -= 1
            self._free(lora)

    def wear(self, lora: Lora | None) -> None:
        """What the next batch is computed with."""
        if lora is not self._worn:
            c.set_adapter(self._context, lora.handle if lora else None)
            self._worn = lora

    def _free(self, lora: Lora) -> None:
        if lora.users or lora.named:
            return
        if lora is self._worn:
            self.wear(None)
        c.library().llama_adapter_lora_free(lora.handle)

    def _unknown(self, name: str, fix: str) -> UserError:
        return UserError(f"there is no adapter {name!r}", f"there are: {', '.join(self.named) or 'none'}", fix)


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that an adapter's path means; None for what can only be a folder in PEFT's layout."""
    if path.is_dir() and not (path / "adapter_config.json").exists():
        files = sorted(path.glob("*.gguf"))
        return files[0] if len(files) == 1 else None
    return path if path.is_file() else None
