"""Cards that notebooks show: closed to the outside, escaped, and saying what the reports say."""

import io
import re

import pytest
from rich.console import Console

from moesim.capacity.question import Question
from moesim.capacity.search import answer
from moesim.cli.step_terminal import show_step
from moesim.cli.whatif_terminal import show_whatif
from moesim.errors import UsageError
from moesim.forward.request import StepRequest, run_request
from moesim.offload.inputs import open_inputs
from moesim.offload.whatif import what_if
from moesim.reports.notebook import Shown, show
from moesim.reports.plan_report import build_report
from moesim.reports.styles import style
from moesim.reports.tables import Fact, Table
from tests.reports.html_elements import Elements
from tests.reports.outcome_fixture import HOSTILE

STEP = StepRequest(model="qwen3-30b-a3b", cluster="4xh100_sxm", batch=16, context=512)


@pytest.fixture(scope="module")
def step():
    return run_request(STEP)


@pytest.fixture(scope="module")
def cache():
    given = open_inputs(
        trace=None, model=None, hardware="rtx4090", memory="2.5 GB", bits=None
    )  # fmt: skip
    return what_if(given, ["lru", "belady"], slots=[4, 8, 16])


@pytest.fixture(scope="module")
def capacity():
    return answer(
        Question(
            model="qwen3-30b-a3b", devices=("h100_sxm",), max_devices=2, concurrency=8, isl=256,
            osl=32,
        ),
        lambda _: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cards(small, step, cache, capacity):
    found = {"plan": small, "step": step, "cache": cache, "capacity": capacity}
    return {name: show(result) for name, result in found.items()}


def terminal(print_to):
    stream = io.StringIO()
    print_to(Console(file=stream, width=400))
    return stream.getvalue()


KINDS = ["plan", "step", "cache", "capacity"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_whole_loads_nothing_and_runs_nothing(cards, kind):
    text = cards[kind]._repr_html_()
    found = Elements(text)  # fails on elements that do not balance
    assert found.open == []
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        links = [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        assert all(link.startswith(("#", "data:")) for link in links), tag
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text) < 200_000


@pytest.mark.parametrize("kind", KINDS)
def test_html_and_text_say_the_same(cards, kind):
    card = cards[kind]
    found, plain = Elements(card._repr_html_()), repr(card)
    rows = [cell for table in card.tables for row in (table.columns, *table.rows) for cell in row]
    assert found.cells == rows
    assert len(rows) > 10
    words = " ".join(found.text).replace("\u00a0", " ")
    for fact in card.facts:
        assert fact.value in words
    for text in (card.headline, *card.lead, *rows):
        assert text in plain
    assert card.headline in words


def test_plan_is_that_of_the_report_without_times_of_the_machine(small, cards):
    table = build_report(small).planner_table
    kept = [i for i, name in enumerate(table.columns) if name not in ("solve time", "outcome")]
    assert cards["plan"].tables[0].rows == tuple(tuple(row[i] for i in kept) for row in table.rows)


def test_step_has_the_calls_that_the_terminal_prints(step, cards):
    printed = {" ".join(line.split()) for line in terminal(
        lambda console: show_step(STEP, step, console)).splitlines()}  # fmt: skip
    rows = {" ".join(" ".join(row).split()) for row in cards["step"].tables[0].rows}
    assert len(rows) > 8
    assert rows <= printed
    assert cards["step"].headline in printed


def test_cache_has_what_the_terminal_prints(cache, cards):
    printed = {" ".join(line.split()) for line in terminal(
        lambda console: show_whatif(cache, {}, console)).splitlines()}  # fmt: skip
    rows = {" ".join(row) for table in cards["cache"].tables for row in table.rows}
    assert rows <= printed


def test_capacity_is_that_of_the_search(capacity, cards):
    best = capacity.best
    assert cards["capacity"].headline.startswith(f"{best.plan.devices} × h100_sxm")
    rates = {row[2] for row in cards["capacity"].tables[0].rows}
    assert f"{best.tokens_per_s_per_device:,.0f}" in rates | set(
        re.findall(r"[\d,]+", cards["capacity"].lead[1])
    )


def test_hostile_names_stay_text(hostile):
    card = show(hostile)
    found = Elements(card._repr_html_())
    assert not {"script", "img", "a"} & {tag for tag, _ in found.elements}
    assert HOSTILE.replace("\x1b", "\ufffd") in "".join(found.cells)
    loose = Shown(HOSTILE, (HOSTILE,), (Fact(HOSTILE, HOSTILE, HOSTILE),),
                  (Table((HOSTILE,), ((HOSTILE,),)),))  # fmt: skip
    assert not {"script", "img"} & {tag for tag, _ in Elements(loose._repr_html_()).elements}


def test_style_stays_inside_the_card():
    plain = re.sub(r"/\*.*?\*/", "", style("notebook", ".moesim"), flags=re.DOTALL)
    assert "--ink: " in plain
    for selectors in re.findall(r"([^{};]+)\{", plain):
        for one in selectors.split(","):
            assert one.strip().startswith((".moesim", "@media"))


def test_other_things_are_refused():
    with pytest.raises(UsageError, match="knows no dict"):
        show({})
