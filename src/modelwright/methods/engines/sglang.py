"""SGLang: many answers at once on a GPU, quick where prompts begin alike. Started and watched by us, and spoken to over HTTP.

Source: Zheng et al. 2024, arXiv:2312.07104; https://docs.sglang.io/docs/advanced_features/server_arguments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.engines._providers import SGLANG
from modelwright.methods.engines._started import DTYPES, Start, Started, StartedSpec


class Sglang(StartedSpec):
    """An SGLang that is installed beside us."""

    program: ClassVar[str] = "sglang"
    advice: ClassVar[Advice] = Advice(
        "many people are served from a GPU and their prompts begin alike",
        "probabilities of given texts, adapters per request or searches are needed (`native`), or there is no GPU (`llamacpp`)",
    )

    kind: Literal["sglang"] = "sglang"

    def open(self, model: Path) -> Started:
        return Started(self, SGLANG, model)

    def start(self, program: str, model: Path, name: str, port: int, folder: Path, key: str) -> Start:
        config = folder / "config.yaml"
        config.touch(0o600)
        config.write_text(json.dumps({"api-key": key}), encoding="utf-8")  # arguments are seen by all users of the machine
        argv = [program, "serve", "--model-path", str(model), "--config", str(config), "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--served-model-name", name, "--dtype", DTYPES[self.precision]]
        argv += ["--mem-fraction-static", str(self.memory_frac), "--max-running-requests", str(self.parallel)]
        argv += ["--sampling-defaults", "openai"]  # else the model's file would change settings that a request leaves out
        argv += ["--context-length", str(self.context)] if self.context else []
        return Start(argv, {"HF_HUB_OFFLINE": "1"})
