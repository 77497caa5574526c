"""Set-ups of measured runs from the public benchmark's recipes."""

import subprocess
from dataclasses import replace

import pytest

from moesim.calibrate.harness import complete_run, shipped_flags, shipped_recipes
from moesim.calibrate.harness_extract import extract_recipes
from moesim.calibrate.serving_rows import MeasuredRun, RunLayout

IMAGE = "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1.post2"
EIGHT = RunLayout(8, 1, 1, 8, 1, "stated")
RUN = MeasuredRun(
    id="r",
    engine="trtllm",
    version="0.8.1.post2",
    date="2026-03-23",
    model="deepseek-ai/DeepSeek-R1",
    system="b200_sxm",
    precision="fp8",
    block_scaled=False,
    mode="disagg",
    isl=1024,
    osl=1024,
    concurrency=8,
    layout=EIGHT,
    workers=0,
    prefill=EIGHT,
    prefill_workers=0,
    ttft_s=0.3,
    tpot_s=0.0035,
    image=IMAGE,
    setup="assumed",
)


def test_a_recipe_says_workers_layouts_and_drafting():
    found = complete_run(RUN)
    assert found.setup == "recipe"
    assert (found.prefill_workers, found.workers) == (1, 8)
    assert (found.prefill.tp, found.prefill.dp, found.prefill.ep) == (1, 8, 8)
    assert (found.layout.tp, found.layout.dp, found.layout.ep) == (8, 1, 1)
    assert found.drafting is True


def test_drafting_stays_open_where_recipes_differ():
    # 32 requests were served by 8 workers that draft and by 3 that do not.
    found = complete_run(replace(RUN, concurrency=32))
    assert found.drafting is None
    assert found.setup == "recipes"


@pytest.mark.parametrize(
    "change",
    [{"image": "other:1"}, {"concurrency": 7}, {"isl": 4000}, {"model": "org/DeepSeek-V3.2"}],
)
def test_without_a_recipe_nothing_changes(change):
    run = replace(RUN, **change)
    assert replace(complete_run(run), flags=None) == run


def test_what_a_table_states_is_kept():
    stated = replace(RUN, setup="stated", workers=8, prefill_workers=1)
    found = complete_run(stated)
    assert (found.layout, found.prefill, found.workers) == (EIGHT, EIGHT, 8)
    assert found.drafting is True


def test_flags_follow_size_and_drafting():
    run = replace(
        RUN, engine="sglang", mode="agg", isl=8192, image="", setup="stated", prefill=None
    )
    whole = complete_run(run).flags
    half = complete_run(replace(run, layout=RunLayout(4, 1, 4, 1, 1, "stated"))).flags
    assert (whole.max_sequences.of(run), half.max_sequences.of(run)) == (128, 32)
    trt = complete_run(replace(run, engine="trtllm", concurrency=500)).flags
    # The budget holds a whole prompt beside all sequences.
    assert trt.token_budget.of(replace(run, concurrency=500)) == 8192 + 500 + 64


def test_recipes_and_flags_are_whole():
    recipes = [recipe for named in shipped_recipes().values() for _, recipe in named]
    assert len(recipes) > 2000
    for recipe in recipes:
        assert recipe.first_day <= recipe.last_day
        for _, layout in filter(None, (recipe.prefill, recipe.decode)):
            assert layout.devices == layout.tp * layout.dp
            assert layout.moe_tp * layout.ep <= layout.devices
    assert all(flags.script.endswith(".sh") for flags in shipped_flags())


def test_extraction_follows_a_history(tmp_path):
    recipe = """
dsr1-fp8-b200-dynamo-trt:
  {{image: "i:1", model: m, model-prefix: dsr1, runner: b200-multinode, precision: fp8,
    framework: dynamo-trt, seq-len-configs: [{{isl: 1024, osl: 1024, search-space: [
      {{spec-decoding: mtp, conc-list: [{conc}], prefill: {{num-worker: 1, tp: 8, ep: 8,
       dp-attn: true}}, decode: {{num-worker: 8, tp: 8, ep: 1, dp-attn: false}}}},
      {{tp: 4, conc-start: 4, conc-end: 16}}]}}]}}
"""
    folder = tmp_path / "repo" / ".github" / "configs"
    folder.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    for day, conc in (("2026-01-01", 8), ("2026-02-01", 8), ("2026-03-01", 9)):
        (folder / "nvidia-master.yaml").write_text(recipe.format(conc=conc) + f"# {day}\n")
        subprocess.run([*git, "add", "-A"], check=True)
        stamp = {"GIT_AUTHOR_DATE": f"{day}T00:00:00Z", "GIT_COMMITTER_DATE": f"{day}T00:00:00Z"}
        subprocess.run([*git, "commit", "-qm", "x"], check=True, env=stamp)
    rows = extract_recipes(tmp_path / "repo")
    found = {
        (row["concurrency"], row["prefill"], row["decode"], row["drafts"]): row for row in rows
    }
    assert set(found) == {
        ("8", "1xtp8ep8dp", "8xtp8ep1", 1),
        ("9", "1xtp8ep8dp", "8xtp8ep1", 1),
        ("4 8 16", "", "1xtp4ep1", 0),
    }
    eight = found["8", "1xtp8ep8dp", "8xtp8ep1", 1]
    assert (eight["first_day"], eight["last_day"]) == ("2026-01-01", "2026-02-01")
    assert found["4 8 16", "", "1xtp4ep1", 0]["last_day"] == "2026-03-01"
