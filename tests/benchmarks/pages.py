"""How large the pages are, and how soon they are drawn in Chromium.

    python -m tests.benchmarks.pages [--json]

Every kind of page is written once, the plan also for a model of 58 layers with 256 experts on 64
devices, and opened from disk; seconds count from the start of the navigation until the last picture
that moves is drawn. The median of five.

Goals: 3 MB, one second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright

from moesim.cli.app import app
from moesim.cli.console import run
from tests.pages.conftest import ARGUMENTS, CHROMIUM, write_pages

GOAL_BYTES, GOAL_S = 3_000_000, 1.0
TIMES = 5
LARGE = {
    "trace": "trace synth --like deepseek-v3 --tokens 4096 --out {0}/trace",
    "plan": "plan {0}/trace --model deepseek-v3 --cluster 8x8xh200_sxm --redundant 64 "
    "--planner lpt-swap --export none --out {0}/large",
}


def main() -> None:
    """Print bytes and seconds of every page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    if CHROMIUM is None:
        raise SystemExit("no Chromium: apt-get install chromium, or set CHROMIUM")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        pages = _write(Path(name))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for kind, path in pages.items():
            drawn_s = median(_drawn_s(browser, path) for _ in range(TIMES))
            found[kind] = {"bytes": path.stat().st_size, "drawn_s": drawn_s}
        browser.close()
    missed = [
        kind for kind, one in found.items() if one["bytes"] > GOAL_BYTES or one["drawn_s"] > GOAL_S
    ]
    if as_json:
        print(json.dumps({"pages": found, "missed": missed}))
    else:
        for kind, one in found.items():
            print(f"{kind:<14}{one['bytes'] / 1e6:>7.2f} MB{1e3 * one['drawn_s']:>8.0f} ms")
        print(f"goals 3 MB and 1 s: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    sys.exit(6 if missed else 0)


def _write(folder: Path) -> dict[str, Path]:
    """Path of every page."""
    with redirect_stdout(StringIO()):
        pages = write_pages(folder)
        for command in LARGE.values():
            if code := run(app, [*command.format(folder).split(), "--quiet"]):
                raise SystemExit(f"moesim {command}: exit code {code}")
    return pages | {"plan, large": folder / "large" / "report.html"}


def _drawn_s(browser: Browser, path: Path) -> float:
    """Seconds from the start of the navigation until every explorer has its picture."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    drawn_ms = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("[data-explore]")];
          if (!all.every((one) => one.querySelector("svg, table"))) return NaN;
          document.body.getBoundingClientRect();
          return performance.now();
        }"""
    )
    context.close()
    return float(drawn_ms) / 1e3


if __name__ == "__main__":
    main()
