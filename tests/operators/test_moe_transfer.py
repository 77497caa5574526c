"""Coefficients of kernels that were not measured."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.operators.moe_device import moe_device
from moesim.operators.moe_fits import MoeFit, moe_fit_for, shipped_moe_fits
from moesim.operators.moe_transfer import (
    MoeKernel,
    VersionDrift,
    architecture,
    transferred,
    version_drift,
)
from moesim.schema import Evidence
from tests.operators.test_moe import GOOD

TARGET = MoeKernel("h200_sxm", "sglang", "2.0", "sglang_fused_moe_triton", "bfloat16")
DEVICE = moe_device(load_device("h200_sxm"), "bfloat16")


def fit(launch_s=1e-5, **changes):
    kernel = TARGET._replace(**changes)
    coefficients = GOOD.model_copy(update={"launch_s": launch_s})
    return MoeFit(**kernel._asdict(), rows=100, coefficients=coefficients)


def test_the_nearest_kernels_decide():
    other_system = fit(1e-5, system="h100_sxm")
    other_version = fit(2e-5, version="1.0")
    far_system = fit(3e-5, system="a100_sxm")
    found = transferred(TARGET, [far_system, other_system, other_version], DEVICE)
    assert (found.kind, found.donors) == ("version", (other_version.key,))
    assert found.coefficients.launch_s == pytest.approx(2e-5)
    found = transferred(TARGET, [far_system, other_system], DEVICE)
    assert (found.kind, found.donors) == ("device", (other_system.key,))
    assert found.coefficients.launch_s == pytest.approx(1e-5)
    assert transferred(TARGET, [far_system], DEVICE).kind == "generation"
    cutlass = fit(kernel="moe_torch_flow_cutlass", engine="trtllm")
    assert transferred(TARGET, [cutlass], DEVICE).kind == "sibling"


def test_equally_near_kernels_are_averaged_as_logarithms():
    fits = [fit(1e-5, system="h100_sxm"), fit(4e-5, system="h100_sxm", version="1.0")]
    assert transferred(TARGET, fits, DEVICE).coefficients.launch_s == pytest.approx(2e-5)


def test_a_kernel_of_the_family_is_blended_in_unless_it_is_another_thing():
    own = fit(1e-5, version="1.0")
    sibling = fit(1.5e-5, engine="vllm", kernel="vllm_fused_moe")
    blended = transferred(TARGET, [own, sibling], DEVICE).coefficients.launch_s
    assert 1e-5 < blended < 1.25e-5
    untuned = sibling.model_copy(update={"coefficients": GOOD.model_copy(update={"launch_s": 1.0})})
    found = transferred(TARGET, [own, untuned], DEVICE).coefficients
    assert found.launch_s == pytest.approx(1e-5)


def test_marlin_widens_floating_point_weights_more_slowly():
    target = MoeKernel("h200_sxm", "vllm", "1.0", "vllm_marlin", "w4a16_mxfp4")
    known = fit(engine="vllm", kernel="vllm_marlin", dtype="int4_wo").model_copy(
        update={"coefficients": GOOD}
    )
    found = transferred(target, [known], DEVICE).coefficients
    assert found.weight_bandwidth_share < GOOD.weight_bandwidth_share
    assert found.row_cost > GOOD.row_cost
    assert found.k_step_s > GOOD.k_step_s
    back = transferred(known.key, [known.model_copy(update=target._asdict())], DEVICE).coefficients
    assert back.row_cost < GOOD.row_cost
    triton = transferred(TARGET, [fit(version="1.0", dtype="w4a16_mxfp4")], DEVICE).coefficients
    assert triton.row_cost == pytest.approx(GOOD.row_cost)


def test_drift_between_versions_goes_both_ways():
    order = {("sglang", "1.0"): 0, ("sglang", "2.0"): 1}
    old, new = fit(version="1.0"), fit()
    faster = {
        name: value * (0.9 if not name.endswith("bandwidth_share") else 1 / 0.9)
        for name, value in old.coefficients.model_dump().items()
        if name.endswith(("_s", "bandwidth_share")) or name in ("tile_rows", "row_cost")
    }
    new = new.model_copy(update={"coefficients": new.coefficients.model_copy(update=faster)})
    drift = version_drift([old, new], {"h200_sxm": DEVICE}, order)
    assert drift.log_ratio == pytest.approx(np.log(0.9), rel=1e-6)
    assert version_drift([old], {"h200_sxm": DEVICE}, order).log_ratio == 0
    forward = transferred(TARGET, [old], DEVICE, drift=drift).coefficients
    assert forward.launch_s == pytest.approx(1e-5 * 0.9)
    backward = transferred(
        TARGET._replace(version="1.0"), [fit()], DEVICE, drift=VersionDrift(np.log(0.9), order)
    )
    assert backward.coefficients.launch_s == pytest.approx(1e-5 / 0.9)


def test_architectures():
    assert architecture("b60") == architecture(load_device("arc_b60")) == "xe2"
    unknown = load_device("h200_sxm").model_copy(update={"name": "h900"})
    assert architecture(unknown) == "hopper"
    assert architecture(load_device("l40s").model_copy(update={"name": "l99"})) == "ada"
    assert architecture(load_device("b200_sxm").model_copy(update={"name": "b9"})) == "blackwell"
    assert architecture(load_device("mi300x")) is None


def test_a_measured_device_has_its_own_fit():
    found = moe_fit_for(load_device("h200_sxm"), "fp8_block", engine="trtllm")
    assert found in shipped_moe_fits().fits
    assert found.evidence is Evidence.FITTED
    assert moe_fit_for(load_device("arc_b60"), "bfloat16").system == "b60"


def test_a_device_never_measured():
    device = load_device("h800_sxm")
    found = moe_fit_for(device, "fp8_block", engine="trtllm")
    assert found.system == "h800_sxm"
    assert found.transfer == "device"
    assert found.evidence is Evidence.SPEC
    assert {name.split("/")[0] for name in found.borrowed_from} == {"h100_sxm", "h200_sxm"}
    assert moe_fit_for(load_device("mi300x"), "bfloat16").transfer == "generation"


def test_what_is_less_like_anything_measured_is_less_sure():
    """Itself, its architecture, another architecture: the interval widens, in every regime."""
    widths = []
    for name in ("h200_sxm", "h800_sxm", "mi300x"):
        fit = moe_fit_for(load_device(name), "bfloat16")
        ends = [fit.interval(tokens) for tokens in (8, 512, 8192)]
        widths.append([np.log(high / low) for low, high in ends])
    assert (np.diff(np.array(widths), axis=0)[1] > 0).all()
    assert (np.array(widths)[2] > np.array(widths)[0]).all()


def test_a_fit_without_intervals_says_so():
    with pytest.raises(InputError, match="no interval"):
        fit().interval(1)


def test_what_cannot_be_had():
    with pytest.raises(InputError, match="no expert kernel of that kind"):
        moe_fit_for(load_device("h200_sxm"), "int3")
    with pytest.raises(InputError, match="number of cores"):
        moe_fit_for(load_device("ascend_910c"), "bfloat16")
