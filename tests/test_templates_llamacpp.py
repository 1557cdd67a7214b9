"""llama.cpp, whose Jinja is not Python's, renders what we render: from the template in an exported GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from modelwright.core.events import Log
from modelwright.methods.exporters import EXPORTERS
from modelwright.methods.templates import render
from tests import engine_kit as kit
from tests.test_templates_edges import BEGINNINGS, TEMPLATES_OF

xllamacpp = pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("model"))


def _server(file: Path) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.use_jinja = str(file), True
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 64, 1, -1
    return xllamacpp.Server(parameters)


@pytest.mark.parametrize("bos", ["<|endoftext|>", None])
@pytest.mark.parametrize("name", TEMPLATES_OF)
def test_llama_cpp_renders_the_same(name: str, bos: str | None, model: Path, tmp_path: Path) -> None:
    """It sees bytes, so a wide space is no white space to it; and it takes a word for the start that a vocabulary lacks."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template, tokenizer.bos_token = TEMPLATES_OF[name].jinja(), bos
    tokenizer.save_pretrained(model)
    EXPORTERS.load("gguf")().write(model, tmp_path, Log(None))  # type: ignore[attr-defined]
    server = _server(tmp_path / "model.gguf")
    for what, answer in BEGINNINGS.items():
        users = {"role": "user", "content": "And?"}
        chat = [{"role": "system", "content": "Briefly."}, users, {"role": "assistant", "content": answer}, users]
        asked = Request(f"{server.listening_address}/apply-template", json.dumps({"messages": chat}).encode())
        with urlopen(asked, timeout=30) as reply:
            rendered = json.loads(reply.read())["prompt"]
        wanted = render(TEMPLATES_OF[name].jinja(), chat, True, bos=bos or "", eos="<|im_end|>")
        assert rendered == wanted or "wide" in what, what
