"""A table of measured serving runs."""

import csv

ROW = {
    "id": "r0",
    "backend": "sglang",
    "backend_version": "0.5.9",
    "model_path": "deepseek-ai/DeepSeek-V3",
    "system": "h200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "128",
    "gemm_quant_mode": "fp8",
    "moe_quant_mode": "fp8_block",
    "batch_size": "8",
    "tp_size": "8",
    "pp_size": "1",
    "attention_dp_size": "1",
    "moe_tp_size": "8",
    "moe_ep_size": "1",
    "silicon_ttft_ms": "150",
    "silicon_tpot_ms": "12",
    "measured_on": "2026-03-25",
    "concurrency": "8",
}
SPLIT = {
    f"{worker}_{name}": value
    for worker in ("prefill", "decode")
    for name, value in {
        "num_workers": "",
        "tp_size": "8",
        "pp_size": "1",
        "attention_dp_size": "1",
        "moe_tp_size": "1",
        "moe_ep_size": "8",
    }.items()
}


def table(tmp_path, *changes):
    path = tmp_path / "runs.csv"
    rows = [ROW | SPLIT | {"id": f"r{i}"} | change for i, change in enumerate(changes)]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
