"""Measure how fluent the page of a review is, in headless Chromium.

python benchmarks/review_page.py RUN

Pan and zoom are real mouse events; frames are those that ``requestAnimationFrame`` announces.
Selection lasts from the mouse button to the frame after the one in which it is drawn.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

from playwright.sync_api import Page, sync_playwright

_BEGIN = """() => {
  const gaps = window.gaps = [];
  let last = performance.now();
  window.going = true;
  const frame = (now) => {
    gaps.push(now - last);
    last = now;
    if (window.going) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""
_SELECT = """() => { window.took = null; addEventListener("pointerdown", (event) => {
  addEventListener("click", () => requestAnimationFrame(() => requestAnimationFrame(
    (now) => { window.took = performance.now() - event.timeStamp; })), {once: true});
  }, {once: true, capture: true}); }"""


def frames(page: Page, move) -> str:
    """Frames a second while ``move`` runs, and the gap that one in twenty exceeds."""
    page.evaluate(_BEGIN)
    move()
    gaps = sorted(page.evaluate("() => { window.going = false; return window.gaps.slice(1); }"))
    late = gaps[int(0.95 * len(gaps))]
    return f"{1000 / statistics.mean(gaps):.0f} frames/s, 95 % of gaps within {late:.0f} ms"


def pan(page: Page, x: int = 420, y: int = 400) -> None:
    """Drag the picture there and back, twice."""
    for turn in range(4):
        page.mouse.move(x, y)
        page.mouse.down()
        way = 1 if turn % 2 else -1
        for step in range(50):
            page.mouse.move(x + way * step * 5, y + way * step * 4)
        page.mouse.up()


def zoom(page: Page, x: int = 420, y: int = 400) -> None:
    """Turn the wheel in and out."""
    page.mouse.move(x, y)
    for turn in (-1, 1):
        for _ in range(14):
            page.mouse.wheel(0, turn * 100)
            page.wait_for_timeout(100)


def selections(page: Page, number: int = 20) -> list[float]:
    """Click particles; ms until each is drawn as selected."""
    found = []
    for index in range(number):
        page.evaluate(f"select(state.shown[{index} * 7 % state.shown.length].id)")
        place = page.evaluate(
            "(() => { const [x, y] = selected().outline[0][0]; const box = $('picture')"
            ".getBoundingClientRect(), at = picture.map.latLngToContainerPoint([-y, x]);"
            " select(null); return [at.x + box.x, at.y + box.y]; })()"
        )
        page.evaluate(_SELECT)
        page.mouse.click(*place)
        while (took := page.evaluate("window.took")) is None:
            page.wait_for_timeout(50)
        found.append(took)
        assert page.evaluate("state.selected !== null")
    return found


def decisions(page: Page, number: int = 20) -> list[float]:
    """Accept particles by keyboard; ms until the server has written it and the page shows it."""
    found = []
    for _ in range(number):
        page.evaluate("window.began = performance.now()")
        page.keyboard.press("a")
        page.evaluate("queue")
        found.append(page.evaluate("performance.now() - window.began"))
    return found


def main() -> None:
    """Serve the run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run")
    parser.add_argument("--browser", default=shutil.which("chromium"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        command = [sys.executable, "-m", "microplastics", "review", given.run, "--no-browser"]
        server = subprocess.Popen([*command, "--output", folder], stdout=subprocess.PIPE, text=True)
        try:
            lines = iter(server.stdout.readline, "")
            address = next(filter(None, (re.search(r"http://\S+", line) for line in lines)))[0]
            browser = driver.chromium.launch(executable_path=given.browser, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(address)
            while not page.evaluate("state.particles.size"):
                page.wait_for_timeout(50)
            took = page.evaluate("performance.now()")
            print(f"{page.evaluate('state.particles.size')} particles after {took / 1000:.1f} s")
            for name, level in ("whole image", None), ("a quarter", -2), ("own px", 0):
                place = "picture.whole()" if level is None else f"picture.map.setZoom({level})"
                page.evaluate(f"void {place}")
                page.wait_for_timeout(2500)
                print(f"pan, {name}: {frames(page, lambda: pan(page))}")
            page.evaluate("void picture.whole()")
            page.wait_for_timeout(2500)
            print(f"zoom: {frames(page, lambda: zoom(page))}")
            page.wait_for_timeout(2500)
            for name, found in ("selection", selections(page)), ("decision", decisions(page)):
                print(f"{name}: median {statistics.median(found):.0f} ms, most {max(found):.0f} ms")
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
