"""Pages of every study, written once, and a browser that opens them."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from moesim.cli.app import app
from moesim.cli.console import run
from tests.calibrate.serving_table import table

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

COMMANDS = {
    "plan": ["plan", "--time-limit", "2"],
    "capacity": [
        *("capacity", "--model", "qwen3-30b-a3b", "--devices", "h100_sxm", "--max-devices", "4"),
        *("--concurrency", "16", "--isl", "256", "--osl", "32"),
    ],
    "cache": ["whatif", "cache"],
    "rebalancing": ["simulate", "rebalancing", "--redundant", "16", "--policies", "frozen,oracle"],
    "replicas": ["whatif", "replicas", "--planner", "lpt", "--redundant", "0,16"],
    "papers": ["validate", "papers", "--only", "transforms"],
    "serving": ["validate", "serving", "--data", "RUNS"],
}

ONE_FILE = {"rebalancing"}
"""Studies whose ``--out`` is their result alone."""


def write_pages(folder):
    """Path of every study's page by its name."""
    found = {}
    runs = str(table(folder, {}, {"concurrency": "16"}, {"mode": "disagg"}, {"moe_tp_size": "3"}))
    for name, words in COMMANDS.items():
        command = [runs if word == "RUNS" else word for word in words]
        page = folder / name / "report.html"
        where = ("--html", str(page)) if name in ONE_FILE else ("--out", str(page.parent))
        assert run(app, [*command, *where, "--quiet"]) in (0, 6)
        found[name] = next((folder / name).glob("*.html"))
    return found


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("pages are tested in Chromium: apt-get install chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def colours(request):
    return request.param


@pytest.fixture
def opened(browser, pages, colours):
    """Open a page at a width; whatever the console says against it fails the test."""
    contexts, said = [], []

    def open_page(name, width=1280):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=colours, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
