"""What answers each question of `tree.yaml`, from what is known, and the thresholds that decide.

Where published thresholds disagree, the question's `why` says which one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelwright.core.units import bytes_text, count_text
from modelwright.plan._advise_tree import Answer, Room, Situation

PROMPT_TOKENS = 200_000
"""Documents that go into the prompt whole (Anthropic, Contextual Retrieval: about 500 pages)."""
TEACHING_TOKENS = 100e6
"""Text from which training on it is said to teach a field: 1.3M tokens alone did not (Yang et al. 2024, arXiv:2409.07431), the
corpora of Gururangan et al. 2020 (arXiv:2004.10964) had billions. Between these nobody agrees; this is a round number of it."""
OWN_TOKENS = 100e9
"""Text of a field from which a model from scratch was worth it (BloombergGPT, arXiv:2303.17564: 363B of its own)."""
SCRATCH_TOKENS = 20e6
"""20 tokens a weight (Hoffmann et al. 2022, arXiv:2203.15556) of a model of a million weights, the smallest that write coherent
sentences on a narrow subject (Eldan and Li 2023, arXiv:2305.07759)."""
DEMONSTRATIONS = 50
"""Rows from which SFT is said to help (OpenAI, Supervised fine-tuning)."""
LABELLED = 100
"""Texts with labels from which a classifier is trained (Tunstall et al. 2022, arXiv:2209.11055)."""
NEAR = 1_000
"""Pairs that belong together, from which an embedder is tuned. A round number of ours: published sets have many more."""
JUDGED = 100
"""Judgements from which something is trained on them. A round number of ours, since published sets have tens of thousands."""
COMPARED = ("short answer", "choice", "yes or no", "tool call", "JSON")
"""Verifiers of `probe` that compare a whole answer, which takes no thinking to write; what others check ends a derivation."""
SHORT, SHORT_TOKENS, USUAL_TOKENS = COMPARED[:3], 64, 1024
"""Verifiers of answers of a few words, tokens that these have at most, and that others have where no row's length is known."""
MANY_ROWS = 100_000
"""Rows from which an adapter's capacity may run out (Schulman et al. 2025, LoRA without regret, say that it does on large sets
and give no number; this is one of ours)."""
MANY_TASKS = 10
"""Tasks from which files of kilobytes matter. Of ours."""
LARGE = 10e9
"""Weights from which prompt tuning reaches tuning of all weights (Lester et al. 2021, arXiv:2104.08691, figure 1)."""
SMALL = 1e9
"""Weights below which four bits cost most (llama.cpp's tables; Dettmers and Zettlemoyer 2022, arXiv:2212.09720, figure 1)."""
EXPERT_TOKENS = 20e9
"""Tokens from which experts are taught. Of ours: published mixtures had hundreds of billions and more."""
EXPERT_BYTES = 40e9
"""Memory of a card from which experts are held beside activations. Of ours."""
PPO_PAIRS = 10_000
"""Pairs from which a reward model is trained for PPO (Ouyang et al. 2022, arXiv:2203.02155, had 33,000)."""


def checked(s: Situation) -> bool:
    """A program can check most answers."""
    return (s.verifiable or 0.0) >= 0.5


def answer_tokens(s: Situation) -> int:
    """Of the longest answer that is measured."""
    return SHORT_TOKENS if checked(s) and s.verifier in SHORT else s.length or USUAL_TOKENS


def _some(value: float | None, least: float) -> bool:
    return (value or 0.0) >= least


def _count(value: float | None, what: str) -> str:
    return f"{what}: not known" if value is None else f"{count_text(value)} {what}"


def _goal(s: Situation) -> Answer:
    """What was said, else what the data is good for."""
    if s.goal is not None:
        return Answer(s.goal, f"the goal is {s.goal}", "goal")
    thought = s.verifier not in COMPARED or _some(s.traces, 0.5)
    judged = max(("pairs", "ratings", "rankings"), key=lambda name: getattr(s, name) or 0)
    found = (
        ("labels", "labelled", "texts with labels", True),
        ("search", "near", "pairs of texts that belong together", True),
        ("preference", judged, "judged answers", not s.rows),
        ("reasoning", "rows", "rows, and most answers can be checked", _some(s.verifiable, 0.5) and thought),
        ("behaviour", "rows", "rows with answers", True),
        ("domain", "text_tokens", "tokens of plain text", True),
    )
    for goal, field, what, so in found:
        if so and (amount := getattr(s, field)):
            return Answer(goal, f"nobody said what for; there are {count_text(amount)} {what}", field)
    return Answer("behaviour", "nobody said what for, and there is no data", "goal")


def _fresh(s: Situation) -> Answer:
    if s.fresh or s.cited:
        return Answer("yes", "facts change" if s.fresh else "answers must name their source", "fresh" if s.fresh else "cited")
    field = "fresh" if s.fresh is not None else "cited"
    return Answer("no", "facts stay as they are, and no source has to be named", field)


def _reading(s: Situation) -> Answer:
    field = "text_tokens" if s.reading_tokens is None and s.text_tokens else "reading_tokens"
    tokens: float | None = getattr(s, field)
    fits = tokens is not None and tokens <= PROMPT_TOKENS
    return Answer("yes" if fits else "no", _count(tokens, "tokens to read"), field)


def _form(s: Situation) -> Answer:
    if s.prompting != "short":
        said = "prompts give the form" if s.prompting == "enough" else "nobody has tried whether prompts give the form"
        return Answer("no", said, "prompting")
    return Answer("yes" if _some(s.rows, DEMONSTRATIONS) else "no", _count(s.rows, "rows with answers"), "rows")


def _text(s: Situation) -> Answer:
    return Answer(
        "yes" if _some(s.text_tokens, TEACHING_TOKENS) else "no",
        _count(s.text_tokens, "tokens of the field's text"),
        "text_tokens",
    )


def _after_text(s: Situation) -> Answer:
    if _some(s.rows, DEMONSTRATIONS) and _some(s.pairs, JUDGED):
        return Answer("both", f"{count_text(s.rows or 0)} rows and {count_text(s.pairs or 0)} pairs", "pairs")
    answers = _some(s.rows, DEMONSTRATIONS)
    return Answer("answers" if answers else "neither", _count(s.rows, "rows with answers"), "rows")


def _base(s: Situation) -> Answer:
    return Answer("no" if s.base is False else "yes", "there is none" if s.base is False else "there is one", "base")


def _own(s: Situation) -> Answer:
    enough = _some(s.text_tokens, OWN_TOKENS)
    return Answer("yes" if enough else "no", _count(s.text_tokens, "tokens of one's own"), "text_tokens")


def _scratch(s: Situation) -> Answer:
    enough = _some(s.text_tokens, SCRATCH_TOKENS)
    return Answer("yes" if enough else "no", _count(s.text_tokens, "tokens of text"), "text_tokens")


def _prompting(s: Situation) -> Answer:
    if s.prompting == "enough":
        return Answer("enough", "a prompt does it", "prompting")
    signal = max(s.rows or 0, s.pairs or 0, s.ratings or 0, s.rankings or 0) >= DEMONSTRATIONS
    if s.prompting != "short" and not signal:
        field = "rows" if s.prompting is not None and s.rows is None else "prompting"
        return Answer("untried", "nobody has tried prompts, and there is too little to learn from", field)
    return Answer("short", "prompts fall short" if s.prompting == "short" else "there is data to do better with", "prompting")


def _labels(s: Situation) -> Answer:
    return Answer("yes" if _some(s.labelled, LABELLED) else "no", _count(s.labelled, "texts with labels"), "labelled")


def _label_kind(s: Situation) -> Answer:
    return Answer(s.label_kind or "texts", f"labels are of {s.label_kind or 'texts'}", "label_kind")


def _near(s: Situation) -> Answer:
    return Answer("yes" if _some(s.near, NEAR) else "no", _count(s.near, "pairs that belong together"), "near")


def _answers(s: Situation) -> Answer:
    return Answer("yes" if s.rows else "no", _count(s.rows, "rows with answers"), "rows")


def _checkable(s: Situation) -> Answer:
    share = s.verifiable or 0.0
    by = f" by {s.verifier}" if s.verifier else ""
    fact = "nobody knows of a checker" if s.verifiable is None else f"{share:.0%} of answers can be checked{by}"
    return Answer("yes" if share >= 0.5 else "no", fact, "verifiable")


def _few(s: Situation) -> Answer:
    few = (s.rows or 0) < s.few_labels
    return Answer("yes" if few else "no", f"{count_text(s.rows or 0)} rows, against {count_text(s.few_labels)}", "rows")


def _reasoning(s: Situation) -> Answer:
    if s.reasoning is not None:
        fact = "thinking first helps" if s.reasoning else "answers need no thinking first"
        return Answer("yes" if s.reasoning else "no", fact, "reasoning")
    if (goal := _goal(s)).branch == "reasoning":
        return Answer("yes", "problems with a right answer want thinking", goal.field)
    if _some(s.traces, 0.5):
        return Answer("yes", f"{s.traces:.0%} of rows think first", "traces")
    return Answer("no", "nobody said that thinking first helps", "reasoning")


def _traces(s: Situation) -> Answer:
    share = s.traces or 0.0
    fact = "not known" if s.traces is None else f"{share:.0%} of rows show how the answer was found"
    return Answer("yes" if share >= 0.5 else "no", fact, "traces")


def _passes(s: Situation) -> Answer:
    never = s.passes is not None and s.passes <= 0
    fact = "not measured; taken to be sometimes" if s.passes is None else f"right in {s.passes:.0%} of tries"
    return Answer("no" if never else "yes", fact, "passes")


def _teacher(s: Situation) -> Answer:
    if s.teacher and s.private:
        return Answer("no", "there is one, but data may not leave this machine", "private")
    return Answer("yes" if s.teacher else "no", "there is one" if s.teacher else "none is known of", "teacher")


def _judge(s: Situation) -> Answer:
    if (found := _teacher(s)).branch == "no":
        return found
    judge = s.goal == "preference"
    return Answer("judge" if judge else "yes", "it can judge answers" if judge else "it can write answers", "teacher")


def _feedback(s: Situation) -> Answer:
    amounts = {"pairs": s.pairs or 0, "ratings": s.ratings or 0, "rankings": s.rankings or 0}
    most = max(amounts, key=amounts.__getitem__)
    if amounts[most] < JUDGED:
        return Answer("none", f"{count_text(amounts[most])} judged answers" if amounts[most] else "no judged answers", most)
    return Answer(most, f"{count_text(amounts[most])} {most}", most)


def _pairs_start(s: Situation) -> Answer:
    if _some(s.rows, DEMONSTRATIONS):
        return Answer("demonstrations", _count(s.rows, "rows with answers"), "rows")
    base = s.chats is False
    return Answer("base" if base else "chats", "it only goes on with texts" if base else "it answers", "chats")


def _online(s: Situation) -> Answer:
    pairs = max(s.pairs or 0, s.rankings or 0)
    yes = bool(s.quality_first) and pairs >= PPO_PAIRS
    fact = f"quality before cost, {count_text(pairs)} pairs" if s.quality_first else "cost matters"
    return Answer("yes" if yes else "no", fact, "quality_first")


def _demonstrations(s: Situation) -> Answer:
    return Answer("yes" if _some(s.rows, DEMONSTRATIONS) else "no", _count(s.rows, "rows with answers"), "rows")


# --- weights, shape and deployment ------------------------------------------------------------------


def _knowledge(s: Situation) -> Answer:
    if "next_token" in s.chosen:
        return Answer("yes", "pretraining goes on", "chosen")
    return Answer("yes" if _some(s.rows, MANY_ROWS) else "no", _count(s.rows, "rows with answers"), "rows")


def _served(s: Situation) -> Answer:
    params = s.room.params if s.room else 0.0
    many = _some(s.tasks, MANY_TASKS) and params >= LARGE
    return Answer("yes" if many else "no", f"{_count(s.tasks, 'tasks')}, {count_text(params)} weights", "tasks")


def _measured(s: Situation) -> Answer:
    gain = s.full_gain or 0.0
    fact = "no runs of yours tell" if s.full_gain is None else f"all weights gained {gain:+.3g} over LoRA"
    return Answer("yes" if gain > 0 else "no", fact, "full_gain")


def _fits(way: str) -> Callable[[Situation], Answer]:
    def answer(s: Situation) -> Answer:
        fits, fact = _room(s).ways[way]
        return Answer("yes" if fits else "no", fact, "room")

    return answer


def _room(s: Situation) -> Room:
    assert s.room is not None, "what fits is reckoned before the trees of weights and deployment are walked"
    return s.room


def _experts(s: Situation) -> Answer:
    card = s.machine.device_memory_bytes if s.machine else 0.0
    servers = s.target in (None, "gpu", "same")
    yes = _some(s.text_tokens, EXPERT_TOKENS) and card >= EXPERT_BYTES and servers
    return Answer("yes" if yes else "no", f"{_count(s.text_tokens, 'tokens')}, cards of {bytes_text(card)}", "text_tokens")


def _target(s: Situation) -> Answer:
    return Answer(s.target or "same", f"it runs on: {s.target or 'the machine where it is made'}", "target")


def _laptop_bits(s: Situation) -> Answer:
    served = _room(s).bits
    if _room(s).params < SMALL and served[8][0]:
        return Answer("8", served[8][1], "room")
    return Answer("4" if served[4][0] else "none", served[4][1], "room")


def _phone_bits(s: Situation) -> Answer:
    fits, fact = _room(s).bits[4]
    return Answer("4" if fits else "none", fact, "room")


def _gpu_bits(s: Situation) -> Answer:
    served = _room(s).bits
    bits = next((bits for bits, (fits, _) in served.items() if fits), 4)
    return Answer(str(bits) if served[bits][0] else "none", served[bits][1], "room")


ANSWERS: Mapping[str, Callable[[Situation], Answer]] = {
    "goal": _goal,
    "fresh": _fresh,
    "facts_text": _text,
    "reading": _reading,
    "form": _form,
    "text": _text,
    "after_text": _after_text,
    "base": _base,
    "own": _own,
    "scratch": _scratch,
    "scratch_rows": _demonstrations,
    "prompting": _prompting,
    "labels": _labels,
    "labels_answered": _demonstrations,
    "label_kind": _label_kind,
    "near": _near,
    "answers": _answers,
    "few": _few,
    "checkable": _checkable,
    "checkable_alone": _checkable,
    "reasoning": _reasoning,
    "traces": _traces,
    "passes": _passes,
    "thinker": _teacher,
    "cold": _teacher,
    "feedback_too": _feedback,
    "feedback": _feedback,
    "pairs_start": _pairs_start,
    "online": _online,
    "online_sft": _online,
    "ratings_start": _demonstrations,
    "enough": _demonstrations,
    "stronger": _judge,
    "knowledge": _knowledge,
    "served": _served,
    "measured": _measured,
    "full_fits": _fits("full"),
    "lora_fits": _fits("lora"),
    "qlora_fits": _fits("qlora"),
    "experts": _experts,
    "target": _target,
    "laptop_bits": _laptop_bits,
    "phone_bits": _phone_bits,
    "gpu_bits": _gpu_bits,
}
"""Name of a question in `tree.yaml` -> what answers it."""
