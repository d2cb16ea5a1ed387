"""The review page in a headless Chromium, opened from the disk as a user opens it."""

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import Command
from PIL import Image
from reviews_made import HOSTILE, PAGE, make_review
from small_jobs import NAME, dataset_arguments, field_layer, image_layer, pair, put_json, spec_arguments, spec_of

from curation.pair_selection import read_excluded_pairs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

Page = Any  # playwright's; it may not be installed
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_review(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, review: Path) -> Iterator[Open]:
    """Open a review, or else the shared one. No page may say an error, or ask for what is not a file."""
    context: Any = None
    faults: list[str] = []

    def opened(path: Path | None = None, address: str = "", script: str = "", **options: Any) -> Page:
        nonlocal context
        context = (
            browser.new_context(viewport={"width": 1280, "height": 800}, **options) if context is None else context
        )
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "blob:")) else faults.append(request.url),
        )
        if script:
            page.add_init_script(script)
        page.goto((path or review).as_uri() + address)
        return page

    yield opened
    if context is not None:
        context.close()
    assert faults == []


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def until(page: Page, condition: str) -> None:
    """Wait until a condition in JavaScript holds. The page's policy forbids playwright's own way, which is eval."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.01)


def painted(page: Page) -> None:
    """Wait until the pictures are there, and the next frame after it is drawn."""
    until(page, "[...pictures._kept.values()].every(({state}) => state !== 'loading')")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def stage(page: Page) -> np.ndarray:
    """What is seen on the stage, without its labels and the frame of the focus: (height, width, 3), whole numbers."""
    painted(page)
    shot = page.locator("#stage").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)[30:-4, 4:-4]


def order(page: Page) -> list[str]:
    """The titles of the pictures near the view, in order."""
    painted(page)
    cells = page.locator(".cell").evaluate_all(
        "all => all.map(c => [Number(c.dataset.position), c.querySelector('b').textContent])"
    )
    return [title for _, title in sorted(cells)]


def selected(page: Page) -> str:
    return str(page.locator(".cell[aria-selected=true] b").inner_text())


def text(page: Page, where: str) -> str:
    return str(page.locator(where).inner_text())


def bare(page: Page) -> Page:
    """A pair opened with nothing drawn over its images."""
    press(page, "Enter", "d", "i")
    return page


# The grid


def test_the_worst_pair_is_first_and_what_is_not_known_before_it(open_page: Open) -> None:
    page = open_page()
    numbers = page.locator(".cell .line:first-of-type span").all_inner_texts()
    assert numbers[0] == "not known"
    assert len(numbers) == 12
    assert list(map(float, numbers[1:])) == sorted(map(float, numbers[1:]))
    assert text(page, "#counts") == "12 of 12 pairs shown, 0 rejected"
    worst_last = order(page)[::-1]
    page.select_option("#direction", label="the best")
    assert order(page) == worst_last
    page.select_option("#order", label="pair number")
    page.select_option("#direction", label="the lowest")
    assert order(page) == [f"pair {number}" for number in range(12)]


def test_what_is_high_is_worst_of_some_measures(open_page: Open) -> None:
    page = open_page()
    page.select_option("#order", label="median displacement")
    numbers = [
        float(number.split("\u202f")[0]) for number in page.locator(".cell .line:first-of-type span").all_inner_texts()
    ]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1]


def test_another_field_shows_its_own_numbers(open_page: Open) -> None:
    page = open_page()
    last = page.locator(".cell .line:first-of-type span").all_inner_texts()
    assert page.locator("#field option:checked").inner_text() == "field_1"
    page.select_option("#field", "0")
    assert page.locator(".cell .line:first-of-type span").all_inner_texts() != last


def test_keys_move_the_selection(open_page: Open) -> None:
    page = open_page()
    titles = order(page)
    columns = page.locator(".cell").evaluate_all("all => all.filter(c => c.style.top === '0px').length")
    assert columns == 5
    press(page, "j")
    assert selected(page) == titles[1]
    press(page, "ArrowDown")
    assert selected(page) == titles[1 + columns]
    press(page, "k", "ArrowLeft")
    assert selected(page) == titles[columns - 1]
    press(page, "End")
    assert selected(page) == titles[-1]
    assert page.locator(".cell[aria-selected=true]").evaluate("c => c.getBoundingClientRect().bottom <= innerHeight")
    press(page, "j", "Home")
    assert selected(page) == titles[0]
    assert page.get_attribute("#grid", "aria-activedescendant") == "cell-0"


# Filters


def test_notes_tags_and_states_filter(open_page: Open) -> None:
    page = open_page()
    press(page, "/")
    page.keyboard.type("POINT 1x")
    assert text(page, "#counts").startswith("0 of 12")
    assert page.locator("#nothing").is_visible()
    press(page, "Backspace", "Enter")
    assert sorted(order(page)) == ["pair 1", "pair 10", "pair 11"]
    page.click("#clear")
    page.select_option("#tag", label="crack")
    assert sorted(order(page)) == ["pair 2", "pair 9"]
    page.select_option("#tag", label="any")
    page.select_option("#state", label="the aligner failed")
    assert order(page) == ["pair 5"]
    assert text(page, ".cell .marks") == "the aligner failed"
    page.select_option("#state", label="nothing special")
    assert len(order(page)) == 11


def test_decisions_filter_and_the_next_pair_takes_the_place_of_one_that_goes(open_page: Open) -> None:
    page = open_page()
    titles = order(page)
    page.select_option("#decision", "kept")
    page.focus("#grid")
    press(page, "j", "x")
    assert titles[1] not in order(page)
    assert selected(page) == order(page)[1]
    page.select_option("#decision", "rejected")
    assert titles[1] in order(page)
    assert len(order(page)) == 2


def test_a_range_is_chosen_with_the_pointer(open_page: Open) -> None:
    page = open_page()
    bars = page.locator(".bars").first
    box = bars.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20, steps=4)
    page.mouse.up()
    painted(page)
    low, high = (float(page.get_by_label(f"correlation after, {end}").input_value()) for end in ("from", "to"))
    numbers = list(map(float, page.locator(".cell .line:first-of-type span").all_inner_texts()))
    assert 0 < len(numbers) < 11
    assert low <= min(numbers) <= max(numbers) <= high
    page.mouse.click(box["x"] + 5, box["y"] + 20)
    painted(page)
    assert text(page, "#counts").startswith("12 of 12")


def test_a_range_is_chosen_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("section, from").focus()
    page.keyboard.type("7")
    press(page, "Tab")
    page.keyboard.type("8")
    painted(page)
    assert sorted(order(page)) == ["pair 4", "pair 6", "pair 7", "pair 9"]
    press(page, "Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "section: any value"
    press(page, "Enter")
    painted(page)
    assert text(page, "#counts").startswith("12 of 12")


def test_arrows_change_a_range_from_the_end_of_the_histogram(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("section, to").focus()
    press(page, "ArrowDown")
    painted(page)
    assert page.get_by_label("section, to").input_value() == "9"
    assert "pair 10" not in order(page)
    assert len(order(page)) == 11


def test_a_range_hides_the_pairs_whose_number_is_not_known(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("correlation after, from").fill("-1")
    painted(page)
    assert len(order(page)) == 11
    assert "pair 4" not in order(page)


# One pair


def test_a_pair_opens_and_closes_and_gives_the_focus_back(open_page: Open) -> None:
    page = open_page()
    titles = order(page)
    press(page, "j", "Enter")
    assert text(page, "#which") == f"{titles[1].capitalize()} (2 of 12)"
    assert page.evaluate("document.activeElement.id") == "stage"
    press(page, "j", "k", "k", "k")
    assert text(page, "#said") == "This is the first pair."
    press(page, "Escape")
    assert selected(page) == titles[0]
    assert page.evaluate("document.activeElement.id") == "grid"
    page.locator(".cell").nth(2).click()
    assert text(page, "#which") == f"{titles[2].capitalize()} (3 of 12)"
    page.go_back()
    assert page.locator("#grid").is_visible()


def test_space_swaps_the_images(open_page: Open) -> None:
    page = bare(open_page())
    source = stage(page)
    press(page, " ")
    assert text(page, "#said") == "This is the target."
    target = stage(page)
    assert np.abs(target - source).mean() > 2
    press(page, " ")
    assert (stage(page) == source).all()


def test_it_blinks_by_itself_until_it_is_told_to_stop(open_page: Open) -> None:
    page = bare(open_page())
    press(page, "b")
    until(page, "byId('stage').getAttribute('aria-label').endsWith(': target')")
    until(page, "!byId('stage').getAttribute('aria-label').endsWith(': target')")
    press(page, "b")
    assert not page.is_checked("#auto")


def test_nothing_blinks_by_itself_where_motion_is_to_be_reduced(open_page: Open) -> None:
    page = bare(open_page(reduced_motion="reduce"))
    press(page, "b")
    assert not page.is_checked("#auto")
    assert "little motion" in text(page, "#said")
    assert page.evaluate("document.getAnimations().length") == 0


def test_side_by_side_shows_both_and_they_move_together(open_page: Open) -> None:
    page = bare(open_page())
    press(page, "2")
    both = stage(page)
    assert np.abs(both[:, : both.shape[1] // 2 - 10] - both[:, -(both.shape[1] // 2 - 10) :]).mean() > 2
    # Two panes of the same image say the same wherever they are moved.
    page.evaluate(
        "const of = pictures.of.bind(pictures); "
        "pictures.of = ({url}, then) => of({url: url.replace(/pulled_1|target/, 'source')}, then); null"
    )
    page.mouse.move(*middle(page, 0.25))
    page.mouse.wheel(0, -300)
    press(page, "ArrowLeft", "ArrowUp")
    moved = stage(page)
    half = page.locator("#stage").bounding_box()["width"] / 2
    left, right = moved[:, : int(half) - 10], moved[:, int(half) + 1 : 2 * int(half) - 9]
    assert np.abs(left - right).mean() < 1
    assert np.abs(moved - both).mean() > 5


def middle(page: Page, part: float = 0.5) -> tuple[float, float]:
    box = page.locator("#stage").bounding_box()
    return box["x"] + box["width"] * part, box["y"] + box["height"] / 2


def test_two_images_lie_so_that_they_are_large(open_page: Open) -> None:
    page = open_page()
    panes = "panesOf('side', 400, {}, [{}, {}]).map(({{left, top}}) => [left > 0, top > 0])"
    side, above = [[False, False], [True, False]], [[False, False], [False, True]]
    assert page.evaluate(panes.format(300, 192, 192)) == side
    assert page.evaluate(panes.format(300, 400, 100)) == above
    assert page.evaluate(panes.format(900, 192, 192)) == above


def test_the_overlay_is_magenta_and_green(open_page: Open) -> None:
    page = open_page(address="#pair=1")
    source = stage(page)
    press(page, " ")
    target = stage(page)
    press(page, "3")
    overlay = stage(page)
    for colour, image in enumerate((source, target, source)):
        assert np.abs(overlay - image)[:, 300:600, colour].max() <= 1  # the columns within the image


def test_the_wipe_follows_the_pointer_and_the_keyboard(open_page: Open) -> None:
    page = bare(open_page())
    source = stage(page)
    press(page, " ")
    target = stage(page)
    press(page, "4")
    wiped = stage(page)
    at = wiped.shape[1] // 2
    assert (wiped[:, : at - 6] == source[:, : at - 6]).all()
    assert (wiped[:, at + 6 :] == target[:, at + 6 :]).all()
    page.mouse.move(*middle(page))
    page.mouse.down()
    page.mouse.move(*middle(page, 0.3), steps=3)
    page.mouse.up()
    painted(page)
    assert page.input_value("#wipe") == "30"
    page.focus("#wipe")
    press(page, "End")
    page.focus("#stage")
    assert (stage(page)[:, :-10] == source[:, :-10]).all()


def test_zoom_and_pan(open_page: Open) -> None:
    page = bare(open_page())
    fitted, percent = stage(page), text(page, "#zoom")
    press(page, "+", "+")
    near = stage(page)
    assert text(page, "#zoom") != percent
    page.mouse.move(*middle(page))
    page.mouse.down()
    page.mouse.move(*middle(page, 0.4), steps=3)
    page.mouse.up()
    assert np.abs(stage(page) - near).mean() > 2
    press(page, "0")
    assert (stage(page) == fitted).all()
    page.click("#zoom-out")
    painted(page)
    assert text(page, "#zoom") != percent
    assert page.evaluate("document.activeElement.id") == "stage"  # the space bar swaps again


def test_the_wheel_zooms_about_the_pointer(open_page: Open) -> None:
    page = bare(open_page())
    painted(page)
    x, y = middle(page, 0.6)
    before = page.evaluate(UNDER_POINTER, [x, y])
    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    painted(page)
    after = page.evaluate(UNDER_POINTER, [x, y])
    assert after == pytest.approx(before, abs=0.2)


UNDER_POINTER = """([x, y]) => {
  const box = byId("stage").getBoundingClientRect();
  const {view} = app.viewer;
  return [view.x + (x - box.left - box.width / 2) / view.zoom, view.y + (y - box.top - box.height / 2) / view.zoom];
}"""


def test_two_fingers_zoom(open_page: Open) -> None:
    page = open_page(has_touch=True)
    press(page, "Enter")
    painted(page)
    percent = int(text(page, "#zoom").split()[0])
    x, y = middle(page)
    touch = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 40)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        painted(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    painted(page)
    assert int(text(page, "#zoom").split()[0]) == pytest.approx(2 * percent, rel=0.05)


@pytest.mark.parametrize("key", ["f", "a", "c"])
def test_layers_are_drawn_and_explained(open_page: Open, key: str) -> None:
    page = bare(open_page())
    plain = stage(page)
    legends = text(page, "#legends")
    press(page, key)
    assert np.abs(stage(page) - plain).mean() > 2
    assert "field_1" in text(page, "#legends")
    press(page, key)
    assert (stage(page) == plain).all()
    assert text(page, "#legends") == legends


def test_folds_and_masked_pixels_are_marked_until_switched_off(open_page: Open) -> None:
    page = open_page(address="#pair=0")
    marked = stage(page)
    assert (marked == (74, 99, 168)).all(axis=2).sum() > 1000
    press(page, "i")
    unmasked = stage(page)
    assert not (unmasked == (74, 99, 168)).all(axis=2).any()
    press(page, "d")
    assert np.abs(stage(page) - unmasked).sum() > 0


def test_the_source_is_shown_as_it_is_or_through_any_field(open_page: Open) -> None:
    page = bare(open_page())
    assert page.locator("#through option:checked").inner_text() == "through field_1"
    shown = [stage(page)]
    for _ in range(2):
        press(page, "v")
        shown.append(stage(page))
    assert page.locator("#through option:checked").inner_text() == "through field_0_x144_y176_z5_MIP3"
    page.select_option("#through", "-1")
    assert (stage(page) == shown[1]).all()
    assert all(np.abs(one - other).mean() > 0.1 for one, other in pairwise(shown))


def test_what_is_known_of_a_pair_stands_beside_it(open_page: Open) -> None:
    page = open_page(address="#pair=2")
    page.wait_for_selector("#rows td")
    assert "translation" in text(page, "#rows").lower()
    assert page.locator("#numbers thead th").all_inner_texts() == ["field_0_x144_y176_z5_MIP3", "field_1"]
    assert page.locator("#numbers tbody tr").count() == 7
    assert text(page, "#tags") == "crack"
    assert text(page, "#note").startswith("point 2\n\nA second paragraph")
    link = page.get_by_role("link", name="Open in Neuroglancer")
    assert link.get_attribute("href").startswith("https://neuroglancer-demo")
    press(page, "k")
    page.goto(page.url.split("#")[0] + "#pair=3")
    until(page, "byId('link').textContent === 'There is no link to Neuroglancer: the volume cannot be reached.'")


def test_the_rank_of_the_worst_pair_is_1(open_page: Open) -> None:
    page = open_page()
    press(page, "j", "Enter")  # the first one's number is not known
    assert page.locator("#numbers tbody tr").first.locator("td").last.inner_text().endswith(" #1")
    press(page, "k")
    assert page.locator("#numbers tbody tr").first.locator("td").last.inner_text() == "not known"


# Deciding


def test_a_rejected_pair_takes_its_reverse_along_and_undo_gives_both_back(open_page: Open) -> None:
    page = open_page(address="#pair=6")
    press(page, "x")
    assert text(page, "#said") == "Pair 6 is rejected; also rejected: pair 7, the reverse."
    assert text(page, "#counts").endswith("2 rejected")
    assert "pair 7" in text(page, "#mark")
    press(page, "Escape")
    assert page.locator(".cell.rejected b").all_inner_texts() in (["pair 6", "pair 7"], ["pair 7", "pair 6"])
    assert page.locator(".cell.rejected strong").first.inner_text() == "✕ rejected"
    press(page, "u")
    assert text(page, "#said") == "Pair 6 is kept again; also kept again: pair 7, the reverse."
    assert text(page, "#counts").endswith("0 rejected")
    press(page, "u")
    assert text(page, "#said") == "There is nothing to undo."


def test_undo_goes_back_decision_by_decision_and_to_the_pair_it_is_about(open_page: Open) -> None:
    page = open_page()
    titles = order(page)
    press(page, "x", "End", "t")
    page.keyboard.type("blurred")
    press(page, "Enter", "Home", "u")
    assert selected(page) == titles[-1]
    assert page.locator(".cell .marks", has_text="blurred").count() == 0
    press(page, "u")
    assert selected(page) == titles[0]
    assert page.locator(".cell.rejected").count() == 0


def test_decisions_and_the_open_pair_outlive_a_reload(open_page: Open) -> None:
    page = open_page()
    page.select_option("#decision", "kept")
    page.get_by_label("section, from").fill("6")
    page.focus("#grid")
    press(page, "Enter", "j", "x")
    which, counts = text(page, "#which").split(" (")[0], text(page, "#counts")
    assert counts.endswith("2 rejected")
    page.reload()
    assert text(page, "#counts") == counts
    assert text(page, "#which") == f"{which} (not among those shown)"
    press(page, "j", "Escape")
    assert page.input_value("#decision") == "kept"
    assert page.get_by_label("section, from").input_value() == "6"
    assert which.lower() not in order(page)


def test_decisions_hold_in_a_later_review_whose_pairs_stand_elsewhere(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    page.select_option("#order", label="pair number")
    page.focus("#grid")
    press(page, "Home", "x")
    columns = {
        "start": [[[9, 9, 9], [9, 9, 8]], [[144, 176, 4], [144, 176, 5]], *[[[k, 0, 1], [k, 0, 0]] for k in range(4)]]
    }
    later = open_page(make_review(tmp_path, 6, columns=columns))
    assert later.locator(".cell.rejected b").all_inner_texts() == ["pair 1"]


def saved(page: Page) -> Any:
    with page.expect_download() as download:
        press(page, "s")
    assert download.value.suggested_filename == "rejected.json"
    return json.loads(Path(download.value.path()).read_text())


def test_the_file_holds_what_was_rejected_and_tagged(open_page: Open, tmp_path: Path) -> None:
    page = open_page(address="#pair=2")
    press(page, "x", "t")
    page.keyboard.type("fold, blurred")
    press(page, "Enter")
    page.goto(page.url.split("#")[0] + "#pair=9")
    until(page, "byId('which').textContent.startsWith('Pair 9')")
    press(page, "t")
    page.get_by_role("checkbox", name="fold", exact=True).check()
    page.get_by_role("button", name="Keep these tags").click()
    source, target = ({"x_start": 208, "y_start": 176, "z_start": z} for z in (6, 5))
    file = saved(page)
    assert file["from"] == "x144_y176_z5_MIP3.h5"
    assert file["pairs"] == [
        {"src": source, "tgt": target, "pair": 2, "tags": ["fold", "blurred"]},
        {"src": target, "tgt": source, "pair": 3, "tags": []},
    ]
    assert [(entry["pair"], entry["tags"]) for entry in file["tagged"]] == [(9, ["fold"])]
    excluded = read_excluded_pairs(put_json(tmp_path / "rejected.json", file))
    assert excluded.tolist() == [[[208, 176, 6], [208, 176, 5]], [[208, 176, 5], [208, 176, 6]]]


def test_pairs_without_a_known_start_go_by_their_place(open_page: Open, tmp_path: Path) -> None:
    page = open_page(make_review(tmp_path, 4, columns={"start": None}))
    page.select_option("#order", label="pair number")
    page.focus("#grid")
    press(page, "Home", "j", "x")
    assert text(page, "#said") == "Pair 1 is rejected."
    assert saved(page)["pairs"] == [{"pair": 1, "tags": []}]
    assert "by their place" in text(page, "#said")
    assert "by their place" in page.get_attribute("#save", "title")


NO_STORAGE = (
    "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }});"
)


def test_a_browser_that_keeps_nothing_is_told_of(open_page: Open) -> None:
    page = open_page(script=NO_STORAGE)
    assert "does not keep your decisions" in text(page, "#warning")
    press(page, "x")
    assert text(page, "#counts").endswith("2 rejected")
    assert len(saved(page)["pairs"]) == 2


@pytest.mark.parametrize("kept", ["{", "[]", "3", '{"rejected": 5, "tags": [1]}', '{"tags": {"a": 7}}'])
def test_a_damaged_store_is_no_end(open_page: Open, kept: str) -> None:
    page = open_page(script=f"localStorage.setItem('curation-review:3f2a', {json.dumps(kept)})")
    press(page, "x")
    assert text(page, "#counts").endswith("2 rejected")


def test_another_window_is_told_of_decisions(open_page: Open) -> None:
    one, other = open_page(), open_page()
    press(one, "x")
    until(other, "byId('counts').textContent.endsWith('2 rejected')")


# For everybody


def test_dialogs_keep_the_focus_and_give_it_back(open_page: Open) -> None:
    page = open_page()
    press(page, "Enter")
    for key, dialog in (("?", "help-dialog"), ("t", "tag-dialog")):
        press(page, key)
        for _ in range(6):
            within = f"[byId('{dialog}'), document.body].some((part) => part === document.activeElement"
            assert page.evaluate(f"{within} || (part.id && part.contains(document.activeElement)))")
            press(page, "Tab")
        press(page, "Escape")
        assert page.evaluate("document.activeElement.id") == "stage"
        assert page.locator("#one").is_visible()  # this Escape was the dialog's alone


def test_every_control_has_a_name_and_is_reached_by_tab(open_page: Open) -> None:
    page = open_page()
    for where in ("#all", "#one"):
        nameless = page.evaluate(NAMELESS)
        assert nameless == []
        wanted = page.evaluate(FOCUSABLE)
        assert len(wanted) > 15
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(len(wanted) + 8):
            press(page, "Tab")
            reached.add(page.evaluate("document.activeElement.dataset.test"))
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring != "none" or page.evaluate("['grid', ''].includes(document.activeElement.id)")
        assert set(wanted) <= reached, where
        page.focus("#grid") if where == "#all" else None
        press(page, "Enter")


FOCUSABLE = """() => {
  const all = [...document.querySelectorAll("button, select, input, [tabindex='0'], a[href]")];
  // Of radio buttons, Tab reaches the chosen one, and arrows the others.
  const live = all.filter((e) => e.checkVisibility() && !e.disabled && (e.type !== "radio" || e.checked));
  return live.map((e, i) => (e.dataset.test = `${e.tagName} ${e.id} ${i}`));
}"""
NAMELESS = """() => {
  const all = [...document.querySelectorAll("button, select, input, [tabindex='0'], dialog, canvas, img")];
  const attributes = ["aria-label", "aria-labelledby", "aria-hidden"];
  const named = (e) => e.labels?.length || e.textContent.trim() || attributes.some((name) => e.getAttribute(name));
  return all.filter((e) => !named(e) && e.getAttribute("alt") !== "").map((e) => e.outerHTML);
}"""


def test_letters_typed_into_a_field_are_no_keys(open_page: Open) -> None:
    page = open_page()
    press(page, "/")
    page.keyboard.type("xjst?")
    assert page.input_value("#text") == "xjst?"
    assert text(page, "#counts").endswith("0 rejected")
    assert page.locator("dialog[open]").count() == 0


def test_a_list_gives_the_keys_back_to_who_chose_with_the_pointer(open_page: Open) -> None:
    page = open_page()
    page.focus("#order")
    press(page, "ArrowDown")
    assert page.evaluate("document.activeElement.id") == "order"
    page.click("#order")  # opens the list, which the browser draws outside of the page
    press(page, "Escape")
    page.locator("#order").dispatch_event("pointerdown")
    page.select_option("#order", "folded")
    assert page.evaluate("document.activeElement.id") == "grid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_400_pixels_are_wide_enough(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    painted(page)
    fits = "[document.documentElement, byId('one'), byId('grid')].every((part) => part.scrollWidth <= 400)"
    assert page.evaluate(fits)
    page.click("#show-filters")
    assert page.locator("#text").is_visible()
    assert page.evaluate(fits)
    page.click("#show-filters")
    page.focus("#grid")
    press(page, "Enter", "f", "c", "4")
    painted(page)
    assert page.evaluate(fits)
    assert page.locator("#stage").bounding_box()["width"] > 380
    press(page, "t")
    assert page.locator("#tag-dialog").bounding_box()["width"] < 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    """A contrast of 4.5 at least, as the accessibility guidelines ask for."""
    page = open_page(color_scheme=scheme)
    colours = page.evaluate(COLOURS)
    for front, back in (("text", "page"), ("text", "panel"), ("quiet", "panel"), ("quiet", "page"), ("accent", "panel"),
                        ("on-accent", "accent"), ("bad", "panel"), ("bad", "bad-back")):  # fmt: skip
        lights = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, (front, back)
    assert (luminance(colours["page"]) < 0.1) == (scheme == "dark")


COLOURS = """() => Object.fromEntries(
  ["text", "page", "panel", "quiet", "accent", "on-accent", "bad", "bad-back"].map((name) => {
    const probe = element("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    return [name, getComputedStyle(probe).color.match(/\\d+/g).map(Number)];
  }))"""


def luminance(colour: list[int]) -> float:
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# What may go wrong


def test_a_hostile_note_is_text(open_page: Open) -> None:
    page = open_page(address="#pair=3")
    until(page, "byId('note').textContent.length > 50_000")
    assert text(page, "#note").startswith(HOSTILE[:40])
    assert page.title() == "x144_y176_z5_MIP3.h5: review"
    assert page.locator("#note *").count() == 0
    assert page.locator("#note").bounding_box()["height"] <= 221
    press(page, "t")
    page.keyboard.type("<img src=x onerror=alert(1)>")
    press(page, "Enter")
    assert text(page, "#tags") == "<img src=x onerror=alert(1)>"


def test_a_link_that_is_no_address_of_the_web_is_not_one(open_page: Open) -> None:
    page = open_page()
    detail = {"rows": [], "note": "", "link": "javascript:alert(1)", "before": None}
    detail |= {"invalid": [False, False], "fields": [None, None]}
    page.evaluate(f"details._kept.set(0, Promise.resolve({json.dumps(detail)})); null")
    page.evaluate("location.hash = '#pair=0'")
    until(page, "byId('link').textContent.startsWith('There is no link')")
    assert page.locator("#link a").count() == 0


def test_no_code_runs_but_the_files_of_the_page(open_page: Open, review: Path) -> None:
    page = open_page(review)
    policy = page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    code = "".join(path.read_text() for path in PAGE.glob("*.js"))
    assert not [word for word in ("innerHTML", "insertAdjacentHTML", "eval(", "fetch(", "getImageData") if word in code]


def test_a_review_without_fields_shows_the_images(open_page: Open, tmp_path: Path) -> None:
    page = open_page(make_review(tmp_path, 4, fields=()))
    assert page.locator(".cell .line:first-of-type span").first.inner_text() != "not known"
    assert page.locator("#order option:checked").inner_text() == "correlation before"
    bare(page)
    press(page, "f", "a", "c")
    assert np.ptp(stage(page)) > 100
    assert "before any field" in text(page, "#legends")
    assert page.locator("#layer-colours").is_hidden()


def test_a_pair_without_a_field_says_so(browser: Any, tmp_path: Path) -> None:
    path = make_review(tmp_path, 2)
    pair = tmp_path / "pairs" / "000001"
    for name in ("pulled_1.jpg", "field_1.jpg"):
        (pair / name).unlink()
    detail = {
        "rows": [],
        "note": "",
        "link": None,
        "no_link": "",
        "invalid": [False, False],
        "before": {"nx": 0, "ny": 0, "values": []},
    }
    (pair / "detail.js").write_text(f"review.detail(1, {json.dumps({**detail, 'fields': [None, None]})})")
    page = browser.new_page()
    page.goto(path.as_uri() + "#pair=1")
    until(page, "byId('broken').textContent === 'This pair has no field in field_1.'")
    assert page.locator("#broken").is_visible()
    page.close()


def test_an_unfinished_review_says_so(open_page: Open, tmp_path: Path) -> None:
    page = open_page(make_review(tmp_path, 2, unfinished=1234))
    assert text(page, "#counts") == "2 of 2 pairs shown, 0 rejected, 1,234 not made yet"


def test_files_that_are_missing_are_named(browser: Any, tmp_path: Path) -> None:
    path = make_review(tmp_path, 2)
    (tmp_path / "pairs" / "000000" / "detail.js").unlink()
    (tmp_path / "pairs" / "000001" / "target.jpg").unlink()
    page = browser.new_page()
    page.goto(path.as_uri() + "#pair=0")
    until(page, "byId('link').textContent.includes('pairs/000000/detail.js')")
    page.goto(path.as_uri() + "#pair=1")
    until(page, "byId('broken').textContent.includes('pairs/000001/target.jpg')")
    (tmp_path / "data.js").unlink()
    page.goto("about:blank")
    page.goto(path.as_uri())
    assert "data.js" in text(page, "#warning")
    page.close()


def test_an_address_of_nonsense_is_no_end(open_page: Open) -> None:
    page = open_page(
        address="#pair=99&field=7&order=nothing&decision=maybe&range.section=a..b&range.valid=&tag=%3Cb%3E"
    )
    assert text(page, "#counts").startswith("0 of 12")  # there is no such tag
    page.click("#clear-too")
    assert len(order(page)) == 12


def test_of_ten_thousand_pairs_only_those_near_the_view_are_made(open_page: Open, tmp_path: Path) -> None:
    page = open_page(make_review(tmp_path, 10_000, whole=False))
    assert text(page, "#counts").startswith("10,000 of 10,000")
    assert page.locator(".cell").count() < 60
    press(page, "End")
    painted(page)
    assert page.locator(".cell[aria-selected=true]").get_attribute("aria-posinset") == "10000"
    assert page.locator(".cell").count() < 60
    page.locator("#grid").evaluate("grid => grid.scrollTop = 100_000")
    until(page, "document.querySelectorAll('.cell').length && !byId('cell-9999')")
    assert page.locator(".cell").count() < 60


def test_a_frame_about_a_fold_ends_where_the_image_does(open_page: Open) -> None:
    boxes = open_page().evaluate("""() => {
        const boxes = [];
        const context = {setLineDash() {}, strokeRect: (...box) => boxes.push(box)};
        const frame = {context, zoom: 10, size: [40, 5], x: (x) => 10 * x, y: (y) => 10 * y};
        drawFolds(frame, [[0, 0], [1, 0]], 32);
        return boxes;
    }""")
    assert boxes[::2] == [[1, 1, 318, 48], [321, 1, 78, 48]]


# The loop


def test_what_is_rejected_is_left_out_of_the_dataset(open_page: Open, command: Command, tmp_path: Path) -> None:
    """From a dataset to its review, to the pairs that somebody rejects, to the dataset without just these."""
    pairs = [pair(0, 0, 5), pair(16, 32, 4), pair(0, 0, 4, 5), pair(64, 64, 3)]  # the third is the first's reverse
    spec = spec_of(image_layer(tmp_path), field_layer(tmp_path), pairs)
    path, out = put_json(tmp_path / "spec.json", spec), tmp_path / "out"
    assert command("make_dataset.py", *dataset_arguments(path, out)).code == 0
    with h5py.File(out / NAME) as file:
        before, starts = file["main"][:], file["start"][:]
    fields = ["--field_path", out / f"field_0_{NAME}"]
    review = tmp_path / "review"
    made = command("review_dataset.py", "--image_path", out / NAME, *fields, "--dst_path", review, "--parallel", 1)
    assert made.code == 0, made.stderr
    page = open_page(review / "index.html", "#pair=0")
    until(page, "byId('broken').hidden && byId('rows').textContent.includes('0, 0, 5')")
    bare(page)
    assert np.ptp(stage(page)) > 100  # there is something to see
    press(page, "x")
    rejected = put_json(tmp_path / "rejected.json", saved(page))
    arguments = dataset_arguments(path, out, "--exclude", rejected, "--update")
    done = command("make_dataset.py", *arguments)
    assert done.code == 0, done.stderr
    assert "excluded         2 pairs" in done.stdout
    with h5py.File(out / NAME) as file:
        np.testing.assert_array_equal(file["pair"][:], [1, 3])
        np.testing.assert_array_equal(file["main"][:], before[[1, 3]])
    template = {key: value for key, value in spec.items() if key != "pairs"} | {"pairs": []}
    put_json(tmp_path / "template.json", template)
    points = [",".join(map(str, start)) for start in starts[[0, 1, 3], 0].tolist()]
    (tmp_path / "points.csv").write_text("x,y,z\n" + "\n".join(points))
    kept = command("create_spec.py", *spec_arguments(tmp_path, "--exclude", rejected, "--update"))
    assert kept.code == 0, kept.stderr
    left = json.loads((tmp_path / "spec.json").read_text())["pairs"]
    assert [each["src"]["z_start"] for each in left] == [4, 3]


def test_what_an_earlier_review_rejected_stays_left_out(open_page: Open, command: Command, tmp_path: Path) -> None:
    pairs = [pair(0, 0, 5), pair(16, 32, 4), pair(0, 0, 4, 5), pair(64, 64, 3)]
    path = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), pairs))
    out, review = tmp_path / "out", tmp_path / "review"
    assert command("make_dataset.py", *dataset_arguments(path, out)).code == 0
    left = []
    for _ in range(2):
        arguments = ["--image_path", out / NAME, "--dst_path", review, "--parallel", 1, "--overwrite"]
        assert command("review_dataset.py", *arguments).code == 0
        page = open_page(review / "index.html", "#pair=0")
        press(page, "x")
        rejected = put_json(tmp_path / "rejected.json", saved(page))
        done = command("make_dataset.py", *dataset_arguments(path, out, "--exclude", rejected, "--update"))
        assert done.code == 0, done.stderr
        with h5py.File(out / NAME) as file:
            left.append(file["pair"][:].tolist())
    assert left == [[1, 3], [3]]
    assert text(page, "#said") == (
        "2 rejected pairs are in rejected.json. This counts 1 from an earlier review, which this dataset does not hold."
    )
