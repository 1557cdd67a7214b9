"""The part of llama.cpp's C interface that the engine needs, found in the shared object of the `xllamacpp` wheel.

Source: llama.h, https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h. Parameter structs change between
versions, so they are never described here: llama.cpp fills one with its defaults into a larger buffer, the first four
numbers (`n_ctx`, `n_batch`, `n_ubatch`, `n_seq_max`, in this order since 2023) are checked against the documented
defaults before they are changed, and the open context is asked whether it took them. The buffer is passed by value as
the last argument; on the calling conventions of x86-64 and arm64 a struct of this size is read from memory up to its
real size. All else are plain numbers, pointers and `llama_batch`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError, missing_extra

TESTED = "2026.10.11549"
"""The wheel that the tests ran with."""


class _Params(ctypes.Structure):
    """A parameter struct of unknown length; 1 kB is several times the largest."""

    _fields_ = [("head", c_uint32 * 4), ("tail", c_uint32 * 252)]


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LOG, c_void_p]),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Params]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Params]),
    "llama_model_free": (None, [c_void_p]),
    "llama_free": (None, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_has_encoder": (c_bool, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, ctypes.c_size_t]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_is_control": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_memory_seq_pos_min": (c_int32, [c_void_p, c_int32]),
    "llama_memory_seq_pos_max": (c_int32, [c_void_p, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_adapter_lora_free": (None, [c_void_p]),
    "llama_adapter_get_alora_n_invocation_tokens": (c_uint64, [c_void_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), ctypes.c_size_t, POINTER(c_float)]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_set_embeddings": (None, [c_void_p, c_bool]),
    "llama_get_embeddings_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_logits_ith": (c_void_p, [c_void_p, c_int32]),
}


@lru_cache(maxsize=1)
def library() -> Any:
    """The shared object with its functions declared; UserError where this wheel does not have them."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("xllamacpp", "llamacpp", "the llama.cpp engine")
    files = [
        path
        for folder in found.submodule_search_locations
        for pattern in ("xllamacpp*.so", "xllamacpp*.pyd")
        for path in Path(folder).glob(pattern)
    ]
    try:
        lib = ctypes.CDLL(str(files[0]))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (IndexError, OSError, AttributeError) as error:
        raise _other_version(str(error)) from None
    head = list(lib.llama_context_default_params().head)
    if head != [512, 2048, 512, 1]:
        raise _other_version(f"the context's defaults begin with {head}, not with 512, 2048, 512, 1")
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib


def _other_version(why: str) -> UserError:
    return UserError(
        "this version of xllamacpp has another interface than the one the engine was written for",
        why,
        f"pip install xllamacpp=={TESTED}",
    )


_said = threading.local()


def _listen(level: int, text: bytes | None, _: int | None) -> None:
    """Keep llama.cpp's first error, which is the cause of those that follow; its other lines would be written over the progress
    display. 4 is GGML_LOG_LEVEL_ERROR."""
    if level == 4 and text and not getattr(_said, "error", ""):
        _said.error = text.decode("utf-8", errors="replace").strip()


_log = _LOG(_listen)  # kept here: llama.cpp calls it as long as the process lives


def last_error() -> str:
    """What llama.cpp said in this thread, since it was asked last, when something failed."""
    said = getattr(_said, "error", "")
    _said.error = ""
    return said


def load_model(path: Path) -> int:
    """A handle to the model in a GGUF file."""
    lib = library()
    last_error()  # of something before
    handle: int | None = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not handle:
        raise UserError(
            f"llama.cpp cannot open {path.name}",
            last_error() or "it did not say why",
            "make the export again; another program's file may be damaged, or for a newer llama.cpp: pip install -U xllamacpp",
        )
    return handle


def open_context(model: int, context: int, rows: int, batch: int, threads: int) -> int:
    """A context for `rows` sequences of `context` tokens each, fed at most `batch` tokens at a time."""
    lib = library()
    params = lib.llama_context_default_params()
    params.head[:] = [context * rows, batch, min(batch, 512), rows]
    handle: int | None = lib.llama_init_from_model(model, params)
    if not handle:
        raise UserError("llama.cpp cannot make a context", last_error() or "out of memory", "lower `max_batch` or `context`")
    if lib.llama_n_seq_max(handle) != rows or lib.llama_n_ctx(handle) < context * rows or lib.llama_n_batch(handle) < batch:
        lib.llama_free(handle)
        raise _other_version("the context did not take the sizes it was given")
    lib.llama_set_n_threads(handle, threads, threads)
    return handle


def open_adapter(model: int, path: Path) -> int:
    """A handle to the LoRA in a GGUF file; it is freed with the model where nobody frees it before."""
    lib = library()
    last_error()
    handle: int | None = lib.llama_adapter_lora_init(model, str(path).encode())
    if handle and lib.llama_adapter_get_alora_n_invocation_tokens(handle):
        lib.llama_adapter_lora_free(handle)
        raise UserError(f"{path.name} is an activated LoRA", "it begins in the middle of a prompt", "take a plain LoRA")
    if not handle:
        raise UserError(
            f"llama.cpp cannot attach {path.name}",
            last_error() or "it did not say why",
            "attach it to the model it was trained on; an adapter in PEFT's layout is named by its folder",
        )
    return handle


def set_adapter(context: int, adapter: int | None) -> None:
    """From the next batch on; None: the model alone."""
    handles, scales = (c_void_p * 1)(adapter), (c_float * 1)(1.0)
    if code := library().llama_set_adapters_lora(context, handles, 0 if adapter is None else 1, scales):
        raise _other_version(f"llama_set_adapters_lora gave {code}")


def meta(model: int, key: str) -> str | None:
    """A value of the GGUF file's header as text."""
    lib = library()
    size = lib.llama_model_meta_val_str(model, key.encode(), None, 0)
    if size < 0:
        return None
    buffer = ctypes.create_string_buffer(size + 1)
    lib.llama_model_meta_val_str(model, key.encode(), buffer, size + 1)
    return buffer.value.decode("utf-8", errors="replace")


def tokenize(vocab: int, text: str, add_special: bool, parse_special: bool = True) -> list[int]:
    """Token ids; special tokens in the text become one token each, or are spelt without `parse_special`."""
    lib, data = library(), text.encode("utf-8")
    room = len(data) + 8
    for _ in range(2):
        buffer = (c_int32 * room)()
        count = lib.llama_tokenize(vocab, data, len(data), buffer, room, add_special, parse_special)
        if count >= 0:
            return list(buffer[:count])
        room = -count
    raise AssertionError(f"llama.cpp wants {room} places for {len(data)} bytes")


def piece(vocab: int, token: int, special: bool = False) -> bytes:
    """The bytes of a token; nothing for a special one unless asked."""
    lib = library()
    size = 64
    for _ in range(2):
        buffer = ctypes.create_string_buffer(size)
        count = lib.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if count >= 0:
            return buffer.raw[:count]
        size = -count
    raise AssertionError(f"token {token} does not fit {size} bytes")
