"""Who answers OpenAI's chat API over the network, and which of our settings each of them takes; data, with its sources.

What a provider would ignore is refused here by name: its own documents say what it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.engines import Constraint, Sampling


class Provider(NamedTuple):
    """One server's ways."""

    name: str
    url: str
    key: str
    """Environment variable that its own documents name for the key; '': none is needed."""
    takes: Mapping[str, str]
    """Our `Sampling` field (or `logprobs`) -> its name there."""
    constraints: frozenset[str] = frozenset()
    """Kinds of `Constraint` that it obeys."""
    streamed: Mapping[str, Any] = {}
    """Sent with every request for a stream."""
    more: Mapping[str, Any] = {}
    """Sent with every request."""
    start: str = "check the address and the network"
    """What to do where nobody answers."""


_ALL = {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "stop": "stop"}
_SEED = {"seed": "seed"}
_PENALTIES = {"frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty"}
_LOGPROBS = {"logprobs": "logprobs", "top_logprobs": "top_logprobs"}
_CUTS = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
_OPENAI = _ALL | _SEED | _PENALTIES | _LOGPROBS
_SCHEMA = frozenset({"json_schema"})
_USAGE = {"stream_options": {"include_usage": True}}
"""In the last piece."""

OTHER = Provider("other", "", "", _OPENAI, _SCHEMA, _USAGE)
"""A server that says it is OpenAI-compatible."""
PROVIDERS = {
    provider.name: provider
    for provider in (
        # https://platform.openai.com/docs/api-reference/chat/create (`max_tokens` is refused by its newer models)
        Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY",
                 _OPENAI | {"max_tokens": "max_completion_tokens"}, _SCHEMA, _USAGE),
        # https://docs.anthropic.com/en/api/openai-sdk lists what it ignores: seed, penalties, logprobs, response_format
        Provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", _ALL, streamed=_USAGE),
        # https://ai.google.dev/gemini-api/docs/openai
        Provider("google", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", _ALL, _SCHEMA, _USAGE),
        # https://docs.cohere.com/docs/compatibility-api
        Provider("cohere", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY", _ALL | _SEED | _PENALTIES,
                 streamed=_USAGE),
        # https://openrouter.ai/docs/api-reference/parameters; `require_parameters`: only to those who take all that is sent
        Provider("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", _OPENAI | _CUTS, _SCHEMA,
                 _USAGE, {"provider": {"require_parameters": True}}),
        # https://huggingface.co/docs/inference-providers/tasks/chat-completion
        Provider("huggingface", "https://router.huggingface.co/v1", "HF_TOKEN", _OPENAI, _SCHEMA, _USAGE),
        # https://docs.together.ai/reference/chat-completions-1
        Provider("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", _ALL | _SEED | _PENALTIES | _CUTS, _SCHEMA,
                 _USAGE),
        # https://docs.mistral.ai/api; it counts in the last piece of every stream
        Provider("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", _ALL | {"seed": "random_seed"} | _PENALTIES, _SCHEMA),
        # https://console.groq.com/docs/api-reference
        Provider("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY",
                 _ALL | _SEED | {"max_tokens": "max_completion_tokens"}, _SCHEMA, _USAGE),
        # https://api-docs.deepseek.com/api/create-chat-completion
        Provider("deepseek", "https://api.deepseek.com", "DEEPSEEK_API_KEY", _ALL | _LOGPROBS, streamed=_USAGE),
    )
}  # fmt: skip

# https://docs.ollama.com/api/openai-compatibility
OLLAMA = Provider("ollama", "http://127.0.0.1:11434/v1", "", _OPENAI, _SCHEMA, _USAGE, start="start it: `ollama serve`")
# https://lmstudio.ai/docs/developer/openai-compat/chat-completions
LMSTUDIO = Provider("lmstudio", "http://127.0.0.1:1234/v1", "",
                    _ALL | _SEED | _PENALTIES | {"top_k": "top_k", "repetition_penalty": "repeat_penalty"}, _SCHEMA, _USAGE,
                    start="start it: `lms server start`")  # fmt: skip
# https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html, extra parameters
VLLM = Provider("vllm", "", "", _OPENAI | _CUTS | {"logit_bias": "logit_bias"}, _SCHEMA | {"regex", "choices"}, _USAGE)
# https://docs.sglang.io/basic_usage/sampling_params.html
SGLANG = Provider("sglang", "", "", _OPENAI | _CUTS, _SCHEMA | {"regex"}, _USAGE)


def fields(provider: Provider, sampling: Sampling, logprobs: bool) -> dict[str, Any]:
    """A request's settings under the provider's names; UserError that names the first one it does not take."""
    if sampling.max_tokens < 1:
        raise UserError(f"max_tokens is {sampling.max_tokens}", "an answer has at least one token", "give a positive number")
    found: dict[str, Any] = {}
    usual = Sampling()
    for name, value in sampling._asdict().items():
        if name in ("max_tokens", "temperature") or value != getattr(usual, name):
            if name == "seed" and sampling.temperature == 0:
                continue  # nothing is drawn
            if name not in provider.takes:
                takes = ", ".join(sorted(provider.takes))
                fix = "leave it out, or take another engine"
                raise UserError(f"{provider.name} does not take `{name}`", f"it takes {takes}", fix)
            found[provider.takes[name]] = dict(value) if name == "logit_bias" else list(value) if name == "stop" else value
    if sampling.temperature > 0 and "seed" in provider.takes:
        found[provider.takes["seed"]] = sampling.seed  # 0 is a seed too
    if logprobs or sampling.top_logprobs:
        found["logprobs"] = True
    return found


def constrained(provider: Provider, constraint: Constraint) -> dict[str, Any]:
    """The fields that ask for an answer of this form."""
    import json

    if constraint.kind not in provider.constraints:
        has = ", ".join(sorted(provider.constraints)) or "no form"
        raise UserError(f"{provider.name} cannot hold an answer to a {constraint.kind}", f"it can: {has}", "take a local engine")
    if constraint.kind == "json_schema":
        schema = {"name": "answer", "strict": True, "schema": json.loads(constraint.text)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if provider.name == "sglang":
        return {"regex": constraint.text}
    value = json.loads(constraint.text) if constraint.kind == "choices" else constraint.text
    return {"structured_outputs": {"choice" if constraint.kind == "choices" else "regex": value}}
