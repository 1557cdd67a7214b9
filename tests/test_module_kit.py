"""The kit of modules that stand in for others."""

import sys
from types import ModuleType

import pytest

from tests import module_kit


def test_only_what_was_replaced_comes_back(tmp_path, monkeypatch):
    (tmp_path / "met_meanwhile.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    json, made = sys.modules["json"], ModuleType("json")
    with pytest.raises(RuntimeError), module_kit.in_place({"json": made, "never_was": ModuleType("never_was")}):
        import met_meanwhile

        assert sys.modules["json"] is made and "never_was" in sys.modules
        raise RuntimeError
    assert sys.modules["json"] is json and "never_was" not in sys.modules
    assert sys.modules.pop("met_meanwhile") is met_meanwhile
