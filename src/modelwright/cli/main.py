"""Dispatch. Standard library only, so that --help is instant; each command is one file beside this one."""

from __future__ import annotations

import sys

# name: one line of help. The lines live here so that --help imports nothing.
COMMANDS = {
    "new": "write a recipe to start from",
    "advise": "which method, which start, and a recipe, for your task and data",
    "learn": "learning paths: recipes that build on each other",
    "plan": "what each stage will take, and what is cached",
    "bench": "measure this machine once, so that plans count with its rates; the table of devices",
    "calibration": "how right plans were: predicted against measured",
    "fit": "what fits a device, and what to change where nothing does",
    "scale": "how large a model and how many tokens for a budget",
    "check": "soundness checks on the recipe's real data",
    "preview": "what a stage trains on, token by token",
    "run": "make what is missing; finished stages are reused",
    "why": "why each stage is cached or to be made",
    "show": "an artifact's numbers, or the report of a recipe",
    "ls": "the artifacts in the store",
    "watch": "a live page of a run in the browser",
    "chat": "talk to a model in the terminal",
    "serve": "an OpenAI-compatible server for a model",
    "compare-decoding": "decoders side by side on one prompt, and the tree of their tokens",
    "where": "the file behind a line of a recipe",
    "convert": "chats and preferences from one layout to another",
    "schema": "JSON Schema of recipes, for your editor",
    "verify": "compare artifacts with their manifests",
    "gc": "remove artifacts that no recipe needs",
    "doctor": "what is installed, what is missing and how to get it",
}

USAGE = """usage: modelwright <command> [recipe.yaml] [path=value ...] [options]

A recipe is one YAML file that takes a language model from raw text to a served, evaluated model.

commands:
{commands}

`modelwright <command> --help` tells more. Overrides are dotted paths: stages.base.steps=100
Start with: modelwright new my-model.yaml, then modelwright plan my-model.yaml
Exit codes: 0 done, 1 a stage failed, 2 a mistake to mend, 130 interrupted."""


def usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    return USAGE.format(commands="\n".join(f"  {name:<{width}}{line}" for name, line in COMMANDS.items()))


def main(args: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from modelwright import __version__

        print(f"modelwright {__version__}")
        return 0
    if args[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"modelwright: no command {args[0]!r}; {hint}", file=sys.stderr)
        return 2
    from importlib import import_module

    from modelwright.core import environment
    from modelwright.core.errors import StageFailed, UserError

    environment.prepare()
    try:
        return int(import_module(f"modelwright.cli.{args[0].replace('-', '_')}").main(args[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageFailed) else 2
    except KeyboardInterrupt as stop:
        why = str(stop) or "interrupted"
        print(f"\n{why}; finished stages are kept, and the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
