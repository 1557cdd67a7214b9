"""What a training stage leaves: a model folder that anything can load, and what the model says."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.core.estimate import Facts
from modelwright.core.events import Log
from modelwright.core.stage import Run
from modelwright.methods.architectures import shape_of
from modelwright.stages._train_open import Opened
from modelwright.stages._train_rows import Prepared
from modelwright.stages._train_text import Text

if TYPE_CHECKING:
    import torch

    from modelwright.nn.order import Order
    from modelwright.nn.rows import Packed, Rows
    from modelwright.stages._train_spec import Training

SAMPLES, SAMPLE_TOKENS = 3, 48


def finish(stage: Training, run: Run, opened: Opened, data: Prepared, tokens: int) -> dict[str, Any]:
    """Merge, save and try the model; returns what that measured."""
    from modelwright.nn import model as models

    found: dict[str, Any] = {}
    model, text = opened.model.eval(), opened.text
    if stage.adapter is not None:
        model, found["merge_drift_nats"] = merge(
            model, _first(stage, text, data.rows, run.seed), run.out / "adapter", stage.start or ""
        )
    models.unpacked(model)
    if text.has_template():
        text.tokenizer.chat_template = text.jinja()
    if model.can_generate():
        _how_to_generate(model, text)
    elif stage.objective.head == "sequence" and not models.looks_both_ways(model):
        model.config.pad_token_id = text.tokenizer.pad_token_id  # transformers looks for the last token that is not this
    if said := stage.objective.detach(models.core(model)):
        run.log.note(said)
    if stage.adapter is not None:
        found["params"] = sum(parameter.numel() for parameter in model.parameters())
        if opened.shape.tied and not shape_of(model.config).tied:
            run.log.note("head and embeddings were one table; the adapter changed them apart, so the merged model has two")
    models.save(model, text.tokenizer, run.out)
    for name, tree in stage.objective.beside(model.config.get_text_config().hidden_size).items():
        (run.out / name).parent.mkdir(exist_ok=True)
        (run.out / name).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    refs = [mix.ref for mix in stage.validation or stage.data]
    if stage.objective.head == "seq2seq":
        found["samples"] = filled(stage, model, text, data.rows, run.seed)
    else:
        found["samples"] = samples(model, text, run, refs) if model.can_generate() else []
    size = sum(path.stat().st_size for path in run.out.glob("*.safetensors"))
    head = None if stage.objective.head == "vectors" else stage.objective.head
    sees = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    known = {"shape": shape_of(model.config), "head": head, "context": sees}
    facts = Facts(type="model", tokens=tokens, bytes=float(size), measured=True, **known)
    found["facts"] = {"": facts.model_dump(mode="json")}
    return found


def trained_on(stage: Training, data: Prepared, plan: Order, steps: int, skipped: Collection[int]) -> list[dict[str, Any]]:
    """What of each source went into the steps that were made, and its share of the tokens beside the one that was planned: rows
    are whole, training may end early, and bad steps are left out."""
    made = plan._replace(rows=plan.rows[: plan.starts[steps]])
    lost = [row for step in skipped if step < steps for row in plan.step(step)]
    found: list[dict[str, Any]] = []
    for mix, begin, end in zip(stage.data, data.firsts, data.firsts[1:], strict=False):
        times, tokens = made.used(begin, end, data.rows.lengths_R)
        left_out = [row for row in lost if begin <= row < end]
        tokens -= sum(int(data.rows.lengths_R[row]) for row in left_out)
        epochs = round((times - len(left_out)) / (end - begin), 3)
        found.append({"ref": mix.ref, "rows": end - begin, "tokens": tokens, "epochs": epochs})
    whole = max(sum(source["tokens"] for source in found), 1)
    for source, planned in zip(found, plan.shares, strict=True):
        source |= {"share_frac": round(source["tokens"] / whole, 4), "planned_frac": round(planned, 4)}
    return found


def _how_to_generate(model: Any, text: Text) -> None:
    """Where an answer ends, and greedily: kept with the model."""
    ends = [token for token in (text.tokenizer.eos_token_id, text.stop()) if token is not None]
    if ends:
        model.generation_config.eos_token_id = sorted(set(ends))
        model.generation_config.pad_token_id = ends[0]
        model.config.eos_token_id = ends[0]
    model.generation_config.do_sample = False
    model.config.bos_token_id = model.generation_config.bos_token_id = text.tokenizer.bos_token_id


def _first(stage: Training, text: Text, rows: Rows, seed: int) -> Packed:
    """The first rows, as the objective shows them to the model."""
    from modelwright.nn.rows import pack

    change = stage.objective.change(text.tokenizer, seed)
    batch = pack(rows, range(min(4, len(rows))))
    return change(batch) if change is not None else batch


def merge(model: Any, batch: Packed, folder: Path, start: str) -> tuple[Any, float]:
    """Save the adapter in PEFT's format, merge it, and measure what rounding in the merge changed: the largest difference of
    a target's log-probability on the first rows, in nats."""
    import torch

    from modelwright.nn import model as models
    from modelwright.nn.device import of as device_of
    from modelwright.nn.rows import moved

    batch = moved(batch, device_of(model))

    def logps() -> torch.Tensor:
        with torch.no_grad():
            trunk = models.Trunk(model)
            return trunk.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, torch.float32).logps()

    before_N = logps()
    with models.quiet():
        model.save_pretrained(folder, save_embedding_layers=False)  # else PEFT asks the Hub for the base model
    models.readable(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    note = folder / "adapter_config.json"
    tree = json.loads(note.read_text())
    # a path of this machine means nothing elsewhere, and PEFT writes a set in no fixed order
    tree.update(base_model_name_or_path=start, target_modules=sorted(tree["target_modules"]))
    note.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")
    model = models.merged(model)
    return model, float((logps() - before_N).abs().max())


def samples(model: Any, text: Text, run: Run, refs: list[str]) -> list[dict[str, str]]:
    """What the model says now to the first prompts of its rows; greedy."""
    import torch

    from modelwright.methods.sources import open_records
    from modelwright.methods.templates import encode_prompt, encoder
    from modelwright.nn import model as models

    found = []
    for record in open_records(run.inputs[refs[0]], Log(None)):
        last = max((i for i, m in enumerate(record.messages) if m.get("role") == "assistant"), default=len(record.messages))
        if record.messages:
            ids = encode_prompt(text.tokenizer, text.jinja(), record.messages[:last])
        else:
            ids = encoder(text.tokenizer)([record.text[:80]])[0]
        ids = ids[: text.length]
        room = min(SAMPLE_TOKENS, text.length - len(ids))
        if not ids or room < 1:
            continue
        with torch.no_grad(), models.quiet():
            ids_1T = torch.tensor([ids], device=model.device)
            out = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=room)
        answer = text.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        found.append({"prompt": text.tokenizer.decode(ids), "answer": answer})
        if len(found) == SAMPLES:
            break
    return found


def filled(stage: Training, model: Any, text: Text, rows: Rows, seed: int) -> list[dict[str, str]]:
    """What the model writes for the first rows as its objective lets it read them; greedy."""
    import torch

    from modelwright.nn import model as models
    from modelwright.nn.rows import pack

    found = []
    change = stage.objective.change(text.tokenizer, seed)
    assert change is not None, "it makes two texts of one"
    for row in range(min(SAMPLES, len(rows))):
        batch = change(pack(rows, [row]))
        ids_T = batch.ids_T[: batch.layout.lengths[0]].to(model.device)
        with torch.no_grad(), models.quiet():
            out = model.generate(ids_T[None], attention_mask=torch.ones_like(ids_T[None]), max_new_tokens=SAMPLE_TOKENS)
        found.append({"prompt": text.tokenizer.decode(ids_T), "answer": text.tokenizer.decode(out[0, 1:])})
    return found
