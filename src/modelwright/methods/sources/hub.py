"""Hub: a dataset repository of the Hugging Face Hub, or a local folder laid out like one.

Source: https://huggingface.co/docs/hub/datasets-data-files-configuration: which files belong to which split is told by the
names of files and folders. Only data files are read; a repository's own code is never run. The files come through
`huggingface_hub` at a commit that enters the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.external import hub_commit, hub_files
from modelwright.core.record import Record
from modelwright.core.stage import Accepts, Input, parse_ref
from modelwright.methods.formats import FORMATS, Format
from modelwright.methods.sources import OnBad, Source, files_only
from modelwright.methods.sources._files import EVERY, ROWS, find, name_in, read_rows

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
    dataset: Annotated[str, Accepts(("records",)), AfterValidator(files_only)] = Field(examples=["./dataset/"])
    """`hf:org/name@revision` (pinned to its commit), or a local folder with the same layout."""
    split: str = Field("train", min_length=1, examples=["test"])
    """Which split: files whose path holds that word, as the Hub tells them apart; files without any such word are `train`."""
    match: str = Field(EVERY, examples=["data/*"])
    """Glob of the files; needed where a repository holds several configurations. Default: every data file."""
    format: Annotated[Format, FORMATS] = Field("auto", examples=["messages"])  # type: ignore[assignment]  # validated
    """Row layout. `auto` tells it from the first rows of each file and says in the log what it took and why."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A row that cannot be read: stop with file and line, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def read(self, log: Log) -> Iterator[Record]:
        """Outside of a recipe: fetches the files itself."""
        address = parse_ref(self.dataset)
        if address.kind != "hf":
            return self._rows(Path(self.dataset), log)
        accepts = Accepts(("records",))
        commit = hub_commit(address, accepts, True, self.dataset)
        return self._rows(hub_files(address, commit, accepts, self.dataset), log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        return self._rows(inputs[self.dataset].path, log) if self.dataset in inputs else self.read(log)

    def _rows(self, folder: Path, log: Log) -> Iterator[Record]:
        files = [file for file in find(folder, self.match, ROWS) if file.name not in CARDS]
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(split_of(name_in(folder, file), self.split), []).append(file)
        if self.split not in by_split:
            raise UserError(
                f"{self.dataset} has no split {self.split!r}",
                f"its files are of: {', '.join(sorted(by_split)) or 'none'}",
                f"set `split` to one of: {', '.join(sorted(by_split))}" if by_split else "give a folder with data files",
            )
        for file in by_split[self.split]:
            name = name_in(folder, file)
            yield from read_rows(file, name, log, self.format, self.on_bad)


def split_of(path: str, wanted: str) -> str:
    """The split a path belongs to; a word of the user's own counts too."""
    words = set(re.split(r"[^a-z0-9]+", path.lower()))
    for split, names in SPLITS.items():
        if words & set(names):
            return split
    return wanted if wanted.lower() in words else "train"
