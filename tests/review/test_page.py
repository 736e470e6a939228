"""The page of a review in headless Chromium."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading

import cv2
import numpy as np
import pandas as pd
import pytest
from review_support import TOKEN, serving, write_annotations
from support import ROOT, chromium, find_barriers

from microplastics.review import Review, server
from microplastics.utils.errors import UserError


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


class Page:
    """A tab with the page, and its keys."""

    def __init__(self, browser, address):
        self.tab = browser.new_page(viewport={"width": 1280, "height": 800})
        self.asked, self.problems = [], []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.goto(address)
        self.until("state.particles.size > 0")

    def until(self, condition):
        for _ in range(200):
            if self.tab.evaluate(condition):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"{condition} does not become true: {self.tab.inner_text('body')}")

    def press(self, *keys):
        """Press keys, one after another's answer has come."""
        for key in keys:
            self.tab.keyboard.press(key)
            self.settle()

    def settle(self):
        self.tab.evaluate("queue")

    def particles(self):
        return {each["id"]: each for each in self.tab.evaluate("[...state.particles.values()]")}

    def of(self, id_):
        return self.particles()[id_]

    def place(self, x, y):
        """Where a point of the image is in the window."""
        at = self.tab.evaluate(f"picture.map.latLngToContainerPoint([{-y}, {x}])")
        box = self.tab.locator("#picture").bounding_box()
        return at["x"] + box["x"], at["y"] + box["y"]

    def drag(self, *points):
        """Move the mouse with its button held along points x, y of the image."""
        for number, point in enumerate(points):
            self.tab.mouse.move(*self.place(*point), steps=4)
            if number == 0:
                self.tab.mouse.down()
        self.tab.mouse.up()
        self.settle()


@pytest.fixture
def stack():
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def start(annotations, tmp_path, browser):
    """Starts ``microplastics review`` as a process, and opens its page."""
    with contextlib.ExitStack() as stack:

        def started():
            command = [sys.executable, "-m", "microplastics", "review", str(annotations)]
            command += ["--images", str(annotations.parent / "images"), "--um-per-px", "2.0"]
            command += ["--output", str(tmp_path / "out"), "--no-browser", "--reviewer", "ada"]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            lines = iter(process.stdout.readline, "")
            address = next(filter(None, (re.search(r"http://\S+", line) for line in lines)))[0]
            return Page(browser, address), process

        yield started


@pytest.fixture
def show(browser):
    """Opens the page of a review of this process."""
    with contextlib.ExitStack() as stack:

        def shown(review, **how):
            client = stack.enter_context(serving(review, **how))
            return Page(browser, f"http://127.0.0.1:{client.port}/{TOKEN}/")

        yield shown


def circle(x, y, radius):
    turns = np.linspace(0, 2 * np.pi, 25)
    return [(x + radius * np.cos(turn), y + radius * np.sin(turn)) for turn in turns]


@pytest.mark.slow
def test_a_review_from_beginning_to_table(start, annotations, tmp_path, cli):
    page, process = start()
    # The most uncertain first: score 0.4 of particle 2.
    assert page.tab.evaluate("state.selected") == 2
    page.press("r")
    assert page.of(2)["state"] == "rejected" and page.tab.evaluate("state.selected") == 3
    page.press("2", "a")
    assert (page.of(3)["class"], page.of(3)["state"]) == ("Film", "accepted")
    assert page.of(1)["state"] == "accepted"
    assert "D draws it" in page.tab.inner_text("#hint")

    page.press("d", "1")
    page.drag(*circle(30, 40, 8))
    drawn = page.of(4)
    assert (drawn["class"], drawn["origin"]) == ("Fiber", "drawn")
    assert drawn["area"] == pytest.approx(4 * np.pi * 64, rel=0.05)  # µm²
    page.press("s")
    page.drag((20, 40), (40, 40))
    pieces = set(page.particles()) - {1, 2, 3}
    assert len(pieces) == 2
    assert sum(page.of(id_)["area"] for id_ in pieces) == drawn["area"]
    page.press("v", "k", "v", "Escape")
    for id_ in pieces:
        page.tab.evaluate(f"select({id_})")
        page.press("v")
    page.press("m")
    (merged,) = set(page.particles()) - {1, 2, 3}
    assert page.of(merged)["area"] == drawn["area"]

    page.tab.evaluate("select(1)")
    page.tab.keyboard.press("e")
    page.tab.wait_for_selector(".handle")
    corner = page.tab.locator(".handle").first.bounding_box()
    page.tab.mouse.move(corner["x"] + 6, corner["y"] + 6)
    page.tab.mouse.down()
    page.tab.mouse.move(corner["x"] - 60, corner["y"] - 60, steps=4)
    page.tab.mouse.up()
    page.press("Enter")
    edited = page.of(1)
    assert edited["area"] > 400 and edited["changed"]
    page.press("z")
    assert page.of(1)["area"] == 400
    page.press("y")
    assert page.of(1)["area"] == edited["area"]

    # Reloading changes nothing, nor does killing the server without a warning.
    before = page.particles()
    page.tab.reload()
    page.until("state.particles.size > 0")
    assert page.particles() == before
    process.kill()
    page.until("!$('alert').hidden")
    assert "start microplastics review again" in page.tab.inner_text("#alert")
    again, _ = start()
    again.press("PageUp")
    again.until("state.index === 0 && state.particles.size > 0")
    assert again.particles() == before
    again.press("f")
    again.until("state.images[0].finished && state.index === 1 && state.selected !== null")
    again.press("a", "f")
    again.until("state.images[1].finished")

    with again.tab.expect_download() as download:
        again.tab.click("#download")
    table = pd.read_csv(download.value.path())
    again.tab.keyboard.press("w")
    again.until("$('writing').textContent.includes('are in')")
    options = ("--images", annotations.parent / "images", "--um-per-px", "2.0", "--formats", "csv")
    corrected = tmp_path / "out" / "annotations.json"
    cli("measure", "--masks", corrected, "--output", tmp_path / "measured", *options)
    measured = pd.read_csv(tmp_path / "measured" / "particles.csv")
    kept = [name for name in table if name not in ("particle", "score")]
    pd.testing.assert_frame_equal(
        *(
            each[kept].sort_values(["image", "x", "y"], ignore_index=True)
            for each in (table, measured)
        )
    )
    assert len(table) == 4 and set(table["class"]) == {"Fiber", "Film"}
    assert not page.problems and not again.problems
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in again.asked)


def test_two_tabs(show, review, browser):
    page = show(review)
    other = Page(browser, page.tab.url)
    page.press("a")
    other.until("state.particles.get(2).state === 'accepted'")  # it follows by itself
    # A decision on what the tab has not seen yet is refused, and the tab then sees it.
    # All at once: within a second the tab follows by itself.
    key = "new KeyboardEvent('keydown', {key: 'r', bubbles: true})"
    other.tab.evaluate(f"state.version = 0; select(2); document.body.dispatchEvent({key})")
    other.settle()
    assert "changed since by ada" in other.tab.inner_text("#alert")
    assert other.of(2)["state"] == "accepted"
    other.press("r")
    page.until("state.particles.get(2).state === 'rejected'")


def test_several_images_with_the_keyboard_alone(show, review):
    page = show(review)
    for _ in range(2):
        while page.tab.evaluate("state.selected !== null"):
            page.press("a")
        number = page.tab.evaluate("state.index")
        page.press("f")
        page.until(f"state.images[{number}].finished && state.mode === 'look'")
        page.until("$('hint').textContent !== 'Loading …'")
    page.until("$('hint').textContent.startsWith('All images are finished')")
    page.press("z")  # what was done last was on the other image
    page.until("state.index === 1 && !image().finished")
    page.press("z", "z")
    page.until("state.index === 0 && !image().finished")
    page.press("y", "y", "y")
    page.press("?")
    assert page.tab.is_visible("#keys")
    page.press("Escape")
    assert all(image.finished for image in review.images)
    states = [each.state for image in review.images for each in review.particles(image.name)]
    assert states == ["accepted"] * 4


def test_the_most_uncertain_of_all_images_come_first(show, review):
    page = show(review)
    chosen = "[state.index, state.selected]"
    assert page.tab.evaluate(chosen) == [0, 2]  # of its image
    page.press("g")
    page.until(f"String({chosen}) === '1,4'")  # score 0.55 of b.png
    page.until("$('left').textContent === '4 left on 2 of 2 images'")
    page.press("n")
    page.until(f"String({chosen}) === '0,2'")
    page.press("a")
    page.until(f"String({chosen}) === '0,3'")
    page.until("$('left').textContent === '3 left on 2 of 2 images'")
    page.press("r")
    page.until(f"String({chosen}) === '0,1'")
    page.tab.fill("#size0", "1000")
    page.until("$('left').textContent.startsWith('at most 2 left')")
    page.tab.fill("#size0", "")
    # The only one left on the first image is hidden, and so the next is on the other one.
    page.tab.fill("#score1", "0.8")
    page.until("$('left').textContent === '1 left on 1 of 2 images'")
    page.tab.locator("#score1").blur()
    page.press("n")
    page.until(f"String({chosen}) === '1,4'")
    page.press("f")  # goes on with what is left, and then with unfinished images
    page.until("state.images[1].finished && state.index === 0")
    assert "None is left" in page.tab.inner_text("#left")
    page.press("z")
    page.until(f"String({chosen}) === '1,4'")
    page.press("g")
    assert page.tab.evaluate("state.order") == "doubt" and not page.tab.is_visible("#left")
    assert not page.problems


def test_writing_can_be_watched_and_says_what_fails(show, review, monkeypatch):
    going, seen = threading.Event(), []

    def export(review, progress):
        seen.append(review.version)
        progress(1, 4, "image 1 of 2")
        going.wait()
        raise UserError("The disk is full; free some space.", "not_writable")

    monkeypatch.setattr(server, "export", export)
    page = show(review)
    page.tab.keyboard.press("w")
    page.until("$('writing').textContent.includes('image 1 of 2')")
    page.press("a")  # the review goes on
    assert page.of(2)["state"] == "accepted"
    page.tab.keyboard.press("w")
    page.tab.reload()
    page.until("$('writing').textContent.includes('image 1 of 2')")
    assert page.tab.evaluate("$('writing').firstChild.value / $('writing').firstChild.max") == 0.25
    going.set()
    page.until("$('problem').textContent.includes('The disk is full')")
    assert not page.tab.is_visible("#writing") and len(seen) == 1
    monkeypatch.setattr(server, "export", lambda review, progress: 1 / 0)
    page.tab.keyboard.press("w")
    page.until("$('problem').textContent.includes('ZeroDivisionError')")
    monkeypatch.setattr(server.Review, "table", lambda self: 1 / 0)
    page.tab.click("#download")
    page.until("$('problem').textContent.includes('The table cannot be made')")


def test_the_whole_image_is_shown_at_first(show, review):
    page = show(review)
    page.tab.set_viewport_size({"width": 1280, "height": 630})  # the keys cost a zoom step
    page.tab.reload()
    page.until("state.particles.size > 0")
    box = page.tab.locator("#picture").bounding_box()
    assert page.place(0, 0)[1] >= box["y"]
    assert page.place(80, 60)[1] <= box["y"] + box["height"]


def test_filters(show, review):
    page = show(review)
    shown = "state.shown.map((each) => each.id)"
    assert page.tab.evaluate(shown) == [2, 3, 1]
    page.tab.fill("#score0", "0.5")
    assert page.tab.evaluate(shown) == [3, 1]
    page.tab.uncheck("#classes input >> nth=0")
    assert page.tab.evaluate(shown) == []
    page.tab.click("#all")
    page.tab.fill("#size1", "5")
    assert page.tab.evaluate(shown) == []
    page.tab.click("#all")
    page.tab.select_option("#order", "score")
    assert page.tab.evaluate(shown) == [2, 3, 1]
    page.tab.click("#turn")
    assert page.tab.locator("#rows tr").all_inner_texts()[0].startswith("1")
    page.tab.click("#rows tr >> nth=1")
    assert page.tab.inner_text("#name") == "Particle 3"


@pytest.mark.slow
def test_names_are_text_and_the_page_is_accessible(show, tmp_path, stack):
    evil = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>"
    source = write_annotations(tmp_path)
    data = json.loads(source.read_text())
    data["categories"][0]["name"] = evil
    data["images"][0]["file_name"] = "<b>a.png"
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "<b>a.png")
    source.write_text(json.dumps(data))
    page = show(stack.enter_context(Review.open(source, images=str(tmp_path / "images"))))
    page.press("c")
    page.tab.keyboard.type(evil)
    page.press("Enter")
    page.until("[...state.particles.values()].some((each) => each.comment)")
    assert evil in page.tab.inner_text("#actions") and "<b>a.png" in page.tab.inner_text("#image")
    page.press("?")
    assert page.tab.evaluate("window.hurt") is None
    page.press("Escape")
    assert not find_barriers(page.tab)
    assert not page.problems


def test_the_photograph_lies_under_its_outlines(show, tmp_path, stack):
    source = write_annotations(tmp_path)
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[5:15, 25:35] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), pixels)
    page = show(stack.enter_context(Review.open(source, images=str(tmp_path / "images"))))
    page.press("h", "Escape")
    page.tab.evaluate("select(null)")
    page.until("[...document.querySelectorAll('img.leaflet-tile')].every((each) => each.complete)")
    page.tab.wait_for_timeout(400)  # the tile fades in
    shot = cv2.imdecode(np.frombuffer(page.tab.screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(
        int
    )
    for x, y, red in [
        (30, 10, True),
        (26, 6, True),
        (34, 14, True),
        (22, 10, False),
        (30, 18, False),
    ]:
        column, row = page.place(x, y)
        assert (shot[round(row), round(column)][2] > 128) == red, (x, y)


@pytest.fixture
def compared(show, stack, tmp_path):
    """The page with the judged images of the evaluation's tests, and predictions beside them."""
    from judged_images import evaluate, write_truth

    from microplastics.review.comparison import open_comparison

    truth = write_truth(tmp_path)
    evaluate(truth, tmp_path / "inference", threshold=0.1)
    source, _ = open_comparison(truth, tmp_path / "inference", 0.1)
    return show(stack.enter_context(Review(source, tmp_path / "out")), read_only=True)


def labels(page):
    return page.tab.evaluate("state.shown.map((each) => each.label)")


def test_predictions_beside_annotations_with_the_keyboard_alone(compared):
    page = compared
    # The images with most errors come first, and on them missed particles, the largest at the top.
    assert page.tab.inner_text("#image option:checked") == "1. 4.png (4 errors)"
    assert page.tab.inner_text("#checked") == "7 correct, 15 errors on 5 images"
    # A key does not pass over an image that is not loaded yet.
    page.tab.evaluate("state.known.delete(0); state.shown = []; looking.go(false)")
    assert page.tab.evaluate("state.index") == 0
    page.press("PageDown", "PageDown")
    page.until("state.index === 2 && state.selected !== null")
    assert page.tab.inner_text("#image option:checked") == "3. 3.png (4 errors)"
    assert page.tab.inner_text("#name") == "Annotation 104"
    assert labels(page) == [
        *("Annotation 104", "Annotation 105", "Detection 1"),
        *("Detection 4", "Detection 5"),
    ]
    rows = page.tab.locator("#outcomes tr")
    counts = [row.split() for row in rows.all_inner_texts()]
    assert ["missed", "2", "6"] in counts and ["correct", "1", "7"] in counts
    drawn = "[...picture.layers].filter(([, each]) => picture.group.hasLayer(each)).length"
    # The true particles of 104 to 107, and three detections.
    assert page.tab.evaluate(drawn) == 7
    page.press("t")
    assert page.tab.evaluate(drawn) == 4
    page.press("t")
    assert page.tab.evaluate(drawn) == 3
    page.press("t", "n", "n")
    assert page.tab.inner_text("#name") == "Detection 1"
    facts = " ".join(page.tab.inner_text("#facts").split())
    assert "class: outline right, class wrong" in facts
    assert "Class Fiber True Film" in facts and "Score 0.83 IoU 0.58" in facts
    cells = page.tab.locator("#rows tr.selected td").all_inner_texts()
    assert cells == ["1", "Fiber", "0.83", "Film", "0.58", "class"]
    # Only localisation errors: there are none here, and the next image with one opens.
    page.press("5")
    assert page.tab.inner_text("#image option:checked").split()[1] in ("1.png", "4.png")
    assert {each["outcome"] for each in page.tab.evaluate("state.shown")} == {"localisation"}
    page.press("n", "n")
    assert "last one" in page.tab.inner_text("#hint")
    page.press("5", "PageUp", "a", "d", "f")
    assert page.tab.inner_text("#hint") == "This page is only to look at."
    assert len(page.tab.evaluate("[...state.hiddenStates]")) == 0
    page.press("?")
    assert "Show only" in page.tab.inner_text("#keys")
    assert "Accept" not in page.tab.inner_text("body")
    assert not page.problems


def test_a_wrong_class_is_of_both_classes(compared):
    page = compared
    page.press("PageDown", "PageDown")
    page.until("state.index === 2 && state.selected !== null")
    page.tab.evaluate(
        "for (const name of ['Fragment', 'Film']) state.hiddenClasses.add(name); draw()"
    )
    assert labels(page) == [
        *("Annotation 104", "Annotation 105", "Detection 1", "Detection 4"),
    ]
    page.tab.evaluate("state.hiddenClasses.add('Fiber'); draw()")
    assert labels(page) == []


def test_a_data_set_to_look_at(show, review):
    page = show(review, read_only=True)
    assert page.tab.evaluate("state.selected") is None
    assert page.tab.inner_text("#checked") == "4 particles on 2 images"
    assert not page.tab.is_visible("#reviewer") and not page.tab.is_visible("#states")
    page.press("n")
    assert page.tab.inner_text("#name") == "Particle 1"
    page.press("n", "n", "n")
    page.until("state.index === 1 && state.selected === 4")
    page.press("1")
    assert page.tab.inner_text("#hint") == "This page is only to look at."


@pytest.mark.slow
def test_the_comparison_is_accessible(compared):
    assert not find_barriers(compared.tab)
