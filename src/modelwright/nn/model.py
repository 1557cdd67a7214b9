"""Models in and out: Hugging Face folders with safetensors weights, built and run by transformers' own code."""

# Shape suffixes: T packed tokens, D model width.

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelwright.core.errors import UserError
from modelwright.nn import attention, experts, heads, multi, seq2seq, sequence, tables
from modelwright.nn.attention import Layout, Segment
from modelwright.nn.device import autocast
from modelwright.nn.device import of as device_of
from modelwright.nn.forward import Decoder
from modelwright.nn.heads import HEADS
from modelwright.nn.logps import Head, Policy

PACKED_TOLERANCE = 2e-4
"""Largest difference of a log-probability (nats, float32) between packed and separate runs; rounding gives about 1e-5."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers' own on the terminal: ours tells how far the work is."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


BEFORE_HEAD = {"bert": "cls.predictions.transform", "modernbert": "head"}
"""`model_type` -> the module between the last hidden states and the output layer of a masked language model."""


def load(
    folder: Path | str, dtype: torch.dtype = torch.float32, head: str = "causal", settings: Mapping[str, Any] | None = None
) -> tuple[Any, Any]:
    """The model in `folder` with this head (a key of `HEADS`), in `dtype` and eval mode, and its tokenizer. `settings` replace
    entries of its configuration; a new head for texts begins with transformers' own random weights.

    Weights come from safetensors only and no code of the folder's is run. A weight that the file lacks is an
    error: transformers would fill it with random numbers.
    """
    import transformers
    from safetensors import SafetensorError

    folder = Path(folder)
    head = heads.checked(folder, head)
    auto: Any = getattr(transformers, HEADS[head].auto)
    with quiet():
        try:
            model, info = auto.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **(settings or {}),
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"the model in {folder} cannot be opened",
                _first_line(error),
                f"is the copy whole, and a {HEADS[head].what}?",
            ) from error
    for name in ("missing_keys", "mismatched_keys"):
        lost = [key for key in info.get(name, ()) if head not in ("sequence", "tokens") or not sequence.is_new(model, key)]
        if lost:
            raise UserError(
                f"the model in {folder} lacks weights that its configuration needs",
                f"{name}: {', '.join(sorted(map(str, lost))[:4])}",
                f"the folder is not a whole {HEADS[head].what}; copy it again",
            )
    _check_sight(model, head)
    return model.eval(), load_tokenizer(folder)


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer in `folder`; its chat template, where it has one, is in `chat_template`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    with quiet():
        try:
            if (folder / "config.json").exists():
                return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"{folder} holds no tokenizer that can be opened", _first_line(error), "it needs a tokenizer.json"
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def build(config: Any, head: str | None = None, settings: Mapping[str, Any] | None = None) -> Any:
    """A float32 model of a transformers configuration; weights are transformers' own random ones. `head`: a key of `HEADS`; None:
    the first that there is for it. `settings` replace entries of the configuration."""
    import transformers

    for name, value in (settings or {}).items():
        setattr(config, name, value)

    head = heads.own(config.model_type, head or next(iter(heads.fitting(config.model_type)), "causal"))
    heads.check(config.model_type, head)
    auto: Any = getattr(transformers, HEADS[head].auto)
    with quiet():
        model = auto.from_config(config, dtype=torch.float32)
    _check_sight(model, head)
    return model


def looks_both_ways(model: Any) -> bool:
    """Whether its attention sees what comes after a token."""
    found = [vars(module)["is_causal"] for module in core(model).modules() if "is_causal" in vars(module)]
    return bool(found) and not any(found)


def _check_sight(model: Any, head: str) -> None:
    """UserError for a model that would see the token that it has to predict."""
    if head == "causal" and looks_both_ways(model):
        raise UserError(
            f"{type(model).__name__} looks both ways, so the next token is no secret to it",
            "a loss on the next token would fall to nothing and teach nothing",
            "choose `objective: masked_token`, or a decoder",
        )


def save(model: Any, tokenizer: Any, folder: Path | str) -> None:
    """Write the model (safetensors), its tokenizer, chat template and generation settings into `folder`."""
    with quiet():
        core(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    readable(Path(folder))


def readable(folder: Path) -> None:
    """Let weights be read by whoever may read the configuration beside them: safetensors writes for the owner alone, and a server
    often runs as somebody else."""
    mode = next(folder.glob("*config.json")).stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def core(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself; adapters stay in place in it."""
    peft: Any = sys.modules.get("peft")  # where it was never imported, nothing is wrapped in it; importing takes 0.1 GB
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model


def head(model: Any) -> Head:
    """What turns hidden states into logits."""
    return tables.head_of(core(model))


def merged(model: Any) -> Any:
    """The model with its adapter's updates in its weights."""
    tables.part(core(model))
    return model.merge_and_unload()


def before_head(model: Any) -> nn.Module | None:
    """The part of an encoder between its last hidden states and its head; None for a decoder, which has none."""
    if not looks_both_ways(model):
        return None
    inner = core(model)
    path = BEFORE_HEAD.get(inner.config.model_type)
    if path is None:
        raise UserError(
            f"{type(inner).__name__} cannot be trained on hidden tokens",
            "what it computes between its last layer and its head is not known here",
            "start from a ModernBERT or BERT model",
        )
    found: nn.Module = inner.get_submodule(path)
    return found


def recompute(model: Any) -> None:
    """Layers keep only what enters them, and are computed again in the backward pass; UserError where that cannot be."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in core(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(core(model)).__name__} cannot compute its layers again",
            "its code in transformers does not support gradient checkpointing",
            "set `recompute: selective`",
        )
    layer: Any
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def packed(model: Any) -> None:
    """Switch the model to packed attention; UserError with the reason where that cannot be."""
    inner = core(model)
    if seq2seq.Pairs.of(inner) is not None:
        seq2seq.register()
        inner.set_attn_implementation(seq2seq.NAME)
        return
    attention.register()
    if not inner._supports_attention_backend:
        raise UserError(
            f"{type(inner).__name__} cannot be trained on packed rows",
            "its code does not use transformers' attention interface",
            "start from a Llama, Qwen, Mistral, SmolLM or Gemma model",
        )
    inner.set_attn_implementation(attention.NAME)
    if inner.can_generate():
        inner.config.use_cache = False


def unpacked(model: Any) -> None:
    """Switch the model back to transformers' own attention, for generation and saving."""
    inner = core(model)
    inner.set_attn_implementation("sdpa" if inner._supports_sdpa else "eager")
    if inner.can_generate():
        inner.config.use_cache = True


def begin(model: Any, tokenizer: Any) -> None:
    """Say with which token an encoder-decoder begins to write, where it does not say so itself."""
    seq2seq.begin(core(model), tokenizer)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


MOST_WANTED = 0.8
"""Share of positions in the loss from which on the last layer runs for all tokens: picking them out costs as much."""


def wanted(position_N: Tensor, tokens: int) -> tuple[Tensor | None, Tensor]:
    """[U] tokens that the last layer should run for (None: all), and [N] which of these each prediction takes."""
    wanted_U, place_N = torch.unique(position_N, return_inverse=True)
    return (wanted_U, place_N) if 0 < len(wanted_U) < MOST_WANTED * tokens else (None, position_N)


class Trunk:
    """A model as the loss sees it: packed tokens in, hidden states before the head out. Our own forward pass where it knows the
    model, else transformers' modules."""

    def __init__(self, model: Any, own: bool = True) -> None:
        self.model = model
        self.scorer = sequence.scorer(core(model))
        """Makes one score of a document, where the model is a classifier; else there is a head."""
        if self.scorer is None:
            head(model)  # refused now rather than in the first step
        self.before_head = before_head(model) if self.scorer is None else None
        self.decoder = Decoder.of(core(model)) if own else None
        self.pairs = seq2seq.Pairs.of(core(model))
        self.ahead = multi.of(core(model))
        self.router = experts.Router.of(core(model))
        self.loss_factor = 1.0
        """What the loss is multiplied with before its gradient is taken (`nn/scaling.py`)."""
        self.routed: experts.Routed | None = None
        """What the last forward pass said of a mixture of experts' routers."""
        self.choices = experts.Choices()

    @property
    def head(self) -> Head:
        """As the model has it now: where processes share it, its weights are there for one pass."""
        assert self.scorer is None, "a classifier has no head over the vocabulary"
        return head(self.model)._replace(loss_factor=self.loss_factor)

    def _products(self, dtype: torch.dtype) -> torch.autocast:
        weight = next(self.model.parameters())
        return autocast(weight.device, dtype, weight.dtype)

    def hidden(self, ids_T: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
        """[T, D] after the final norm; matrix products run in `dtype`."""
        if self.decoder is not None:
            return self.decoder.hidden(ids_T, layout, dtype)
        if self.pairs is not None:
            return self.pairs.hidden(ids_T, layout, dtype)
        with self._products(dtype):
            output = core(self.model).base_model(
                input_ids=ids_T[None],
                position_ids=layout.positions().to(ids_T.device)[None],
                use_cache=False,
                segments=layout,
                **({} if self.router is None else {"output_router_logits": True}),
            )
        if self.router is not None:
            self.routed = self.router.routed(output.router_logits, self.choices.before_LE)
        hidden_TD: Tensor = output.last_hidden_state[0]
        return hidden_TD

    def policy(self, ids_T: Tensor, layout: Layout, position_N: Tensor, target_N: Tensor, dtype: torch.dtype) -> Policy:
        """Log-probabilities of these targets, as objectives ask for them."""
        if self.scorer is not None:
            score_SC = self.scores(ids_T, layout, dtype)
            of_tokens = sequence.judges_tokens(core(self.model))
            return sequence.Scores(score_SC.index_select(0, position_N) if of_tokens else score_SC)
        return self.over(*self._predicting(ids_T, layout, position_N, dtype), target_N, dtype)

    def over(self, hidden_UD: Tensor, place_N: Tensor, target_N: Tensor, dtype: torch.dtype) -> Policy:
        """Log-probabilities of these targets, each by the hidden state at its place."""
        if self.ahead is None:
            return Policy(hidden_UD, place_N, target_N, self.head, dtype)
        return multi.Far(self.ahead, hidden_UD, place_N, target_N, self.head, dtype)

    def _predicting(self, ids_T: Tensor, layout: Layout, position_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[U, D] hidden states among which those of all predictions are, and [N] which one each takes."""
        if self.decoder is not None:
            wanted_U, place_N = wanted(position_N, len(ids_T))
            return self.decoder.hidden(ids_T, layout, dtype, wanted_U), place_N
        hidden_TD = self.hidden(ids_T, layout, dtype)
        if self.before_head is None:
            return hidden_TD, position_N
        # only where the loss looks, and each place is asked for once
        finished_ND = self.finished(hidden_TD.index_select(0, position_N), dtype)
        return finished_ND, torch.arange(len(position_N), device=position_N.device)

    def at(self, ids_T: Tensor, layout: Layout, position_N: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, D] last hidden states at these positions."""
        return self.hidden(ids_T, layout, dtype).index_select(0, position_N)

    def finished(self, hidden_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """What the head sees: an encoder has a small network before it."""
        if self.before_head is None:
            return hidden_ND
        with self._products(dtype):
            finished_ND: Tensor = self.before_head(hidden_ND)
            return finished_ND

    def scores(self, ids_T: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
        """[S, C] of a classifier of texts, [T, C] of one of tokens."""
        assert self.scorer is not None
        hidden_TD = self.hidden(ids_T, layout, dtype)
        with self._products(dtype):
            score_SC: Tensor = self.scorer(hidden_TD, layout)
            return score_SC

    def answers(self, ids_T: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
        """[T, V] log-probabilities at every token, or [S, C] scores: for checks, since the vocabulary is large."""
        if self.scorer is not None:
            return self.scores(ids_T, layout, dtype).float()
        return self.head.logits(self.finished(self.hidden(ids_T, layout, dtype), dtype), dtype).float().log_softmax(-1)


@torch.no_grad()
def check_packed(model: Any) -> None:
    """UserError unless packed log-probabilities equal those of the model's own forward pass, document by document.

    Finds everything that a type check would miss: state that leaks between documents (recurrent or convolutional
    layers), logits changed after the head (by other than a soft cap), positions taken from elsewhere.
    """
    inner = core(model)
    was_training, dtype = inner.training, next(inner.parameters()).dtype
    inner.eval()
    vocab = inner.get_input_embeddings().weight.shape[0]
    documents = [torch.arange(first, first + length) * 7919 % vocab for first, length in ((3, 9), (50, 13))]
    documents = [ids.to(device_of(model)) for ids in documents]
    ids_T = torch.cat(documents)
    try:
        packed(model)
        trunk = Trunk(model)
        if trunk.pairs is not None:
            layout = Layout([Segment(0, 6), Segment(6, 9, 0), Segment(9, 15), Segment(15, 22, 2)])
            ours = trunk.answers(ids_T, layout, dtype)[seq2seq.positions(layout).to(ids_T.device)]
            unpacked(model)
            theirs = trunk.pairs.alone(ids_T, layout).float()
        else:
            ours = trunk.answers(ids_T, Layout([Segment(0, 9), Segment(9, 22)]), dtype)
            unpacked(model)
            theirs = torch.cat([inner(input_ids=ids[None], use_cache=False).logits.flatten(0, -2) for ids in documents]).float()
        theirs = theirs if trunk.scorer is not None else theirs.log_softmax(-1)
    finally:
        inner.train(was_training)
        packed(model)
    worst = float((ours - theirs).abs().max())
    if not worst <= (PACKED_TOLERANCE if dtype == torch.float32 else 0.1):
        raise UserError(
            f"{type(inner).__name__} does not give the same result on packed rows as on separate ones",
            f"log-probabilities differ by {worst:.2g} nats: a layer sees other documents, or logits are changed after the head",
            "start from a Llama, Qwen, Mistral, SmolLM or Gemma model",
        )
