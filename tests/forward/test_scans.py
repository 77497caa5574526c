"""Recurrences in a step: their sizes, and whose kernels price them."""

import numpy as np
import pytest

from moesim.forward.request import StepRequest, run_request
from moesim.forward.work import ScanWork
from moesim.model import load_model, model_names
from moesim.model.mixers import Recurrence
from moesim.operators.shipped import find_fit
from moesim.operators.streaming import convolution_work, delta_rule_work


def scans(model, phase, batch, context, **options):
    found = run_request(StepRequest(model, "4xh100_sxm", phase, batch, context, **options))
    return [one for one in found.ops if isinstance(one.op.work, ScanWork)]


def test_heads_add_up_to_the_state_that_is_kept():
    checked = 0
    for name in model_names():
        for mixer in load_model(name).mixers:
            if isinstance(mixer, Recurrence) and mixer.state_heads is not None:
                h = mixer.state_heads
                matrix = h.value_heads * h.key_dim * h.value_dim
                assert mixer.state_elements == matrix + h.channels * (h.convolution_width - 1)
                checked += 1
    assert checked >= 2


def test_work_of_a_scan_by_hand():
    one, two, three = (np.array([n]) for n in (1, 2, 3))
    short = convolution_work(two, three, np.array([5]), np.array([4]))
    # 2 sequences of 5 channels: 3 tokens and 3 of state, in and out, of 2 bytes.
    assert (short.moved_bytes, short.flops) == (2 * 5 * (3 + 3) * 2 * 2, 2 * 2 * 3 * 5 * 4)
    assert (short.lanes, short.length) == (10, 3)
    scan = delta_rule_work(two, three, one, np.array([4]), two, np.array([8]))
    # 6 tokens: query and key of 4, value and result of 2 x 8; states of 2 x 4 x 8, in and out.
    assert scan.moved_bytes == 6 * (2 * 4 + 2 * 2 * 8) * 2 + 2 * 2 * (2 * 4 * 8) * 4
    assert scan.flops == 6 * 2 * (2 * 3 * (4 + 8) + 6 * 4 * 8)
    assert (scan.lanes, scan.length) == (4, 3)


@pytest.mark.parametrize(
    ("phase", "table", "batch", "context"),
    [("decode", "generation", 64, 4096), ("prefill", "context", 4, 4096)],
)
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_gated_delta_nets_take_the_measured_kernels(phase, table, batch, context, engine):
    tokens = 1 if phase == "decode" else context
    # Qwen3-Next over four devices: 4 heads of 128 for keys, 8 of 128 for values, a width of 4.
    b, q = np.array([batch]), np.array([tokens])
    works = {
        "convolution": convolution_work(b, q, np.array(2 * 4 * 128 + 8 * 128), np.array(4)),
        "recurrence": delta_rule_work(b, q, *map(np.array, (4, 128, 8, 128))),
    }
    found = scans("qwen3-next-80b-a3b", phase, batch, context, engine=engine, tp=4)
    assert [one.op.work.role for one in found] == list(works)
    for one in found:
        fit = find_fit("gdn", "h100_sxm", engine=engine, phase=table, role=one.op.work.role)
        expected = fit.time(works[one.op.work.role])
        assert one.op.layers == 36
        assert one.price.time_s == expected.time_s[0]
        assert one.price.kernel == f"{engine} {fit.version}, {fit.kernel}"


def test_what_was_not_measured_stands_on_its_bytes():
    convolution, recurrence = scans("nemotron-3-nano-30b-a3b", "decode", 64, 4096, tp=4)
    assert "causal_conv1d" in convolution.price.kernel
    assert "torch_ops" in recurrence.price.kernel
    # Nemotron's scan: 16 heads of 64 with a state of 128 on a device, in float32, there and back.
    assert recurrence.op.work.bytes >= 64 * 16 * 64 * 128 * 4 * 2
