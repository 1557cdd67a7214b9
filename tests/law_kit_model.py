"""The law of use for what trains: architectures, adapters, objectives, optimizers, schedules."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelwright.core.estimate import Shape
from modelwright.core.record import Record
from modelwright.methods.objectives import Batch
from modelwright.nn.logps import Sums
from tests.law_kit import Seen, Subject

VOCAB, TOKENS = 90, 12


def _ids(seed: int, count: int = TOKENS) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def _routed(router: Any, model: Any) -> Tensor:
    """What routers add to the loss of tokens whose choices were those of the step before, too."""
    from modelwright.nn.experts import count

    logits_LTE = model.base_model(_ids(0)[None], output_router_logits=True).router_logits
    added: Tensor = router.routed(logits_LTE, count(logits_LTE, router.experts_per_token).share_LE).loss
    return added


def see_architecture(spec: Any, bench: Any) -> Seen:
    """What a fresh model answers, which depends on every size and every weight, and what its routers add to the loss."""
    from modelwright.nn.experts import Router
    from modelwright.nn.model import build

    torch.manual_seed(0)
    model = build(spec.config(VOCAB, 64)).eval()
    spec.initialise(model)
    with torch.no_grad():
        written = {"decoder_input_ids": _ids(1)[None]} if model.config.is_encoder_decoder else {}
        logits_TV = model(input_ids=_ids(0)[None], **written).logits[0]
        router = Router.of(model)
        added = _routed(router, model) if router else None
    return Seen([logits_TV[:, :5], added], effort=spec.shape(VOCAB).model_dump())


ARCHITECTURES = Subject(
    see_architecture,
    bases={
        "llama": {"depth": 2, "hidden": 64, "heads": 4},
        "llama.hidden": {"hidden": ...},
        "qwen3": {"depth": 2, "hidden": 64, "heads": 4, "head_dim": 16},
        "qwen3.hidden": {"hidden": ...},
        "gemma": {"depth": 2, "hidden": 64, "heads": 4, "head_dim": 16, "window": 4},
        "gemma.hidden": {"hidden": ...},
        "gemma.local_layers": {"depth": 4},
        "moe": {"depth": 2, "hidden": 64, "heads": 4, "head_dim": 16, "experts": 4},
        "moe.hidden": {"hidden": ...},
        "encoder": {"depth": 2, "hidden": 64, "heads": 4},
        "encoder.hidden": {"hidden": ...},
        "encoder.global_every": {"window": 8},
        "encoder_decoder": {"depth": 2, "hidden": 64, "heads": 4, "head_dim": 8},
        "encoder_decoder.hidden": {"hidden": ...},
        "encoder_decoder.far": {"buckets": 8},
    },
    others={"encoder.intermediate": 80, "encoder_decoder.far": 12, "gemma.kv_heads": 2, "moe.intermediate": 80},
)


def see_adapter(spec: Any, bench: Any) -> Seen:
    """Log-probabilities of a wrapped model in training mode, through the forward pass that training uses."""
    from modelwright.nn import model as models
    from modelwright.nn.attention import Layout, Segment

    torch.manual_seed(0)
    model, _ = models.load(bench.model)
    models.packed(model)
    model = spec.wrap(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # a fresh adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.05)
    torch.manual_seed(1)
    ids_T = _ids(2)
    logps_N = (
        models.Trunk(model.train())
        .policy(ids_T, Layout([Segment(0, TOKENS)]), torch.arange(TOKENS - 1), ids_T[1:], torch.float32)
        .logps()
    )
    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=VOCAB)
    return Seen([logps_N, sum(p.numel() for p in trained.values())], effort=spec.trainable_params(shape))


ADAPTERS = Subject(see_adapter)


def see_grower(spec: Any, bench: Any) -> Seen:
    """Answers of the grown model after its weights were all moved a little: copies that add nothing would hide."""
    from modelwright.methods.architectures import shape_of
    from modelwright.nn import model as models

    model, _ = models.load(bench.model)
    before = shape_of(model.config)
    grown = spec.grow(model, 0).eval()
    assert spec.shape(before).params == sum(p.numel() for p in grown.parameters()) == shape_of(grown.config).params
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        logits_TV = grown(input_ids=_ids(0)[None]).logits[0]
    return Seen([logits_TV[:, :5]], effort=spec.shape(before).model_dump())


GROWERS = Subject(
    see_grower,
    bases={"deepen": {"layers": 4}, "widen": {"hidden": 64}},
    others={"widen.hidden": 128, "widen.kv_heads": 4, "widen.intermediate": 160, "upcycle.experts_per_token": 3},
)


class Toy(NamedTuple):
    """A policy of which only the log-probabilities, scores and vectors are known."""

    logp_N: Tensor
    score_SC: Tensor
    vector_SD: Tensor

    def nll(self, weight_N: Tensor) -> Tensor:
        return -(weight_N * self.logp_N).sum()

    def cross_entropy(self, weight_N: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
        nll, added = self.nll(weight_N), (weight_N * self.logp_N.square()).sum()
        return Sums(nll + (label_smoothing + z_loss) * added, nll.detach(), added.detach())

    def further(self, distance: int, wanted_n: Tensor, target_n: Tensor) -> Toy:
        return self._replace(logp_N=self.logp_N[wanted_n] * distance)

    def logps(self) -> Tensor:
        return self.logp_N

    def scores(self) -> Tensor:
        return self.score_SC

    def vectors(self) -> Tensor:
        return self.vector_SD


def see_objective(spec: Any, bench: Any) -> Seen:
    """The loss of two pairs and its gradient; what becomes of a text, and of a micro-batch."""
    draw = torch.Generator().manual_seed(0)
    segment_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    logp_N = -torch.rand(10, generator=draw) * 3
    batch = Batch(
        target_N=torch.arange(10),
        weight_N=torch.ones(10),
        segment_N=segment_N,
        segments=4,
        chosen_P=torch.tensor([0, 2]),
        rejected_P=torch.tensor([1, 3]),
        reference_N=-torch.rand(10, generator=draw) * 3,
        label_S=torch.tensor([0.0, 1.0, 1.0, 0.0]),
        group_S=torch.tensor([0, 0, 1, 1]),
    )
    logp_N.requires_grad_()
    labels = spec.settings().get("num_labels", 1)
    if spec.head == "tokens":
        batch = batch._replace(target_N=batch.target_N % labels)
    score_SC = torch.randn(10 if spec.head == "tokens" else 4, labels, generator=draw).requires_grad_()
    vector_SD = (torch.randn(4, 3, generator=draw) * 0.05 + 1).requires_grad_()  # alike: every temperature tells them apart
    loss = spec.loss(Toy(logp_N, score_SC, vector_SD), batch)
    loss.total.backward()
    texts = [spec.arranged("def first(items):\n    return items[0]\n", Random(f"{n}")) for n in range(12)]
    gradients = [tensor.grad for tensor in (logp_N, score_SC, vector_SD)]
    seen = [loss.total, loss.weight, gradients, texts, see_row(spec), spec.settings(), see_change(spec, bench)]
    seen += [spec.row_tokens(100), spec.beside(8), loss.metrics, spec.figures({"right": 1.0, "wanted": 2.0, "said": 3.0})]
    return Seen(seen, effort=spec.target_frac)


def see_row(spec: Any) -> Any:
    """What is read of a record that has something under every key."""
    meta = {"label": 1, "sentiment": 0, "score": 2, "positive": "a", "answer": "b", "negatives": ["c"], "wrong": "d"}
    tags = {"tokens": ["a", "text"], "words": ["text"], "ner_tags": [0, 1], "tags": [1, 1]}
    spans = {"spans": [[0, 1, "PER"]], "entities": [[2, 6, "PER"]]}
    read = {"labels": spec.label, "groups": spec.parts, "tags": spec.tagged}.get(spec.needs, lambda record: None)
    found = []
    for more in (tags, spans):
        try:
            found.append(read(Record("a", text="a text", meta={**meta, **more})))
        except ValueError as error:
            found.append(str(error))
    return found


def see_change(spec: Any, bench: Any) -> Any:
    """Two rows of forty tokens as the model gets to see them, and what is asked of it."""
    from modelwright.nn import model as models
    from modelwright.nn.gradcache import vectors
    from modelwright.nn.rows import FIRST, Row, pack, store

    tokenizer = models.load_tokenizer(bench.folder / "words")
    tokenizer.add_tokens(list(spec.marks()), special_tokens=True)
    change = spec.change(tokenizer, 0)
    if change is None:
        return None
    rows = [Row(_ids(seed, 40).add(5).tolist(), [FIRST] * 40, tags=[0, -1] * 20) for seed in (3, 4)]
    batch = change(pack(store(rows, bench.fresh(), 300), [0, 1], visit=1))
    seen = [batch.ids_T, batch.position_N, batch.target_N]
    if spec.whole_step:
        model, _ = models.load(bench.model, head="vectors")
        models.packed(model)
        with torch.no_grad():
            seen.append(vectors(models.Trunk(model.train()), batch, torch.float32))
    return seen


OBJECTIVES = Subject(
    see_objective,
    bases={"masked_token": {"mask": "<|im_end|>"}, "span_corruption": {"sentinels": 16}},
    others={"masked_token.mask": "<|im_start|>", "span_corruption.sentinels": 4},
)


def see_optimizer(spec: Any, bench: Any) -> Seen:
    """Weights after three steps, among them an embedding, a matrix of a layer and a norm."""
    torch.manual_seed(0)
    named = [(name, torch.nn.Parameter(torch.randn(*sizes) * 0.5)) for name, sizes in _SIZES.items()]
    built = spec.build(named)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter)
        for optimizer in built:
            optimizer.step()
    return Seen([parameter for _, parameter in named], effort=spec.state_bytes_per_param)


_SIZES = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.down_proj.weight": (64, 64),  # large enough for states of 8 bits
    "model.norm.weight": (4,),
}
OPTIMIZERS = Subject(see_optimizer)


def see_schedule(spec: Any, bench: Any) -> Seen:
    return Seen([spec.factor(step, 100) for step in range(100)])


SCHEDULES = Subject(see_schedule)
