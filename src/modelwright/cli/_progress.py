"""Shows a run: one line a stage, a bar with the time left while it works; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from modelwright.core.units import count_text, seconds_text

QUIET_S = 10.0
"""Without a terminal, a progress line at most this often: enough to see that it lives, few enough for a log."""
SHOWN = ("loss", "tokens_per_s", "margin", "accuracy")
"""Numbers of a progress event that stand beside the bar."""


class Screen:
    """A Listener. Use as a context manager."""

    def __init__(self, total: int) -> None:
        self._total, self._index = total, 0
        self._terminal = sys.stdout.isatty()
        self._stage, self._label, self._start_s, self._last_s = "", "", 0.0, 0.0
        self._bar: Any = None
        self._task: Any = None
        self._console: Any = None

    def __enter__(self) -> Screen:
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            self._console = Console(highlight=False)
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=26),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[numbers]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        if event == "stage":
            self._on_stage(fields)
        elif event == "progress":
            self._on_progress(fields)
        elif event == "note":
            self._line(f"      {fields['text']}", "dim")
        elif event == "check" and not fields["ok"]:
            self._line(f"      check failed: {fields['check']}: {fields['detail']}", "red")

    def finished(self, state: str, detail: str) -> None:
        """The stage that was begun has ended; nothing is told where none was."""
        if not (stage := self._stage):
            return
        self._stage = ""
        mark, style = {"made": ("made  ", "bold green"), "cached": ("cached", "green")}.get(state, ("failed", "bold red"))
        self._drop_bar()
        if self._terminal:
            from rich.markup import escape

            self._console.print(f"  [{style}]{mark}[/]  [bold]{stage:<14}[/] [dim]{escape(detail)}[/]")
        else:
            print(f"  {mark}  {stage:<14} {detail}", flush=True)

    def _on_stage(self, fields: dict[str, Any]) -> None:
        self._index += 1
        self._stage, self._label = fields["stage"], ""
        self._start_s = self._last_s = time.monotonic()
        self._drop_bar()
        if fields["state"] != "running":
            return
        expected = seconds_text(fields["seconds"])
        if self._terminal:
            self._task = self._bar.add_task(self._title(), total=None, amount=f"about {expected}", numbers="")
        else:
            print(f"  [{self._index}/{self._total}]  {self._stage} ({fields['kind']}), about {expected}", flush=True)

    def _title(self) -> str:
        return f"[dim]{self._index}/{self._total}[/] [bold]{self._stage}[/]" + (f" {self._label}" if self._label else "")

    def _on_progress(self, fields: dict[str, Any]) -> None:
        done, total, unit = fields["done"], fields["total"], fields["unit"]
        amount = f"{count_text(done)}/{count_text(total)} {unit}" if total else f"{count_text(done)} {unit}"
        numbers = "  ".join(f"{name} {fields[name]:.3g}" for name in SHOWN if name in fields)
        if self._terminal:
            if fields["label"] != self._label:  # another part of the stage: its own bar, its own time left
                self._label = fields["label"]
                self._drop_bar()
            if self._task is None:
                self._task = self._bar.add_task(self._title(), total=total, amount=amount, numbers=numbers)
            self._bar.update(self._task, completed=done, total=total, amount=amount, numbers=numbers)
        elif (now := time.monotonic()) - self._last_s > QUIET_S:
            self._last_s = now
            print(f"      {fields['label'] or self._stage}: {amount}  {numbers}  {seconds_text(now - self._start_s)}", flush=True)

    def _drop_bar(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _line(self, text: str, style: str) -> None:
        if self._terminal:
            self._console.print(text, style=style, markup=False)
        else:
            print(text, flush=True)
