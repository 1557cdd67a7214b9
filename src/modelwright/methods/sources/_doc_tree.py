"""A source tree: its files in a fixed order, `.gitignore`, languages by suffix, the licence nearest to each file.

Sources: https://git-scm.com/docs/gitignore (pattern format); languages' names from Linguist
(https://github.com/github-linguist/linguist); licences' names from SPDX (https://spdx.org/licenses/).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from modelwright.methods.sources._open import Bad, cannot_read

LeftOut = Literal["hidden", "ignored", "vendored", "generated", "minified"]

_SUFFIXES = {
    "Assembly": "asm s",
    "Astro": "astro",
    "C": "c h",
    "C#": "cs",
    "C++": "cc cpp cxx hh hpp hxx ipp",
    "CMake": "cmake",
    "CSS": "css",
    "Clojure": "clj cljs cljc",
    "CoffeeScript": "coffee",
    "Cuda": "cu cuh",
    "Cython": "pyx pxd pxi",
    "D": "d",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Elm": "elm",
    "Emacs Lisp": "el",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f90 f95 f03 f08 for",
    "GLSL": "glsl vert frag",
    "Go": "go",
    "GraphQL": "graphql gql",
    "Groovy": "groovy gradle",
    "HCL": "tf hcl",
    "HTML": "html htm",
    "Haskell": "hs lhs",
    "Java": "java",
    "JavaScript": "js jsx mjs cjs",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lean": "lean",
    "Less": "less",
    "Lua": "lua",
    "Makefile": "mk mak",
    "Nim": "nim",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C": "m mm",
    "PHP": "php",
    "Pascal": "pas pp",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffer": "proto",
    "Python": "py pyi pyw",
    "R": "r",
    "Racket": "rkt",
    "Ruby": "rb rake",
    "Rust": "rs",
    "SCSS": "scss sass",
    "SQL": "sql",
    "Scala": "scala sc",
    "Scheme": "scm ss",
    "Shell": "sh bash zsh",
    "Solidity": "sol",
    "Starlark": "bzl star",
    "Svelte": "svelte",
    "Swift": "swift",
    "SystemVerilog": "sv svh",
    "TOML": "toml",
    "Tcl": "tcl",
    "TeX": "tex sty cls",
    "TypeScript": "ts tsx mts cts",
    "VHDL": "vhd vhdl",
    "Verilog": "v",
    "Vim Script": "vim",
    "Visual Basic .NET": "vb",
    "Vue": "vue",
    "YAML": "yml yaml",
    "Zig": "zig",
}
_NAMES = {
    "makefile": "Makefile",
    "gnumakefile": "Makefile",
    "dockerfile": "Dockerfile",
    "cmakelists.txt": "CMake",
    "rakefile": "Ruby",
    "gemfile": "Ruby",
    "build.bazel": "Starlark",
}
VENDORED = frozenset(
    "node_modules bower_components vendor vendors third_party third-party thirdparty _vendor _vendored extern godeps pods "
    "carthage site-packages".split()
)
_GENERATED_NAME = re.compile(
    r"(?:_pb2(?:_grpc)?\.pyi?|\.pb\.(?:go|cc|h)|\.g\.dart|\.designer\.cs|(?:^|/)(?:package-lock\.json|pnpm-lock\.yaml|poetry\.lock))$",
    re.IGNORECASE,
)
_MINIFIED_NAME = re.compile(r"[.-]min\.(?:js|css|mjs)$", re.IGNORECASE)


@cache
def _by_suffix() -> dict[str, str]:
    return {suffix: language for language, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}


@cache
def languages() -> tuple[str, ...]:
    """Every language that is known, sorted."""
    return tuple(sorted({*_SUFFIXES, *_NAMES.values()}))


def language_of(name: str) -> str:
    """By a file's name; '' for none."""
    lower = name.lower()
    return _NAMES.get(lower) or (_by_suffix().get(lower.rpartition(".")[2], "") if "." in lower else "")


# --- the walk -----------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A file of the tree."""

    path: Path
    name: str
    """Relative to the tree."""
    why: str | Bad
    """Why it is left out by its name, or what keeps it from being read; '' for a file to read."""
    language: str = ""
    licence: str = ""
    licence_file: str = ""


class _Folder(NamedTuple):
    """What a folder hands to those inside it."""

    rules: tuple[_Rule, ...]
    licence: str
    licence_file: str


def walk(path: Path, leave_out: frozenset[str], left_out: Counter[str]) -> Iterator[Found]:
    """Every file in sorted order. Folders that are left out whole are counted in `left_out`, file by file."""
    if path.is_file():
        licence = _licence(path.parent, "", [path.parent / name for name in sorted(os.listdir(path.parent))])
        yield Found(path, path.name, "", language_of(path.name), *(licence or ("", "")))
        return
    yield from _walk(path, "", _Folder((), "", ""), leave_out, left_out)


def _walk(folder: Path, base: str, above: _Folder, leave_out: frozenset[str], left_out: Counter[str]) -> Iterator[Found]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, base or ".", cannot_read(error))
        return
    rules = above.rules
    if "ignored" in leave_out and any(entry.name == ".gitignore" and entry.is_file() for entry in entries):
        try:
            with (folder / ".gitignore").open("rb") as file:
                rules += ignore_rules(file.read(LICENCE_BYTES).decode("utf-8", "replace"), base)
        except OSError as error:
            yield Found(folder / ".gitignore", f"{base}.gitignore", cannot_read(error))
    licence = _licence(folder, base, [Path(entry.path) for entry in entries]) or (above.licence, above.licence_file)
    here = _Folder(rules, *licence)
    for entry in entries:
        name = base + entry.name
        if entry.is_symlink():
            left_out["symbolic link"] += 1
        elif entry.is_dir():
            if reason := _reason(name, True, rules, leave_out):
                left_out[reason] += sum(len(files) for _, _, files in os.walk(entry.path))
            else:
                yield from _walk(Path(entry.path), name + "/", here, leave_out, left_out)
        elif entry.is_file():
            yield Found(Path(entry.path), name, _reason(name, False, rules, leave_out), language_of(entry.name), *licence)
        else:
            left_out["pipe, socket or device"] += 1


def _reason(name: str, folder: bool, rules: tuple[_Rule, ...], leave_out: frozenset[str]) -> str:
    last = name.rpartition("/")[2]
    sorts = {
        "hidden": last.startswith("."),
        "ignored": ignored(name, folder, rules),
        "vendored": folder and last.lower() in VENDORED,
        "generated": not folder and bool(_GENERATED_NAME.search(name)),
        "minified": not folder and bool(_MINIFIED_NAME.search(name)),
    }
    return next((sort for sort, holds in sorts.items() if holds and sort in leave_out), "")


# --- .gitignore ---------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    """Over a path relative to the tree."""
    keeps: bool
    """`!`: takes back what an earlier rule left out."""
    folders: bool
    """For folders alone."""


def ignore_rules(text: str, base: str) -> tuple[_Rule, ...]:
    """The rules of one `.gitignore` that lies in `base` ('' or 'folder/')."""
    rules = []
    for line in text.splitlines():
        line = re.sub(r"(?<!\\)[ \t]+$", "", line)
        keeps = line.startswith("!")
        body = line.removeprefix("!")
        folders = body.endswith("/")
        body = body.rstrip("/")
        if not body or line.startswith("#"):
            continue
        anywhere = "" if "/" in body else "(?:.*/)?"
        try:
            rules.append(_Rule(re.compile(re.escape(base) + anywhere + _glob(body.removeprefix("/"))), keeps, folders))
        except re.error:  # `[z-a]`: git, too, lets such a pattern match nothing
            continue
    return tuple(rules)


_GLOB = re.compile(r"(\A|/)\*\*(/|\Z)|\*+|\?|\[(!?)(\]?[^\]]*)\]|\\(.)|[^*?\[\\/]+|.")


def _glob(body: str) -> str:
    def piece(found: re.Match[str]) -> str:
        text = found[0]
        if found[1] is not None:
            return f"{found[1]}(?:.*/)?" if found[2] else f"{found[1]}.+"
        if text[0] == "*":
            return "[^/]*"
        if text == "?":
            return "[^/]"
        if text[0] == "[" and len(text) > 1:
            inside = found[4].replace("\\", "\\\\").replace("[", "\\[")
            return f"[{'^/' if found[3] else ''}{inside}]"
        return re.escape(found[5] or text)

    return _GLOB.sub(piece, body)


def ignored(name: str, folder: bool, rules: tuple[_Rule, ...]) -> bool:
    """The last rule that matches decides, those of inner folders after those of outer ones."""
    for rule in reversed(rules):
        if (folder or not rule.folders) and rule.pattern.fullmatch(name):
            return not rule.keeps
    return False


# --- licences -----------------------------------------------------------------------------------------

LICENCE_BYTES = 100_000
"""Longer ones are no licence, the GPL has 35,000; of a `.gitignore` as much is read."""
_LICENCE_FILE = re.compile(r"(?:un)?licen[cs]e|copying", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]{1,200})")
_WORDS = (
    ("AGPL-3.0", "gnu affero general public license version 3"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license version 2.1"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license version 2"),
    ("Apache-2.0", "apache license version 2.0"),
    ("MPL-2.0", "mozilla public license version 2.0"),
    ("EPL-2.0", "eclipse public license - v 2.0"),
    ("BSL-1.0", "boost software license - version 1.0"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("PSF-2.0", "python software foundation license version 2"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy of this software"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"),
    ("Zlib", "this software is provided 'as-is', without any express or implied warranty"),
)
"""Words that only this licence has, as it writes them; the longer names first, because they hold the shorter."""


def _licence(folder: Path, base: str, files: list[Path]) -> tuple[str, str] | None:
    """(SPDX names, relative paths) of the licence files right in a folder; None where it has none."""
    found = [file for file in files if _LICENCE_FILE.match(file.name) and not language_of(file.name) and file.is_file()]
    if not found:
        return None
    names = set()
    for file in found:
        try:
            with file.open("rb") as stream:
                names.add(licence_of(stream.read(LICENCE_BYTES).decode("utf-8", "replace")))
        except OSError:  # nobody may read it, so nobody knows what it permits
            names.add("")
    return ", ".join(sorted(names - {""})), ", ".join(base + file.name for file in found)


def licence_of(text: str) -> str:
    """The SPDX name of a licence's text; '' for one that is not known."""
    if named := licence_named(text):
        return named
    flat = re.sub(r"[\s,]*\s", " ", text.lower()).replace("‘", "'").replace("’", "'")
    head = flat[:2000]  # a licence may name others further down
    for name, words in _WORDS:
        if words.replace(",", "") in head.replace(",", ""):
            return name
    if "redistribution and use in source and binary forms" in head:
        return "BSD-3-Clause" if "neither the name" in flat else "BSD-2-Clause"
    return ""


def licence_named(text: str) -> str:
    """What the text itself says in the words that SPDX made for it."""
    found = _SPDX.search(text)
    return re.sub(r"\s*(?:\*/|-->|#>|\"\"\").*$", "", found[1]).strip() if found else ""
