"""`modelwright schema`: JSON Schema of recipes, every kind included."""

from __future__ import annotations

import argparse
import json


def main(args: list[str]) -> int:
    argparse.ArgumentParser(
        prog="modelwright schema",
        description="Print the JSON Schema of recipes. In an editor with the YAML language server, put "
        "`# yaml-language-server: $schema=recipe.schema.json` on a recipe's first line.",
    ).parse_args(args)
    from modelwright.core.recipe import Recipe

    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    print(json.dumps(schema, indent=1, ensure_ascii=False))
    return 0
