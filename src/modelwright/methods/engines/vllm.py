"""vLLM: many answers at once on a GPU. Started and watched by us as a program of its own, and spoken to over HTTP.

Source: Kwon et al. 2023, "PagedAttention", arXiv:2309.06180; https://docs.vllm.ai/en/latest/cli/serve.html. Its key guards
`/v1` alone: other users of the same machine could reach its other endpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.engines._providers import VLLM
from modelwright.methods.engines._started import DTYPES, Start, Started, StartedSpec


class Vllm(StartedSpec):
    """A vLLM that is installed beside us."""

    program: ClassVar[str] = "vllm"
    advice: ClassVar[Advice] = Advice(
        "many people are served from a GPU",
        "probabilities of given texts, adapters per request or searches are needed (`native`), or there is no GPU (`llamacpp`)",
    )

    kind: Literal["vllm"] = "vllm"

    def open(self, model: Path) -> Started:
        return Started(self, VLLM, model)

    def start(self, program: str, model: Path, name: str, port: int, folder: Path, key: str) -> Start:
        argv = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
        argv += ["--dtype", DTYPES[self.precision], "--gpu-memory-utilization", str(self.memory_frac)]
        argv += ["--max-num-seqs", str(self.parallel)]
        argv += ["--generation-config", "vllm"]  # else the model's file would change settings that a request leaves out
        argv += ["--max-model-len", str(self.context)] if self.context else []
        # the key as an environment variable: arguments are seen by all users of the machine
        return Start(argv, {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
