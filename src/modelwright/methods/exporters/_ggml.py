"""Arrays to ggml's blocks: by the `gguf` package where it can, else by the `ggml_quantize_chunk` of an installed llama.cpp.

Source: https://github.com/ggml-org/ggml/blob/master/include/ggml.h (`ggml_quantize_chunk`). The library is found inside the
`xllamacpp` or `llama_cpp` package without importing either; no program is run and no file is written. Both make the same bytes
where both can.
"""

from __future__ import annotations

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.measure import cores

_LIBRARIES = {"xllamacpp": ("xllamacpp*.so", "xllamacpp*.pyd"), "llama_cpp": ("lib/*ggml-base.*",)}
"""Package -> where in it the shared object lies that exports the function."""
_BY_PACKAGE = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"})


def quantised(array: Any, kind: str) -> Any:
    """A contiguous float32 array in a type of `_types.BLOCKS`, as the file holds it."""
    import gguf
    import numpy as np

    wanted = gguf.GGMLQuantizationType[kind.upper()]
    if kind in _BY_PACKAGE:
        return gguf.quantize(array, wanted)
    weights, size = gguf.GGML_QUANT_SIZES[wanted]
    width = array.shape[-1]
    out = np.empty((*array.shape[:-1], width // weights * size), dtype=np.uint8)
    rows, function = array.size // width, library()
    step = max(1, -(-rows // (4 * cores())))  # a few parts for each core, since they do not all go on at one speed

    def part(first: int) -> int:
        count = min(step, rows - first)
        return int(function(int(wanted), array.ctypes.data, out.ctypes.data, first * width, count, width, None))

    with ThreadPoolExecutor(cores()) as pool:  # the call leaves Python's lock
        written = sum(pool.map(part, range(0, rows, step)))
    assert written == out.nbytes, f"{kind}: {written} bytes written of {out.nbytes}"
    return out


def check(kinds: set[str]) -> None:
    """UserError, before the work begins, where these types need a llama.cpp that is not there."""
    if kinds - _BY_PACKAGE:
        library()


@lru_cache(maxsize=1)
def library() -> Any:
    """`ggml_quantize_chunk` of the first package that has it."""
    for package, patterns in _LIBRARIES.items():
        found = importlib.util.find_spec(package)
        folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
        for path in sorted(file for folder in folders for pattern in patterns for file in folder.glob(pattern)):
            try:
                function = ctypes.CDLL(str(path)).ggml_quantize_chunk
            except (OSError, AttributeError):
                continue  # another build of the same package, or one that hides it
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
            return function
    raise UserError(
        "this type of GGUF needs llama.cpp, whose quantiser is not installed",
        f"looked for ggml_quantize_chunk in the packages {', '.join(_LIBRARIES)}",
        "pip install 'modelwright[llamacpp]', or a type that needs none: q8_0, q5_1, q5_0, q4_1, q4_0",
    )
