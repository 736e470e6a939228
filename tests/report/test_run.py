"""The report of a run, made by the real command line."""

import errno
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from support import chromium, find_barriers, user_error

from microplastics.report import run as report_run
from microplastics.runs.finished import read_run
from microplastics.utils.io import write_error

EVIL = "<script>alert(1)<b>"


class Page(HTMLParser):
    """Tables, headings, links, ids, alternative texts, and all words of a page."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.headings, self.links, self.ids, self.texts = {}, [], [], [], []
        self.unlabelled, self.tags, self.addresses = [], [], []
        self._cell, self._skip = None, False
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self._skip = tag in ("script", "style")
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img" and "alt" not in attributes:
            self.unlabelled.append(attributes)
        if attributes.get("role") in ("img", "group") and not attributes.get("aria-label"):
            self.unlabelled.append(attributes)
        if tag == "caption":
            self._cell = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        self._skip = False
        if tag == "caption":
            self._rows = self.tables["".join(self._cell).strip()] = []
            self._cell = None

    def handle_data(self, data):
        if self._skip:
            return
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)
        elif self.tables and self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()


def frame(page, caption):
    head, *rows = page.tables[caption]
    return pd.DataFrame(rows, columns=head)


@pytest.fixture
def coco(tmp_path):
    """Four photographs in two folders, with squares of 10 and 30 px; the last is a blank."""
    classes = ["Fiber", EVIL, "Film"]
    squares = {"a/1.png": [(0, 20, 10, 0), (40, 20, 10, 1), (60, 40, 30, 2)]}
    squares["a/2.png"] = [(10, 10, 30, 2), (50, 50, 10, 2)]
    squares["b/3.png"] = [(10, 10, 10, 0)]
    squares["b/blank.png"] = [(30, 30, 10, 0)]
    data = {"images": [], "annotations": []}
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate(classes, start=1)]
    for image_id, (name, boxes) in enumerate(squares.items(), start=1):
        picture = np.full((80, 100, 3), 90, np.uint8)
        for x, y, side, kind in boxes:
            picture[y : y + side, x : x + side] = 250
            ring = [x, y, x + side, y, x + side, y + side, x, y + side]
            number = len(data["annotations"]) + 1
            place = {"bbox": [x, y, side, side], "area": side**2, "segmentation": [ring]}
            kind = {"id": number, "image_id": image_id, "category_id": kind + 1, "iscrowd": 0}
            data["annotations"].append({**kind, **place})
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / name), picture)
        data["images"].append({"id": image_id, "file_name": name, "width": 100, "height": 80})
    (tmp_path / "masks.json").write_text(json.dumps(data))
    return tmp_path


@pytest.fixture
def measured(cli, coco):
    """Measures the photographs: ``measured("--blanks", …)`` gives folder, result and page."""

    def run(*more, output="out"):
        arguments = ("--masks", coco / "masks.json", "--images", coco / "images")
        result = cli("measure", *arguments, "--output", coco / output, *more)
        assert result.returncode == 0, result.stderr
        path = coco / output / "report.html"
        return coco / output, result, Page(path.read_text("utf-8")) if path.exists() else None

    return run


def test_the_numbers_are_those_of_the_summary(measured):
    sampling = ("--sampled-volume", "2 L", "--filter-area-mm2", "4", "--blanks", "b/blank.png")
    groups = ("--group-by", "(1|2|3|blank)[.]png")
    folder, result, page = measured("--um-per-px", "10", *sampling, *groups)
    assert f"Report: {folder / 'report.html'}" in result.stdout
    samples = pd.read_csv(folder / "samples.csv").set_index("group")
    shown = frame(page, "Particles by sample and class").set_index(["Sample", "Class"])
    for group, row in samples.iterrows():
        name = f"{group} (blank)" if row["is_blank"] else group
        for kind in ("all", "Fiber", EVIL, "Film"):
            prefix = "" if kind == "all" else f"{kind}."
            own = shown.loc[(name, kind)]
            assert int(own["particles"]) == row[f"{prefix}count"]
            if not row["is_blank"]:
                assert float(own["per L"]) == pytest.approx(
                    row[f"{prefix}particles_per_l"], rel=1e-3
                )
    totals = frame(page, "All samples: 3 images, particles by class").set_index("Class")
    assert totals["particles"].to_dict() == {"all": "6", "Fiber": "2", EVIL: "1", "Film": "3"}
    assert totals["per mm²"]["all"] == "2.500"  # of 3 times 1 mm × 0.8 mm
    # Garwood's interval of 6.
    assert totals.loc["all"].iloc[1] == "2.20 – 13.1"
    assert "6 particles on 3 images: 2 Fiber" in page.text
    assert "1 procedural blank had 1 particle" in page.text and "needs two blanks" in page.text
    sizes = frame(page, "All samples: particles by size class").set_index("Class")
    assert sizes.loc["all", "100–300 µm"] == "4" and sizes.loc["all", "300–500 µm"] == "2"


def test_names_are_text_and_all_links_lead_somewhere(measured):
    _, _, page = measured("--um-per-px", "10")
    assert EVIL in page.text and "b" not in page.tags
    assert set(page.tags) & {"a", "svg", "table", "mark"} == {"a", "svg", "table", "mark"}
    places = [link for link in page.links if link.startswith("#")]
    assert len(places) == len(page.links) and {link[1:] for link in places} <= set(page.ids)
    # The gallery has every particle once, and each leads to its place on its image.
    assert sum(bool(re.fullmatch(r"#i\d+-p\d+", link)) for link in places) == 7
    assert len(page.ids) == len(set(page.ids))


def test_the_page_is_built_for_everybody(measured):
    folder, _, page = measured("--um-per-px", "10")
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert not page.unlabelled
    html = (folder / "report.html").read_text("utf-8")
    assert '<html lang="en">' in html and html.count('<th scope="col"') == html.count("<th ")
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)


@pytest.mark.slow
def test_the_page_is_accessible(measured):
    folder, *_ = measured("--um-per-px", "10")
    with chromium() as browser:
        tab = browser.new_page()
        tab.goto((folder / "report.html").as_uri())
        assert not find_barriers(tab)
        tab.set_viewport_size({"width": 420, "height": 800})
        assert not find_barriers(tab)


def test_what_can_go_wrong_is_said(measured, coco):
    scales = "image,um_per_px\na/1.png,1\na/2.png,2\nb/3.png,2\nb/blank.png,2\n"
    (coco / "scales.csv").write_text(scales)
    _, _, page = measured("--calibration", coco / "scales.csv", "--min-size", "15")
    assert "1 of 7 particles (14%) are cut by the border" in page.text
    assert "The folder a has images of 2 scales" in page.text
    assert "2 particles below the smallest size of 15 µm" in page.text
    assert "No image is named as a procedural blank" in page.text
    assert "Particles from 15 µm on were counted" in page.text
    assert f"of Fiber along the centreline, from tip to tip, of {EVIL}, Film as" in page.text
    assert "[L]" in page.text and "[stage micrometer or other standard, date]" in page.text


def test_without_a_scale_the_smallest_size_is_in_px(measured):
    _, _, page = measured("--min-size", "15", "--fiber-classes", "")
    assert "below the smallest size of 15 px are in the table" in page.text
    assert f"of Fiber, {EVIL}, Film as the largest Feret diameter" in page.text


def test_runs_that_measured_lengths_in_two_ways_are_told(cli, measured, coco):
    for name, pattern in ("one", "a"), ("two", "b"):
        data = json.loads((coco / "masks.json").read_text())
        data["images"] = [e for e in data["images"] if e["file_name"].startswith(pattern)]
        ids = [each["id"] for each in data["images"]]
        data["annotations"] = [e for e in data["annotations"] if e["image_id"] in ids]
        (coco / f"{name}.json").write_text(json.dumps(data))
        more = ("--fiber-classes", "") if name == "two" else ()
        arguments = ("--masks", coco / f"{name}.json", "--output", coco / name, *more)
        assert cli("measure", *arguments).returncode == 0
    arguments = ("--merge-runs", coco / "one", coco / "two", "--output", coco / "both")
    assert cli("measure", *arguments).returncode == 0
    page = Page((coco / "both" / "report.html").read_text("utf-8"))
    assert "of Fiber by one of these in some images" in page.text


def test_without_photographs_or_masks_the_page_says_so(cli, measured, coco):
    folder, _, _ = measured("--um-per-px", "10")
    shutil.rmtree(folder / "parts")
    assert cli("report", folder).returncode == 0
    page = Page((folder / "report.html").read_text("utf-8"))
    assert "Boxes stand for outlines." in page.text
    folder, _, _ = measured("--um-per-px", "10", "--formats", "overlays", output="again")
    (coco / "images" / "a" / "1.png").unlink()
    cv2.imwrite(str(coco / "images" / "a" / "2.png"), np.zeros((80, 100, 3), np.uint8))
    result = cli("report", folder)
    assert (result.returncode, result.stdout) == (0, f"{folder / 'report.html'}\n")
    page = Page((folder / "report.html").read_text("utf-8"))
    assert "1.png is gone." in page.text and "2.png has changed since the run." in page.text
    assert "7 particles on 4 images" in page.text


def test_the_region_of_interest_is_drawn_while_its_file_is_there(cli, measured, coco):
    ring = [[20, 0], [100, 0], [100, 80], [20, 80], [20, 0]]
    (coco / "roi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    folder, _, page = measured("--um-per-px", "10", "--region", coco / "roi.geojson")
    html = (folder / "report.html").read_text("utf-8")
    assert html.count("<title>Region of interest</title>") == 4
    path = re.search(r'd="M(20|100),(0|80)l([-0-9, ]+)z" fill="none" stroke="#fff"', html)
    steps = sorted(path[3].split())
    assert steps == ["-80,0", "0,-80", "0,80", "80,0"]
    (coco / "roi.geojson").unlink()
    assert cli("report", folder).returncode == 0
    page = Page((folder / "report.html").read_text("utf-8"))
    assert page.text.count("The region of interest is not drawn") == 4


def test_merged_runs_have_their_images(cli, measured, coco):
    folder, _, _ = measured("--um-per-px", "10")
    result = cli("measure", "--merge-runs", folder, "--output", coco / "merged")
    assert result.returncode == 0 and "report.html" in result.stdout
    html = (coco / "merged" / "report.html").read_text("utf-8")
    assert "7 particles on 4 images" in Page(html).text
    assert html.count("data:image/jpeg") == 4 + 7


def test_a_report_that_fails_leaves_the_run_valid(measured, monkeypatch):
    def fail(folder):
        raise RuntimeError("no")

    monkeypatch.setattr(report_run, "write_run_report", fail)
    folder, result, page = measured("--um-per-px", "10")
    assert page is None and "The report could not be made" in result.stderr + result.stdout
    assert len(pd.read_csv(folder / "particles.csv")) == 7


def test_a_report_on_a_full_disk_is_an_error(cli, coco, monkeypatch):
    def fail(folder):
        raise write_error(f"{folder}/report.html", OSError(errno.ENOSPC, ""))

    monkeypatch.setattr(report_run, "write_run_report", fail)
    words = ("--masks", coco / "masks.json", "--um-per-px", "10", "--output", coco / "out")
    result = cli("measure", *words)
    assert result.returncode == 2 and "report.html: the disk is full" in result.stderr
    assert len(pd.read_csv(coco / "out" / "particles.csv")) == 7


def test_without_a_report_none_of_an_earlier_state_stays(measured):
    folder, _, page = measured("--um-per-px", "10")
    assert page is not None
    assert measured("--um-per-px", "10", "--resume", "--no-report")[2] is None
    assert measured("--um-per-px", "10", "--resume")[2] is not None
    assert read_run(folder).class_names == ["Fiber", EVIL, "Film"]


@pytest.mark.parametrize(
    "record",
    [
        {"images": [3]},
        {"images": [{"name": "x", "left_out": {"on_scale_bar": "many"}}]},
        {"images": [{"name": "x", "tile": "wide"}]},
        {"score_thresholds": {"Fiber": []}},
        {"merged": [1]},
        {"options": {"min_size": "a"}},
    ],
)
def test_a_run_json_that_no_run_wrote_is_refused(tmp_path, record):
    with user_error("file_missing", tmp_path):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"options": {}, **record}))
    (tmp_path / "summary.csv").write_text(
        "image,width_px,height_px,region_px,um_per_px,calibration_source,particles\n"
    )
    with user_error("run_invalid", "run.json"):
        read_run(tmp_path)


def test_a_run_without_a_particle_has_a_report(cli, coco):
    data = json.loads((coco / "masks.json").read_text())
    (coco / "masks.json").write_text(json.dumps({**data, "annotations": []}))
    arguments = ("--masks", coco / "masks.json", "--output", coco / "out")
    assert cli("measure", *arguments).returncode == 0
    page = Page((coco / "out" / "report.html").read_text("utf-8"))
    assert "0 particles on 4 images" in page.text and "No particle counts." in page.text
    assert "No image has a scale" in page.text


@pytest.mark.slow
def test_the_report_is_printed(measured, browser, tmp_path):
    folder, _, _ = measured("--um-per-px", "10")
    html = (folder / "report.html").read_text("utf-8")
    browser(html, f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n") >= 2
    # A picture of the gallery enlarges its place.
    nonce = re.search(r'nonce="([\w-]+)"', html)[1]
    look = """location.hash = "#i1-p3"; setTimeout(() => {
      document.title = document.querySelector(".overlay svg").style.width; }, 1000);"""
    dom = browser(
        html.replace("</body>", f'<script nonce="{nonce}">{look}</script></body>'), "--dump-dom"
    )
    assert float(re.search(r"<title>([\d.]+)%</title>", dom)[1]) >= 100


@pytest.mark.slow
def test_a_filter_of_3000_particles_gives_a_page_of_few_megabytes(cli, tmp_path):
    side, rng = 20_000, np.random.default_rng(0)
    noise = rng.integers(90, 170, (2048, 2048, 3), dtype=np.uint8)
    tiles = (
        noise[y : y + 512, x : x + 512] for y, x in rng.integers(0, 1536, (40 * 40, 2)).tolist()
    )
    tifffile.imwrite(
        tmp_path / "filter.tif",
        tiles,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="jpeg",
    )
    annotations = []
    for number, (x, y) in enumerate(rng.integers(100, side - 100, (3000, 2)).tolist(), start=1):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 20))
        reach = rng.uniform(4, 60, (20, 1))
        ring = (x, y) + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
        place = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0) / 2}
        kind = {"id": number, "image_id": 1, "category_id": number % 3 + 1, "iscrowd": 0}
        annotations.append({**kind, **place, "segmentation": [ring.ravel().tolist()]})
    names = ("Fiber", "Fragment", "Film")
    data = {
        "images": [{"id": 1, "file_name": "filter.tif", "width": side, "height": side}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
        "annotations": annotations,
    }
    (tmp_path / "masks.json").write_text(json.dumps(data))
    arguments = ("--masks", tmp_path / "masks.json", "--images", tmp_path, "--allow-large")
    more = ("--um-per-px", "1.2", "--formats", "csv", "--output", tmp_path / "out")
    assert cli("measure", *arguments, *more).returncode == 0
    page = tmp_path / "out" / "report.html"
    assert 1_000_000 < page.stat().st_size < 15_000_000
    html = page.read_text("utf-8")
    # One photograph, 100 pictures of each class, all outlines.
    assert html.count("data:image/jpeg") == 301 and html.count('<path class="outline') == 3300
