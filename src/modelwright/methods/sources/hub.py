"""Hub: a dataset repository of the Hugging Face Hub, or a local folder laid out like one.

Sources: https://huggingface.co/docs/hub/datasets-data-files-configuration and datasets-manual-configuration: a card's `configs`
say which files belong to which configuration and split; without them the names of files and folders do. Only data files are read,
one after the other, and only those of the chosen split are fetched; a repository's own code is never run. The commit enters the
key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.external import hub_commit, hub_file, hub_names
from modelwright.core.record import Record
from modelwright.core.stage import Accepts, Input, parse_ref
from modelwright.methods.formats import FORMATS, Format
from modelwright.methods.sources import OnBad, Source, files_only
from modelwright.methods.sources._doc_files import Unreadable
from modelwright.methods.sources._files import EVERY, ROWS, How, find, name_in, read_rows, refuse, tell_passed
from modelwright.methods.sources._open import obstacles, steady
from modelwright.methods.sources.markdown import front_matter

CARDS = ("dataset_infos.json", "dataset_info.json", "state.json", "config.json")
"""Files about the data that are not data."""
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "dev", "val"),
}
"""Words that mark a split in a file's path, as the Hub reads them."""


class Hub(Source):
    """One split of a dataset, from its Parquet, JSON Lines, JSON or CSV files."""

    kind: Literal["hub"] = "hub"
    dataset: Annotated[str, Accepts(("records",), lazy=True), AfterValidator(files_only)] = Field(examples=["./dataset/"])
    """`hf:org/name@revision` (pinned to its commit), or a local folder with the same layout."""
    config: str = Field("", examples=["en"])
    """Which configuration of those that the dataset's card names. Default: what the card calls default, or its only one."""
    split: str = Field("train", min_length=1, examples=["test"])
    """Which split: files whose path holds that word, as the Hub tells them apart; files without any such word are `train`."""
    match: str = Field(EVERY, examples=["data/*"])
    """Glob of the files, of those that belong to the split. Default: every data file."""
    format: Annotated[Format, FORMATS] = Field("auto", examples=["messages"])  # type: ignore[assignment]  # validated
    """Row layout. `auto` tells it from the first rows of each file and says in the log what it took and why."""
    columns: tuple[str, ...] = Field((), examples=[["text"]])
    """Columns to take (of JSON: keys); of Parquet the others are not read. Default: all, since a format may need any."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A row that cannot be read: stop with file and line, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def read(self, log: Log) -> Iterator[Record]:
        """Outside of a recipe."""
        return self.rows({}, log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        repository = self._repository(inputs.get(self.dataset), log)
        by_split = self._configured(repository) or self._by_words(repository.names)
        files = by_split.get(self.split, [])
        if not files:
            raise UserError(
                f"{self.dataset} has no split {self.split!r}",
                f"its files are of: {', '.join(sorted(by_split)) or 'none'}",
                f"set `split` to one of: {', '.join(sorted(by_split))}" if by_split else "give a folder with data files",
            )
        for name in files:
            file = repository.fetch(name)
            yield from steady(file, read_rows(file, name, log, self.format, self.on_bad, How(self.columns)))

    def _repository(self, given: Input | None, log: Log) -> _Repository:
        address = parse_ref(self.dataset)
        if address.kind == "hf" and (given is None or given.type == "hub"):
            accepts = Accepts(("records",))
            commit = given.key if given is not None else hub_commit(address, accepts, True, self.dataset)
            names = hub_names(address, commit, accepts, self.dataset)
            wanted = _glob(self.match)
            return _Repository(
                [name for name in names if name.endswith(ROWS) and wanted.fullmatch(name)],
                lambda name: hub_file(address, commit, name, accepts, self.dataset),
                CARD in names,
            )
        folder = given.path if given is not None else Path(self.dataset)
        found = find(folder, self.match, ROWS)
        tell_passed(folder, found, ROWS, log)
        names = [name_in(folder, file) for file in found]
        for name, bad in obstacles(folder, ROWS):
            refuse(name, bad, log, self.on_bad)
        return _Repository(names, lambda name: folder / name if folder.is_dir() else folder, (folder / CARD).is_file())

    def _by_words(self, names: list[str]) -> dict[str, list[str]]:
        if self.config:
            raise UserError(
                f"{self.dataset} has no configuration {self.config!r}",
                "its card names none",
                "leave `config` out, or choose files by `match`",
            )
        found: dict[str, list[str]] = {}
        for name in names:
            if name.rpartition("/")[2] not in CARDS:
                found.setdefault(split_of(name, self.split), []).append(name)
        return found

    def _configured(self, repository: _Repository) -> dict[str, list[str]]:
        """Split -> files, as the card says; nothing where it says nothing."""
        if not repository.has_card:
            return {}
        try:
            facts, _ = front_matter(repository.fetch(CARD).read_text("utf-8", "replace")[:CARD_CHARS])
        except (Unreadable, OSError) as fault:
            raise UserError(f"{self.dataset}: {CARD} cannot be read", str(fault), "mend it, or copy the data files") from None
        given = facts.get("configs")
        if not isinstance(given, (list, type(None))):
            raise UserError(
                f"{self.dataset}: `configs` in {CARD} is no list", "a card lists them, each with its files", "mend it"
            )
        configs = {str(config.get("config_name", "default")): config for config in given or () if isinstance(config, dict)}
        if not configs:
            return {}
        usual = [name for name, config in configs.items() if config.get("default")] or ["default"]
        name = self.config or (next(iter(configs)) if len(configs) == 1 else usual[0])
        if name not in configs:
            raise UserError(
                f"{self.dataset} has no configuration {name!r}" if self.config else f"{self.dataset} has several configurations",
                f"its card names {', '.join(configs)}",
                "set `config` to one of them",
            )
        return {split: _matching(patterns, repository.names) for split, patterns in _patterns(configs[name]).items()}


CARD = "README.md"
CARD_CHARS = 1_000_000


class _Repository(NamedTuple):
    names: list[str]
    """Of data files."""
    fetch: Callable[[str], Path]
    has_card: bool


def _patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> globs. `data_files` is a glob, a list of them, a mapping by split, or a list of {split, path}."""
    base = f"{str(config['data_dir']).strip('/')}/" if config.get("data_dir") else ""
    given = config.get("data_files", "**")
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in given.items()]
    found: dict[str, list[str]] = {}
    for entry in given if isinstance(given, list) else [given]:
        split, path = (entry.get("split", "train"), entry.get("path", "")) if isinstance(entry, dict) else ("train", entry)
        paths = path if isinstance(path, list) else [path]
        found.setdefault(str(split), []).extend(base + str(one).removeprefix("./") for one in paths)
    return found


def _matching(patterns: list[str], names: list[str]) -> list[str]:
    found = [name for pattern in patterns for name in sorted(names) if _glob(pattern).fullmatch(name)]
    return list(dict.fromkeys(found))


def _glob(pattern: str) -> re.Pattern[str]:
    """A path's pattern, as `Path.glob` reads it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(signs.get(part, re.escape(part)) for part in parts))


def split_of(path: str, wanted: str) -> str:
    """The split a path belongs to; a word of the user's own counts too."""
    words = set(re.split(r"[^a-z0-9]+", path.lower()))
    for split, names in SPLITS.items():
        if words & set(names):
            return split
    return wanted if wanted.lower() in words else "train"
