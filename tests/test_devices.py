"""Devices that are not here: every number has its source, names are found however they are written, users add their own; and this
machine, guessed, measured, or with the cards that its driver names."""

import json
from datetime import date
from pathlib import Path

import pytest

from modelwright.core import rates
from modelwright.core.errors import UserError
from modelwright.core.estimate import GAIN, Machine
from modelwright.plan import devices
from modelwright.plan import machine as here

TABLE = devices.table()
MINE = """
sources:
  sheet: {title: A sheet of mine, url: "https://example.org/sheet", read: 2026-01-02}
devices:
  mine:
    title: My card
    device: cuda
    memory_gb: 12
    bandwidth_gb_per_s: 400
    tflops: {fp32: 10, bf16: 40}
    host: {cores: 6, memory_gb: 20, of: my desk}
    achieved_frac: 0.5
    achieved_from: measured by me on a Sunday
    sources: {all: sheet}
"""
NUMBERS = ("memory_gb", "bandwidth_gb_per_s", "tflops", "power_w", "capability", "link", "host")


@pytest.fixture(autouse=True)
def _no_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(here, "CARDS", tmp_path / "cards")


@pytest.mark.parametrize("name", TABLE)
def test_every_number_has_a_source_with_title_address_and_date(name):
    row, sources = TABLE[name].row, TABLE[name].sources
    for field in NUMBERS:
        if getattr(row, field):
            cited = row.sources.get(field, row.sources.get("all"))
            assert cited in sources, f"{name}.{field} has no source"
    assert row.achieved_from in sources
    for key in {*row.sources.values(), row.achieved_from}:
        found = sources[key]
        assert len(found.title) > 10 and date(2016, 1, 1) < found.read
        assert found.url.startswith("https://") or key in ("own", "assumed")


@pytest.mark.parametrize("name", TABLE)
def test_every_row_is_a_machine_in_base_units(name):
    row, found = TABLE[name].row, devices.named(name)
    assert 1e10 < found.flops_per_s < 1e16 and 1e9 < found.memory_bytes < 1e12
    assert 1e10 < found.bandwidth_bytes_per_s < 1e13
    assert found.devices == row.chips and (found.device_memory_bytes > 4e9) == (row.device != "cpu")
    assert found.power_w == pytest.approx((row.power_w or 0) * row.chips)
    share = row.achieved_frac * 1e12 * row.chips
    assert found.bf16_flops_per_s == pytest.approx((row.tflops.bf16 or 0) * share)
    assert row.title in found.name and "% of the rates of" in found.source
    if row.device == "cuda":
        assert tuple(map(int, row.capability.split("."))) >= (6, 0) and row.tflops.fp16 and row.tflops.fp16 > row.tflops.fp32


def test_cards_on_pcie_talk_over_it_and_rates_are_without_sparsity():
    for name, known in TABLE.items():
        row = known.row
        if {"PCIe", "NVL"} & set(row.title.split()):
            assert row.link is not None and row.link.kind.startswith("PCIe"), f"{name}: a bridge joins two cards or four, no more"
    for sxm, others in {"a100-40": ("a100-40-pcie",), "a100-80": ("a100-80-pcie",), "h100": ("h100-pcie", "h100-nvl"),
                        "h200": ("h200-nvl",)}.items():  # fmt: skip
        for other in others:
            most, rates = TABLE[sxm].row, TABLE[other].row
            assert (rates.tflops.bf16 or 0) <= (most.tflops.bf16 or 0) and (rates.power_w or 0) < (most.power_w or 0)


def test_the_table_holds_what_the_issue_asks_for():
    asked = (
        "t4 p100 v100 l4 a10g a100-40 a100-80 h100 h100-pcie h100-nvl h200 b200 rtx-3090 rtx-4090 rtx-5090 apple-m1 apple-m4-max "
        "tpu-v3-8 cpu-avx2"
    )
    assert set(asked.split()) <= set(devices.names())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("T4", "t4"),
        ("NVIDIA A100 80", "a100-80"),
        ("a100_40", "a100-40"),
        ("geforce rtx 4090", "rtx-4090"),
        ("Apple M4 Max", "apple-m4-max"),
    ],
)
def test_names_are_found_however_they_are_written(written, name):
    assert devices.named(written) == devices.named(name)


@pytest.mark.parametrize(
    ("written", "near"), [("a100", "a100-80"), ("3090", "rtx-3090"), ("m2 pro", "apple-m2-pro"), ("h10", "h100")]
)
def test_other_names_are_refused_with_near_ones(written, near):
    with pytest.raises(UserError, match="no device") as caught:
        devices.named(written)
    assert near in caught.value.fix


def test_several_cards_add_up_but_for_the_memory_of_each():
    one, four = devices.named("a100-80"), devices.named("a100-80", 4)
    assert four.bf16_flops_per_s == 4 * one.bf16_flops_per_s and four.power_w == 1600 and four.cores == 4 * one.cores
    assert four.device_memory_bytes == one.device_memory_bytes and four.name == "4 x NVIDIA A100 SXM 80 GB"
    assert (one.link_bytes_per_s, four.link_bytes_per_s) == (0.0, 300e9), "one direction of the two"
    assert four.usd_per_hour > one.usd_per_hour > 0, "at the cheapest price"
    assert four.used_by(1) == one._replace(**{f: getattr(four, f) for f in (
        "name", "cores", "memory_bytes", "usd_per_hour", "link_bytes_per_s", "power_w")})  # fmt: skip
    for name in ("cpu-avx2", "apple-m2"):
        with pytest.raises(UserError, match="a whole machine"):
            devices.named(name, 2)
    with pytest.raises(UserError, match="0 devices"):
        devices.named("t4", 0)


def test_products_run_in_the_type_that_the_card_has():
    old, new = devices.named("t4"), devices.named("h100")
    assert old.products("auto") == old.products("fp16") == ("fp16", pytest.approx(19.5e12))
    assert old.products("bf16") == old.products("fp32") == ("fp32", pytest.approx(2.43e12)), "never emulated"
    assert new.products("auto") == new.products("bf16") == ("bf16", new.bf16_flops_per_s)
    assert new.products("fp8") == ("fp8", pytest.approx(0.28 * 1979e12))
    assert devices.named("apple-m3").products("auto")[0] == "fp32"
    plain = Machine("m", 2, 1e9)
    assert plain.products("auto") == plain.products("bf16") == ("fp32", 60e9) and plain.host() is plain
    beside = old.host()
    assert (beside.device, beside.devices, beside.device_memory_bytes, beside.cores) == ("cpu", 1, 0.0, old.cores)
    from modelwright.nn import precision

    assert precision.GAIN == GAIN


def test_users_add_rows_and_replace_ours(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    found = devices.named("mine", 2, file)
    assert found.bf16_flops_per_s == pytest.approx(40e12) and found.cores == 12 and found.usd_per_hour == 0
    assert "https://example.org/sheet, read 2026-01-02" in found.source
    assert "measured by me on a Sunday" in found.source and str(file) in found.source
    settings = tmp_path / "settings" / "modelwright" / "devices.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(MINE.replace("mine:", "t4:").replace("My card", "Another T4"))
    assert devices.named("t4").name == "Another T4" and str(settings) in devices.named("t4").source
    assert devices.named("t4", 1, file).name == "Another T4" and "mine" in devices.names(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("memory_gb: 12", "memory_gb: -1"), "mine.yaml:8 devices.mine.memory_gb"),
        (("    memory_gb: 12\n", ""), "needs 'memory_gb'"),
        (("memory_gb: 12", "memorygb: 12"), "did you mean 'memory_gb'"),
        (("device: cuda", "device: gpu"), "mine.yaml:7 devices.mine.device"),
        (("fp32: 10", "fp31: 10"), "mine.yaml:10 devices.mine.tflops.fp31"),
        (("read: 2026-01-02", "read: yesterday"), "mine.yaml:3 sources.sheet.read"),
        (("achieved_frac: 0.5", "achieved_frac: 50"), "mine.yaml:12 devices.mine.achieved_frac"),
        (("devices:", "cards:"), "needs 'devices'"),
    ],
)
def test_faults_of_a_file_are_told_with_their_line(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    assert change[0] in MINE
    file.write_text(MINE.replace(*change))
    with pytest.raises(UserError) as caught:
        devices.table(file)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just words"])
def test_what_is_no_table_is_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="mapping with `sources`, `devices`"):
        devices.table(file)
    with pytest.raises(UserError, match="no file"):
        devices.table(tmp_path / "nothing.yaml")


# --- this machine -----------------------------------------------------------------------------------------


def card(folder: Path, name: str, model: str) -> None:
    (folder / "cards" / name).mkdir(parents=True)
    (folder / "cards" / name / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 99\n")


def test_measured_rates_take_the_place_of_the_guess():
    guess = here.this_machine()
    assert guess.source.startswith("guessed") and guess.device == "cpu"
    told = {"date": "2026-11-22", "fp32": 100e9, "bandwidth_bytes_per_s": 1e10, "disk_read_bytes_per_s": 2e9, "power_w": 45.0}
    rates.remember(here.here(), told)
    found = here.this_machine()
    assert found.flops_per_s == 60e9 and found.bandwidth_bytes_per_s == 1e10 and found.disk_bytes_per_s == 2e9
    assert found.power_w == 45 and "measured 2026-11-22" in found.source and found.cores == guess.cores


def test_rates_are_in_one_file_and_a_torn_one_is_as_none(tmp_path):
    assert rates.remember("a", {"x": 1.0}) and rates.remember("b", {"y": 2.0})
    assert json.loads(rates.cache_file().read_text()) == {"a": {"x": 1.0}, "b": {"y": 2.0}}
    rates.cache_file().write_text("{")
    assert rates.known() == {} and here.this_machine().source.startswith("guessed")


def test_cards_are_planned_for_as_the_driver_names_them(tmp_path, monkeypatch):
    card(tmp_path, "0000:00:04.0", "Tesla T4")
    assert here.this_machine().device == "cpu", "this torch is built for processors"
    monkeypatch.setattr(here, "_for_processors", lambda: False)
    found, host = here.this_machine(), devices.named("t4")
    assert (found.device, found.fp16_flops_per_s, found.device_memory_bytes) == ("cuda", host.fp16_flops_per_s, 16e9)
    assert found.usd_per_hour == 0 and found.cores != 0
    card(tmp_path, "0000:00:05.0", "Tesla T4")
    assert here.this_machine().devices == 2 and here.this_machine().name == "2 x NVIDIA T4"
    told = {"name": "Tesla T4", "count": 2, "memory_bytes": 15.8e9, "fp32": 4e12, "fp16": 24e12, "bandwidth_bytes_per_s": 2.4e11}
    machine = {"date": "2026-11-22", "fp32": 1e11, "bandwidth_bytes_per_s": 1e10, "disk_read_bytes_per_s": 1e9, "card": told}
    rates.remember(here.here(), machine)
    found = here.this_machine()
    assert found.fp16_flops_per_s == 24e12 and found.device_memory_bytes == 15.8e9 and "measured" in found.source


def test_products_in_float8_that_were_not_measured_are_those_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(here, "_for_processors", lambda: False)
    card(tmp_path, "0000:00:04.0", "NVIDIA H100 80GB HBM3")
    told = {"name": "NVIDIA H100 80GB HBM3", "count": 1, "memory_bytes": 85e9, "fp32": 4e13, "bandwidth_bytes_per_s": 3e12}
    machine = {"date": "2026-11-22", "fp32": 1e11, "bandwidth_bytes_per_s": 1e10, "disk_read_bytes_per_s": 1e9, "card": told}
    rates.remember(here.here(), machine)
    assert here.this_machine().fp8_flops_per_s == devices.named("h100").fp8_flops_per_s > 0


def test_a_card_that_is_in_no_table_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(here, "_for_processors", lambda: False)
    card(tmp_path, "0000:01:00.0", "NVIDIA GeForce GT 1030")
    found = here.this_machine()
    assert found.device == "cpu" and "GT 1030 is in no table" in found.source


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-PCIE-40GB", "a100-40-pcie"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", None),
    ],
)
def test_the_drivers_names_find_their_rows(model, row):
    assert here.row_of(model, devices.names()) == row


def test_the_bench_shows_what_it_measured(tmp_path, monkeypatch, capsys):
    from modelwright.cli import bench
    from modelwright.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "EACH_S", 0.02)
    monkeypatch.setattr(bench, "FILE_BYTES", 1 << 22)
    monkeypatch.setattr("modelwright.nn.rate.SIDE", {"cpu": 64})
    monkeypatch.setattr("modelwright.nn.bench.SIDE", {"cpu": 64})
    monkeypatch.setattr("modelwright.nn.bench.VECTOR_BYTES", 1 << 20)
    monkeypatch.setattr(bench, "tokenizer", lambda: 1e6)
    assert main(["bench", "machine", "--power-w", "30"]) == 0
    out = capsys.readouterr().out
    assert "products in fp32" in out and "FLOP/s" in out and "disk, reading" in out and "30 W" in out and "rates.json" in out
    found = here.this_machine()
    assert found.power_w == 30 and found.tokenise_chars_per_s == 1e6 and "measured" in found.source
    assert list(tmp_path.glob(".modelwright-bench-*")) == []
    assert main(["doctor"]) == 0
    assert "measured" in capsys.readouterr().out
    for wrong in ("machine --power-w 0", "machine --power-w nan", "devices --power-w 9", "devices --interconnect"):
        with pytest.raises(SystemExit):
            main(["bench", *wrong.split()])
    assert main(["bench", "devices"]) == 0
    assert "rtx-5090" in capsys.readouterr().out


def test_a_folder_in_place_of_a_file_of_devices_is_no_recipe(tmp_path: Path) -> None:
    """It was told to name the recipe's file."""
    with pytest.raises(UserError, match="is a folder, not a file") as found:
        devices.table(tmp_path)
    assert "recipe" not in str(found.value)
