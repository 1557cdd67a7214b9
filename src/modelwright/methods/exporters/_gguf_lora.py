"""A LoRA as llama.cpp attaches it: a GGUF file that holds, beside nothing else, two thin matrices for each weight they change.

Source: llama.cpp's `src/llama-adapter.cpp`, which reads such files (`general.type` adapter, `adapter.type` lora, a weight's name
with `.lora_a` and `.lora_b`), and the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Differs from
llama.cpp's own converter: alpha / rank, which may differ from layer to layer, is in the second matrix, so no alpha is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core import lora
from modelwright.core.errors import missing_extra


class Base(NamedTuple):
    """What has to be known of the model that it is attached to."""

    architecture: str
    """GGUF's name."""
    heads: int
    key_heads: int


def write(folder: Path, file: Path, base: Base) -> dict[str, Any]:
    """The adapter in `folder`, in PEFT's layout, as `file`; UserError for what llama.cpp has no place for."""
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "gguf", "an adapter in PEFT's layout under llama.cpp") from None
    import numpy as np

    from modelwright.methods.exporters._gguf_model import ARCHITECTURES
    from modelwright.methods.exporters._gguf_tensors import matrix, turned

    if base.architecture not in ARCHITECTURES.values():
        why = f"which matrices of the architecture {base.architecture!r} it changes is not known here"
        raise lora.refused(folder, why, "name a GGUF file that llama.cpp's convert_lora_to_gguf.py made of it")
    writer = gguf.GGUFWriter(file, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    ranks, count = set[int](), 0
    for path, pair in sorted(lora.read(folder).items()):
        name = matrix(base.architecture, path)
        if name is None or name == "token_embd.weight":
            raise lora.refused(folder, f"llama.cpp has no place for what it adds to {path}")
        second_OR = turned(base.architecture, name, pair.second_OR, base.heads, base.key_heads)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(pair.first_RI))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(second_OR))
        ranks.add(len(pair.first_RI))
        count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"matrices": count, "ranks": sorted(ranks), "bytes": file.stat().st_size}
