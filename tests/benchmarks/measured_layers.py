"""Engines' whole expert layers against the same by the products of a bundled benchmark.

``moesim --cost FILE`` takes a layer's two products from kernels that were measured one by one, and
the rest from the fitted layer. NVIDIA's tables have whole layers of vLLM, whose kernel is in the
bundled benchmarks too, and of SGLang on the same GPUs. Needs the extra ``measured``.

    python -m tests.benchmarks.measured_layers

prints measured over predicted time by engine and regime, which is what
``moesim.measured_cost.LAYERS`` says, and the share of rows inside the interval.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moesim.calibrate.grouped_file import fit_file
from moesim.calibrate.moe_load import moe_loads
from moesim.calibrate.registry import calibrated_operator
from moesim.calibrated_cost import CalibratedCost
from moesim.hardware import load_device
from moesim.measured_kernels import MeasuredKernels, load_measured
from moesim.operators.moe_fits import REGIMES, moe_fit_for, token_regime
from moesim.safe_io import write_json

FOLDER = Path(__file__).resolve().parents[2] / "kernels" / "measured"
KERNELS = {
    "vllm": "vllm_unquantizedfusedmoe_triton_tritonexperts",
    "sglang": "sglang_fused_moe_triton",
}
ROWS = 4000
"""Drawn per GPU and engine."""


def ratios(system: str, engine: str, measured: MeasuredKernels) -> np.ndarray:
    """[rows, 5]: measured over predicted, ends of the interval, tokens, ranks."""
    table = calibrated_operator("moe").load("aiconfigurator", [system], "newest", [engine])
    frame, device = table.frame, load_device(system)
    wanted = frame.is_label("kernel", KERNELS[engine]) & frame.is_label("dtype", "bfloat16")
    wanted &= table.shapes.input_matrices == 2
    chosen = np.flatnonzero(wanted)
    chosen = np.random.default_rng(0).permutation(chosen)[:ROWS]
    loads = moe_loads(frame)
    fit = moe_fit_for(device, "bfloat16", engine=engine, kernel=KERNELS[engine])
    found = []
    for row in chosen.tolist():
        cost = measured.cost(
            CalibratedCost.of_shape(
                device,
                fit,
                hidden=int(frame["hidden"][row]),
                width=int(frame["inter"][row] // frame["moe_tp"][row]),
                input_matrices=2,
                devices=int(frame["moe_ep"][row]),
                top_k=int(frame["top_k"][row]),
            )
        )
        assert cost is not None
        layer = cost.time(loads.of(row))
        seconds, tokens = float(layer.total_s.mean()), int(frame["tokens"][row])
        ends = cost.interval(seconds, tokens, float(layer.least_s.mean()))
        ratio = frame["latency_s"][row] / seconds
        found.append((ratio, *ends, tokens, frame["moe_ep"][row]))
    return np.array(found)


def main() -> None:
    """Fit the bundled files and print the table."""
    parts: dict[str, list[np.ndarray]] = {engine: [] for engine in KERNELS}
    with TemporaryDirectory() as folder:
        for system in ("h100_sxm", "h200_sxm"):
            path = Path(folder) / f"{system}.json"
            write_json(path, fit_file(FOLDER / f"{system}.json").to_dict())
            measured = load_measured(f"{path}:vllm-fused-moe")
            for engine, found in parts.items():
                found.append(ratios(system, engine, measured))
    print(f"{'engine':<8}{'ranks':<9}{'regime':<9}{'rows':>6}{'10 %':>7}{'median':>8}{'90 %':>7}"
          f"{'in 80 %':>9}")  # fmt: skip
    for engine, found in parts.items():
        rows = np.concatenate(found)
        regimes = np.array([token_regime(int(tokens)) for tokens in rows[:, 3]])
        for ranks, alone in (("one", rows[:, 4] == 1), ("several", rows[:, 4] > 1)):
            for regime in REGIMES:
                of = rows[alone & (regimes == regime)]
                low, middle, high = np.quantile(of[:, 0], (0.1, 0.5, 0.9))
                inside = np.mean((of[:, 0] >= of[:, 1]) & (of[:, 0] <= of[:, 2]))
                print(f"{engine:<8}{ranks:<9}{regime:<9}{len(of):>6}{low:>7.2f}{middle:>8.2f}"
                      f"{high:>7.2f}{inside:>9.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
