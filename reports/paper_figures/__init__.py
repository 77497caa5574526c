"""What predicts the figures of each paper: one module per paper, found by the paper's id.

A module has ``predict(paper) -> Mapping[str, Prediction]``: predictions by figure id, in the
figures' units, from general models and a set-up that the module states.
"""

from __future__ import annotations

PAPERS: dict[str, str] = {
    "deepseek-serving": "moesim.reports.paper_figures.deepseek_serving",
    "cloudmatrix384": "moesim.reports.paper_figures.cloudmatrix384",
    "duplex": "moesim.reports.paper_figures.duplex",
    "deepep": "moesim.reports.paper_figures.deepep",
    "deepseek-insights": "moesim.reports.paper_figures.deepseek_insights",
    "edge-moe": "moesim.reports.paper_figures.edge_moe",
    "pangu-pro-moe": "moesim.reports.paper_figures.pangu_pro_moe",
    "sglang-96-h100": "moesim.reports.paper_figures.sglang_96_h100",
    "sglang-gb200": "moesim.reports.paper_figures.sglang_gb200",
    "sglang-kimi-k2": "moesim.reports.paper_figures.sglang_kimi_k2",
    "sglang-mtp": "moesim.reports.paper_figures.sglang_mtp",
    "hecate": "moesim.reports.paper_figures.hecate",
    "megascale": "moesim.reports.paper_figures.megascale",
    "transforms": "moesim.reports.paper_figures.transforms",
}
"""Module by paper id; modules are imported when they are needed."""
