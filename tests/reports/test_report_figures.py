"""Pictures show the data: read back from the pixels and paths of the SVG."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest

from moesim.reports import figures
from moesim.reports.svg import COLOURS


def _images(svg):
    from PIL import Image

    found = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def _brightness(image):
    return image[..., :3].astype(int).sum(axis=2)


def test_expert_load_has_one_pixel_per_expert_and_dark_where_hot(large):
    heat, scale = _images(figures.expert_load(large).svg)
    assert heat.shape[:2] == (58, 256)
    assert scale.shape[0] == 1
    relative = large.loads / large.loads.mean(axis=1, keepdims=True)
    order = np.argsort(relative, axis=None)
    bright = _brightness(heat).ravel()[order]
    assert (np.diff(bright) <= 3).all()  # brightness falls as load rises


def test_device_load_before_and_after_share_a_scale(small):
    before, after = (_images(p.svg)[0] for p in figures.device_load(small))
    assert before.shape[:2] == after.shape[:2] == (8, 16)
    red_over_blue = before[..., 0].astype(int) - before[..., 2]
    tokens = small.scores["contiguous"].cost.device_tokens
    relative = tokens / tokens.mean(axis=1, keepdims=True)
    assert (red_over_blue[relative > 1.15] > 0).all()
    assert (red_over_blue[relative < 0.85] < 0).all()
    # The same load has the same colour in both: the chosen plan's worst is paler than before.
    assert _brightness(after).min() > _brightness(before).min() + 100


def test_traffic_leaves_out_the_diagonal_and_orders_by_bytes(small):
    before, after = (_images(p.svg)[0] for p in figures.traffic(small))
    assert (np.diagonal(before[..., 3]) == 0).all()
    off = ~np.eye(16, dtype=bool)
    assert (before[..., 3][off] == 255).all()
    sent = np.concatenate(
        [small.scores[key].cost.traffic_bytes[off] for key in ("contiguous", "lpt-swap")]
    )
    bright = np.concatenate([_brightness(image)[off] for image in (before, after)])
    assert (np.diff(bright[np.argsort(sent)]) <= 3).all()  # one scale for both


def test_node_boundaries_are_drawn(large):
    for picture in figures.traffic(large):
        assert picture.svg.count("stroke: var(--card)") == 2 * 3
    for picture in figures.device_load(large):
        assert picture.svg.count("stroke: var(--card)") == 3


def test_bars_are_as_high_as_the_parts_of_the_time(small):
    for picture, key in zip(figures.layer_time(small), ("contiguous", "lpt-swap"), strict=True):
        cost = small.scores[key].cost
        heights = {}
        for part in ("dispatch", "experts", "combine"):
            paths = re.findall(rf'<path d="([^"]*)"[^>]*fill: var\(--{part}\)', picture.svg)
            assert len(paths) == 8
            ys = [[float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", d)] for d in paths]
            heights[part] = np.array([max(y) - min(y) for y in ys])
        total = sum(heights.values())
        time_s = cost.layer_dispatch_s + cost.layer_compute_s + cost.layer_combine_s
        assert total / total[0] == pytest.approx(time_s / time_s[0], rel=1e-4)
        assert heights["experts"] / total == pytest.approx(cost.layer_compute_s / time_s, rel=1e-4)


def test_pictures_take_the_pages_colours_and_fonts(large):
    pictures = (
        figures.expert_load(large), *figures.device_load(large), *figures.traffic(large),
        *figures.layer_time(large),
    )  # fmt: skip
    for picture in pictures:
        svg = picture.svg
        assert svg.startswith("<svg ")
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert not any(mark in svg for mark in COLOURS.values())
        # All text and lines follow the scheme: no fixed colour but the images'.
        drawn = re.sub(r'href="data:[^"]*"', "", svg)
        assert not re.search(r"(fill|stroke): #", drawn)
        for text in re.findall(r"<text ([^>]*)>", svg):
            assert "fill: var(--" in text


def test_single_placement_gives_single_pictures(odd):
    outcome = odd["baseline chosen"]
    assert len(figures.device_load(outcome)) == 1
    assert len(figures.traffic(outcome)) == 1
    assert len(figures.layer_time(outcome)) == 1


def test_settings_of_matplotlib_neither_leak_in_nor_out(small):
    import matplotlib

    expected = figures.expert_load(small).svg
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert figures.expert_load(small).svg == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_matplotlib_comes_late_and_pyplot_never():
    from pathlib import Path

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import moesim.reports, moesim.cli.plan_terminal\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from tests.reports.outcome_fixture import make_outcome\n"
        "o = make_outcome(); moesim.reports.render_markdown(o)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "moesim.reports.render_html(o)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert not {'torch', 'pandas', 'pulp'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2])],
        capture_output=True, text=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
