"""Measure how soon the review page answers: from a key until the next frame is painted, with 10,000 made-up pairs.

    python benchmarks/review_page.py FOLDER [--pairs 10000] [--times 40]

The review is made in FOLDER first, unless it is there. Times are taken within the page, in milliseconds, from the event
of a key until a task that runs after the next frame. They hold for a headless Chromium, which shows 60 frames a second.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from reviews_made import copy_page, make_review

# A frame is painted right after the callbacks for it, so that a message posted in such a callback comes after it.
WATCH = """
window.taken = [];
const watch = (event) => {
  const start = performance.now();
  const {port1, port2} = new MessageChannel();
  port1.onmessage = () => window.taken.push(performance.now() - start);
  requestAnimationFrame(() => port2.postMessage(null));
};
for (const kind of ["keydown", "input"]) addEventListener(kind, watch, true);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=40)
    options = parser.parse_args()
    path = options.folder / "index.html"
    if not path.exists():
        make_review(options.folder, options.pairs)
    copy_page(options.folder)  # as it is now
    print(f"{'what':<36}{'times':>6}{'median (ms)':>13}{'worst (ms)':>12}")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(WATCH)
        page.goto(path.as_uri())
        page.wait_for_timeout(1000)
        keys(page, "j, next pair in the grid", ["j"] * options.times)
        keys(page, "x, reject in the grid", ["x"] * options.times)
        page.focus("#text")
        keys(page, "typing in the search", [*"point 12", *["Backspace"] * 8] * (options.times // 16 + 1))
        orders = page.locator("#order option").evaluate_all("all => all.map((option) => option.value)")
        changes(page, "changing the order", "#order", orders * (options.times // len(orders) + 1))
        page.focus("#grid")
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        keys(page, "j, next pair in full", ["j"] * options.times)
        keys(page, "x, reject in full", ["x"] * options.times)
        keys(page, "space, swap", [" "] * options.times)
        browser.close()


def keys(page: Page, what: str, pressed: list[str]) -> None:
    """Press keys one after the other, each after the last was answered."""
    page.evaluate("window.taken = []")
    for key in pressed:
        page.keyboard.press(key)
        page.wait_for_timeout(30)
    told(what, page.evaluate("window.taken"))


def changes(page: Page, what: str, select: str, values: list[str]) -> None:
    page.evaluate("window.taken = []")
    for value in values:
        page.select_option(select, value)
        page.wait_for_timeout(60)
    told(what, page.evaluate("window.taken"))


def told(what: str, taken: Any) -> None:
    print(f"{what:<36}{len(taken):>6}{statistics.median(taken):>13.1f}{max(taken):>12.1f}", flush=True)


if __name__ == "__main__":
    main()
