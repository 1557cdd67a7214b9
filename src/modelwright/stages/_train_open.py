"""What a training stage begins with: the tokenizer, the model, and proof that packed rows give the model's own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.stage import Run
from modelwright.methods.architectures import shape_of
from modelwright.stages._train_arranged import arranger
from modelwright.stages._train_layouts import not_own
from modelwright.stages._train_start import check_length
from modelwright.stages._train_text import Text

if TYPE_CHECKING:
    import torch

    from modelwright.stages._train_spec import Training


class Opened(NamedTuple):
    """The model to train, wrapped and ready, and its text side."""

    model: Any
    text: Text
    shape: Shape


def open_text(stage: Training, run: Run) -> Text:
    """The tokenizer of the start or of the vocabulary, and how this stage uses it."""
    from modelwright.nn import model as models

    ref = stage.start if stage.start is not None else stage.vocab
    assert ref is not None
    tokenizer = models.load_tokenizer(run.inputs[ref].path)
    arrange = arranger(stage.objective, tokenizer, run.seed)
    wants = stage.objective
    length = wants.row_tokens(stage.length)
    return Text(tokenizer, stage.template, wants.needs, length, arrange, wants.label, wants.parts, wants.tagged)


def open_model(stage: Training, run: Run, device: torch.device | None = None) -> Opened:
    """Build or load the model, check that packed rows give its own results, put the adapter in place, and all on the device (a
    processor unless it is told); first weights are drawn on the processor, so they are the same everywhere."""
    import torch

    from modelwright.nn import model as models
    from modelwright.nn.attention import compiled, steady_tokens

    text = open_text(stage, run)
    torch.manual_seed(run.seed)
    if stage.start is not None:
        head, settings = stage.objective.head, stage.objective.settings()
        model, tokenizer = models.load(run.inputs[stage.start].path, head=head, settings=settings)
        text = text._replace(tokenizer=tokenizer)
        model = stage.grow.grow(model, run.seed) if stage.grow is not None else model
    else:
        assert stage.model is not None
        model = models.build(
            stage.model.config(len(text.tokenizer), stage.length), stage.objective.head, stage.objective.settings()
        )
        stage.model.initialise(model)
    check_length(stage.length, getattr(model.config, "max_position_embeddings", None))
    if len(text.tokenizer) > models.core(model).get_input_embeddings().weight.shape[0]:
        raise UserError(
            "the tokenizer has more tokens than the model has embeddings", f"in {stage.start}", "use the model's own tokenizer"
        )
    if stage.objective.head == "seq2seq":
        models.begin(model, text.tokenizer)
    if (steady := steady_tokens(model.config)) is not None and stage.length > steady:
        raise UserError(
            f"`length` {stage.length} is more than the {steady} tokens up to which this model's positions are steady",
            "one longer text changes the positions (`longrope`) of all texts in its packed row",
            f"set `length: {steady}` or less",
        )
    if not compiled():
        run.log.note("kernels are compiled for this processor: up to half a minute when it trains for the first time")
    models.check_packed(model)
    shape = shape_of(model.config)
    model = fitted(stage, model, run.seed)
    if device is not None and device.type != "cpu":
        models.check_packed(model.to(device))  # its kernels are others
    if stage.compile:
        _fuse(model, run)
    return Opened(model, text, shape)


def fitted(stage: Training, model: Any, seed: int) -> Any:
    """The model with what this training puts into it: an adapter, layers that are computed again, the objective's modules."""
    import torch

    from modelwright.nn import model as models

    if stage.adapter is not None:
        torch.manual_seed(seed)  # the adapter's first weights depend on the seed alone
        model = stage.adapter.wrap(model)
    if stage.recompute == "full":
        models.recompute(model)
    stage.objective.attach(models.core(model))
    return model


def _fuse(model: Any, run: Run) -> None:
    """Compile what lies between matrix products, and prove that the results are the same; UserError where that cannot be."""
    from modelwright.nn import fused
    from modelwright.nn import model as models
    from modelwright.nn.forward import Decoder

    inner = models.core(model)
    if Decoder.of(inner) is None:
        raise not_own("compile: true", "it fuses parts of the forward pass")
    fused.choose(inner)
    try:
        models.check_packed(model)
    except RuntimeError as error:  # what torch.compile and its compilers raise
        raise UserError(
            "torch.compile does not work on this machine",
            " ".join(str(error).strip().splitlines()[:2]),
            "leave `compile` out, or install a C++ compiler (for a CUDA card: Triton)",
        ) from error
    run.log.note("norms, rotary positions and the MLP's gate are compiled")
