"""External inputs: Hub references resolved to commits and read from a cache that is made on the spot; local files by digest."""

import pytest

from modelwright.core import external
from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.execute import execute
from modelwright.core.external import Digests, hub_commit, hub_files
from modelwright.core.recipe import loads
from modelwright.core.stage import Accepts, parse_ref
from modelwright.core.steps import prepare
from modelwright.core.store import Store

COMMIT, OTHER = "a" * 40, "b" * 40
ROWS = Accepts(("records",))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub cache with one data set, as huggingface_hub lays it out."""
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = home / "hub" / "datasets--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for commit, text in ((COMMIT, "one"), (OTHER, "two")):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "rows.jsonl").write_text(f'{{"text": "{text}"}}\n')
    return repo


def test_a_branch_becomes_the_commit_of_the_cache(hub):
    assert hub_commit(parse_ref("hf:org/name@main"), ROWS, False, "here") == COMMIT
    assert hub_commit(parse_ref("hf:org/name"), ROWS, False, "here") == COMMIT
    assert hub_commit(parse_ref(f"hf:org/name@{OTHER}"), ROWS, False, "here") == OTHER


def test_an_unknown_branch_is_not_guessed(hub):
    with pytest.raises(UserError, match="is not pinned"):
        hub_commit(parse_ref("hf:org/name@next"), ROWS, False, "here")
    with pytest.raises(UserError, match="cannot be resolved"):
        hub_commit(parse_ref("hf:org/name@next"), ROWS, True, "here")


def test_files_come_from_the_pinned_snapshot(hub):
    folder = hub_files(parse_ref(f"hf:org/name@{OTHER}"), OTHER, ROWS, "here")
    assert (folder / "rows.jsonl").read_text() == '{"text": "two"}\n'
    with pytest.raises(UserError, match="cannot be fetched"):
        hub_files(parse_ref("hf:org/missing"), COMMIT, ROWS, "here")


def test_the_commit_is_in_the_key_and_the_stage_reads_it(hub, tmp_path, fakes):
    store = Store(tmp_path / "store")
    text = "name: a\nstages:\n  base: {kind: learn, data: 'hf:org/name@%s'}\n"
    keys = {c: prepare(loads(text % c), store)[0].key for c in ("main", COMMIT, OTHER)}
    assert keys[COMMIT] != keys[OTHER]
    outcome = next(iter(execute(loads(text % OTHER), store, Machine("m", 1, 1e9), lambda event, fields: None)))
    assert outcome.artifact.manifest["parents"][f"hf:org/name@{OTHER}"]["key"] == OTHER


def test_a_dataset_is_read_from_the_cache_at_its_commit(hub, tmp_path):
    blob = hub / "blobs" / "x"
    blob.parent.mkdir()
    blob.write_text('{"text": "a link, as the cache of the Hub has them"}\n')
    (hub / "snapshots" / OTHER / "test.jsonl").symlink_to(blob)
    text = "name: a\nstages:\n  rows: {kind: curate, source: {kind: hub, dataset: 'hf:org/name@%s', split: %s}}\n"
    store = Store(tmp_path / "store")
    for commit, split, told in ((COMMIT, "train", "one"), (OTHER, "train", "two"), (OTHER, "test", "a link, as")):
        *_, done = execute(loads(text % (commit, split)), store, Machine("m", 1, 1e9), lambda event, fields: None)
        assert told in (done.artifact.path / "all.jsonl").read_text()
        assert done.artifact.manifest["parents"][f"hf:org/name@{commit}"]["key"] == commit


def test_what_may_not_be_read_has_a_digest_and_links_count(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "far").write_text("x")
    (folder / "link").symlink_to(tmp_path / "far")
    first = Digests(None).path(folder)
    (tmp_path / "far").write_text("another")
    second = Digests(None).path(folder)
    assert first != second

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(external, "sha256_file", closed)
    assert Digests(None).path(folder) not in (first, second)


def test_digests_of_folders_see_names_and_contents(tmp_path):
    digests = Digests(tmp_path / "digests.json")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    first = digests.path(folder)
    digests.save()
    assert Digests(tmp_path / "digests.json").path(folder) == first
    (folder / "a.txt").rename(folder / "b.txt")
    assert digests.path(folder) != first


def test_a_torn_digest_cache_is_forgotten(tmp_path):
    (tmp_path / "digests.json").write_text('{"a": ["1:')
    (tmp_path / "a").write_text("x")
    assert len(Digests(tmp_path / "digests.json").file(tmp_path / "a")) == 64


def test_of_a_dataset_all_is_fetched_that_a_source_reads(hub, monkeypatch):
    import fnmatch

    import huggingface_hub

    from modelwright.methods.sources import SOURCES
    from modelwright.methods.sources._files import ROWS, TEXTS, ZIP, Files

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, allow_patterns, **__: asked.append(allow_patterns) or "."
    )
    hub_files(parse_ref("hf:org/name"), COMMIT, Accepts(("records",)), "here")
    hub_files(parse_ref("hf:org/name"), COMMIT, Accepts(("model",)), "here")
    kinds = [SOURCES.load(kind) for kind in SOURCES.names()]
    ends = {end for kind in kinds if issubclass(kind, Files) for end in kind.suffixes} | {*ROWS, *TEXTS, *ZIP}
    data, model = asked
    for end in ends - {".js"}:  # code, by its name
        assert any(fnmatch.fnmatch(f"data/x{end}", pattern) for pattern in data), end
    for pattern in (*data, *model):
        assert not any(fnmatch.fnmatch(name, pattern) for name in ("x.py", "x.pkl", "x.bin", "x.pt", "x.js"))
    assert "*.safetensors" in model and "*.safetensors" not in data
