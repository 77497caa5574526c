"""The bundled device profiles and the numbers they give."""

import json
import tomllib
from pathlib import Path

import pytest

from moesim.errors import InputError, UsageError
from moesim.hardware import (
    Count,
    Device,
    device_names,
    load_device,
    looks_like_file,
    profiles_folder,
)
from moesim.schema import Evidence

ALL = device_names()

# Published values: dense TFLOP/s (or TOP/s), memory GB as sold and GB/s, link GB/s per direction.
# Sources: the data sheets and papers that the profiles name; typed in here a second time.
PUBLISHED = {
    "h100_sxm": ({"bf16": 989.4, "fp8": 1979}, 80, 3352, 450, 50, 700),
    "h800_sxm": ({"bf16": 989.4, "fp8": 1979}, 80, 3352, 200, 50, 700),
    "h200_sxm": ({"bf16": 989.4, "fp8": 1979}, 141, 4800, 450, 50, 700),
    "a100_sxm": ({"bf16": 312, "int8": 624}, 80, 2039, 300, 25, 400),
    "b200_sxm": ({"bf16": 2250, "fp8": 4500, "fp4": 9000}, 192, 7700, 900, 100, 1000),
    "gb200": ({"bf16": 2500, "fp8": 5000, "fp4": 10000}, 186, 8000, 900, 100, 1200),
    "b300_sxm": ({"bf16": 2250, "fp8": 4500, "fp4": 14000}, 288, 7750, 900, 100, 1100),
    "gb300": ({"bf16": 2500, "fp8": 5000, "fp4": 15000}, 288, 8000, 900, 100, 1400),
    "mi300x": ({"bf16": 1307, "fp8": 2615}, 192, 5300, 448, 50, 750),
    "l40s": ({"bf16": 362.05, "fp8": 733}, 48, 864, None, 50, 350),
    "rtx4090": ({"fp16": 165.2, "fp8": 330.3, "int8": 660.6}, 24, 1008, None, None, 450),
    "rtx_a6000": ({"bf16": 154.8, "int8": 309.7}, 48, 768, None, None, 300),
    "ascend_910b2": ({"fp16": 376, "int8": 752}, 64, 1600, 196, 25, 400),
    "ascend_910b3": ({"fp16": 313, "int8": 626}, 64, 1600, 196, 25, 400),
    "ascend_910b4": ({"fp16": 280, "int8": 560}, 64, 1600, 196, 25, 350),
    "ascend_910b4_32gb": ({"fp16": 280, "int8": 560}, 32, 800, 196, 25, 350),
    "ascend_910c": ({"fp16": 376, "int8": 752}, 64, 1600, 196, 25, None),
    "ascend_300i_duo": ({"fp16": 140, "int8": 280}, 96, 408, None, None, 150),
    "duplex": ({"fp16": 989.4}, 80, 3352, 450, 50, None),
    "duplex_bank_pim": ({"fp16": 989.4}, 80, 3352, 450, 50, None),
    "duplex_bankgroup_pim": ({"fp16": 989.4}, 80, 3352, 450, 50, None),
    "xeon_gold_5220r": ({"fp32": 1.69}, 192, 128, None, None, 150),
    "xeon_gold_6454s": ({"bf16": 144, "int8": 288}, 256, 307.2, None, None, 270),
    "epyc_9554": ({"fp32": 6.35, "bf16": 12.7}, 384, 460.8, None, None, 360),
    "kunpeng_920_7265": ({"fp32": 3.07}, 256, 204.8, None, None, 200),
    "fpga_zcu102": ({"int16": 1.51, "int8": 3.02}, 4, 17.07, None, None, 25),
    "fpga_u280": ({"int16": 5.41, "int8": 24.5}, 8, 460, None, None, 225),
    "rtx_pro_6000_server": ({"bf16": 467.8, "fp4": 1871.2}, 96, 1792, None, 50, 600),
    "arc_b60": ({"bf16": 98.3, "int8": 197}, 25.77, 456, None, 50, 200),
}


def test_every_bundled_device_has_published_values_to_be_compared_with():
    assert sorted(PUBLISHED) == ALL


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_values(name):
    peak, memory_gb, memory_gb_per_s, scale_up, nic, tdp_w = PUBLISHED[name]
    device = load_device(name)
    for dtype, tflop_per_s in peak.items():
        assert device.peak_flop_per_s(dtype) == pytest.approx(tflop_per_s * 1e12, rel=1e-3)
    assert device.memory.capacity.si == pytest.approx(memory_gb * 1e9, rel=1e-3)
    assert device.memory_bytes_per_s == pytest.approx(memory_gb_per_s * 1e9, rel=1e-3)
    link = device.scale_up and device.scale_up.bandwidth.si / 1e9
    card = device.nic and device.nic.bandwidth.si / 1e9
    assert (link, card, device.tdp_w) == (scale_up, nic, tdp_w)


@pytest.mark.parametrize("name", ALL)
def test_profile_is_complete_and_honest(name):
    device = load_device(name)
    assert device.name == name
    numbers = dict(device.quantities())
    assert {"memory.capacity", "memory.bandwidth"} <= numbers.keys()
    used = {number.source for number in numbers.values()}
    assert used == set(device.sources), "sources that no number uses"
    for field, number in numbers.items():
        source = device.sources[number.source]
        if number.evidence is not Evidence.ASSUMED:
            # The Atlas product list is a document without a stable address.
            assert source.url or number.source == "atlas", field
        if not isinstance(number, Count):
            assert 0 < number.si < 1e17


@pytest.mark.parametrize("name", ALL)
def test_to_dict_reads_back_the_same(name):
    device = load_device(name)
    assert Device.parse(json.loads(json.dumps(device.to_dict()))) == device


def test_rates_are_ordered_within_a_device():
    for name in ALL:
        device = load_device(name)
        rates = {dtype: device.peak_flop_per_s(dtype) for dtype in device.peak}
        for wide, narrow in (("fp32", "tf32"), ("tf32", "bf16"), ("bf16", "fp8"), ("fp8", "fp4")):
            if wide in rates and narrow in rates:
                assert rates[wide] <= rates[narrow], name


def test_h100_addressable_memory_counts():
    device = load_device("h100_sxm")
    assert device.memory_bytes == 81559 * 2**20
    assert load_device("mi300x").memory_bytes == 192e9
    assert device.launch_overhead_s == pytest.approx(3e-6)
    assert load_device("epyc_9554").launch_overhead_s is None


def test_duplex_has_a_second_processor_over_the_same_memory():
    # arXiv 2409.01141: 4x the bandwidth of HBM at 8 Op/B; 3.48 against 1.81 pJ/bit.
    device = load_device("duplex")
    assert device.pim is not None
    ratio = device.pim.bandwidth.si / device.memory_bytes_per_s
    assert ratio == pytest.approx(4)
    assert device.pim.peak_flop_per_s("fp16") / device.pim.bandwidth.si == pytest.approx(8, 0.01)
    assert device.energy.memory.si == pytest.approx(3.48e-12 * 8)
    assert device.pim.energy.memory.si == pytest.approx(1.81e-12 * 8)
    with pytest.raises(InputError, match="Logic-PIM has no peak rate"):
        device.pim.peak_flop_per_s("fp8")


def test_zcu102_ports_not_dram_are_the_limit_of_one_port():
    # Edge-MoE: five 128-bit ports at 300 MHz before a 64-bit DDR4-2133.
    fabric = load_device("fpga_zcu102").fabric
    assert fabric.port_bandwidth.si == 128 / 8 * fabric.clock.si
    assert fabric.dsp_slices.value * 2 * fabric.clock.si == pytest.approx(1.51e12, rel=0.01)


def test_peak_of_an_unknown_type_names_the_known_ones():
    with pytest.raises(InputError, match=r"peak: a100_sxm has no peak rate.*fp8.*bf16"):
        load_device("a100_sxm").peak_flop_per_s("fp8")


def test_quantities_are_floats_in_si_units():
    numbers = dict(load_device("h100_sxm").quantities())
    assert numbers["scale_up.latency"].si == pytest.approx(3.33e-6)
    assert numbers["cores"].value == 132
    assert numbers["memory.capacity"].unit == "B"


def test_values_agree_with_aiconfigurator_where_it_has_them():
    core = pytest.importorskip("aiconfigurator_core")
    import yaml

    systems = Path(core.__file__).parent / "systems"
    compared = 0
    for name, theirs in [*((name, name) for name in ALL), ("arc_b60", "b60")]:
        file = systems / f"{theirs}.yaml"
        if not file.is_file():
            continue
        gpu = yaml.safe_load(file.read_text())["gpu"]
        device = load_device(name)
        assert device.memory_bytes_per_s == pytest.approx(gpu["mem_bw"], rel=0.01)
        assert device.peak_flop_per_s("bf16") == pytest.approx(gpu["bfloat16_tc_flops"], rel=0.01)
        assert device.memory_bytes == pytest.approx(gpu["mem_capacity"], rel=0.01)
        assert device.tdp_w == gpu["power"]
        compared += 1
    assert compared >= 9


@pytest.mark.parametrize(
    ("name", "near"),
    [("h100", "h100_sxm"), ("H100-SXM", "h100_sxm"), ("asend_910b4", "ascend_910b4")],
)
def test_unknown_device_names_near_ones(name, near):
    with pytest.raises(UsageError, match=f"near: .*{near}"):
        load_device(name)


def test_a_long_unknown_name_is_cut():
    with pytest.raises(UsageError) as caught:
        load_device("q" * 10_000)
    assert len(str(caught.value)) < 300


def test_what_looks_like_a_file():
    assert looks_like_file(Path("h100_sxm"))
    assert looks_like_file("my/h100")
    assert looks_like_file("mine.YAML")
    assert not looks_like_file("h100_sxm")


def test_profiles_are_part_of_the_package():
    assert (profiles_folder() / "h100_sxm.yaml").is_file()
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["moesim"]
