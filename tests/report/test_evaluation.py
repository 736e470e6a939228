"""microplastics/report/evaluation.py: the page of an evaluation, its figures and advice."""

import html
import io
import json
import re

import numpy as np
import pytest
from judged_images import FIBER, IMAGES, NAMES, SIZE, evaluate, write_truth
from PIL import Image
from support import chromium, find_barriers, user_error

from microplastics.evaluation.errors import KINDS
from microplastics.report import advice
from microplastics.report.charts import draw_charts
from microplastics.report.evaluation import (
    draw_worst,
    finish_evaluation,
    read_evaluation,
    write_evaluation_report,
)
from microplastics.visualization.galleries import OUTCOME_COLORS

EVIL = "</script><img src=x onerror=alert(1)>"
ABOUT = {
    "microplastics": "0",
    "detectron2": "0",
    "torch": "0",
    "checkpoint": "runs/mine.pth",
    "checkpoint_sha256": "12ab",
    "score_thresholds_origin": {"metric": "f1", "images": 7},
    "lowest_score": 0.05,
    "detections_per_image": 100,
    "max_overlap": 0.5,
    "dataset": "my photographs",
    "augmented": False,
}


@pytest.fixture
def make(tmp_path):
    """Evaluates images: ``make(IMAGES)`` gives folder, name of the data set, and ``figures``."""

    def build(images=IMAGES, names=NAMES, threshold=0.4):
        dataset = write_truth(tmp_path, images, names)
        build.figures = evaluate(dataset, tmp_path, images, threshold)
        thresholds = dict.fromkeys(names, threshold)
        about = {**ABOUT, "class_names": names, "score_thresholds": thresholds}
        about["fiber_classes"] = names[:1]
        about.update(annotations=str(tmp_path / "truth.json"), images=str(tmp_path))
        (tmp_path / "evaluation.json").write_text(json.dumps(about))
        return tmp_path, dataset

    build.folder = tmp_path
    return build


def rows_of(page, caption):
    """Texts of the cells of one table of the page."""
    table = page[page.index(f"<caption>{caption}") :].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def test_the_page_shows_the_figures(make):
    folder, dataset = make()
    finish_evaluation(folder, dataset)
    assert (folder / "counting_curves.png").stat().st_size
    page = (folder / "evaluation.html").read_text()
    assert "Evaluation on my photographs" in page
    assert f"Along the centreline: {NAMES[0]}; of all other classes" in page
    # AP50 and costs are tidecv's, as in tests/evaluation/test_errors.py.
    assert "Mask AP50 42.1" in page
    table, segm = rows_of(page, "Figures of each class"), make.figures["segm"]
    for name, row in zip(NAMES, table[1:], strict=False):
        assert row[:3] == [name, f"{segm[f'AP-{name}']:.1f}", f"{segm[f'AP50-{name}']:.1f}"]
    assert table[-1][:3] == ["all", f"{segm['AP']:.1f}", "42.1"]
    counted = make.figures["counting"]["count_predicted"]
    assert table[0][7] == "Counted" and table[-1][7] == str(counted) == "9"
    errors = {row[0]: row[1] for row in rows_of(page, "AP50 lost to each kind of error")[1:]}
    assert errors == {
        "missed": "16.8",
        "background": "0.9",
        "duplicate": "3.2",
        "class": "2.8",
        "localisation": "2.5",
        "both": "1.0",
    }
    lengths = rows_of(page, "Length, predicted less true")
    assert lengths[0][2] == "Bias, µm" and lengths[-1][1] == "4"
    assert "12ab" in page and "chosen by f1 on 7 images" in page
    for heading in ("What to do next", "The worst images", "Classes taken for one another"):
        assert f">{heading}</h2>" in page
    assert page.count('class="worst"') == 5 and page.count("data:image/jpeg") == 10


@pytest.mark.slow
def test_the_page_is_accessible(make):
    folder, dataset = make(names=[EVIL, *NAMES[1:]])
    page = write_evaluation_report(folder, dataset)
    with chromium() as browser:
        tab = browser.new_page()
        tab.goto(page.as_uri())
        assert not find_barriers(tab)
        tab.set_viewport_size({"width": 420, "height": 800})
        assert not find_barriers(tab)


def test_without_a_page_there_are_the_curves(make):
    folder, dataset = make(IMAGES[:1])
    (folder / "evaluation.html").write_text("of an earlier evaluation")
    finish_evaluation(folder, dataset, page=False)
    assert (folder / "counting_curves.png").exists() and not (folder / "evaluation.html").exists()


def test_figures_stand_without_their_page(make, caplog):
    folder, dataset = make(IMAGES[:1])
    (folder / "evaluation_scores.csv").unlink()
    finish_evaluation(folder, dataset)
    assert "evaluation_scores.csv is missing" in caplog.text
    assert not (folder / "evaluation.html").exists()


def test_charts_hold_all_points(make):
    evaluation = read_evaluation(make()[0])
    charts = draw_charts(evaluation)
    assert {"errors", "thresholds-0", "thresholds-1", "lengths"} <= set(charts)
    for place in range(3):
        lines = charts[f"recall-{place}"].figure.renderers
        assert len(lines) == 10 and all(len(r.data_source.data["recall"]) == 101 for r in lines)
    cells = [charts[f"scores-{place}"].figure.renderers[0] for place in range(3)]
    assert sum(sum(each.data_source.data["detections"]) for each in cells) == 22
    points = sum(len(r.data_source.data["error"]) for r in charts["lengths"].figure.renderers)
    assert points == (evaluation.particles["outcome"] == "correct").sum() == 4
    lost = charts["errors"].figure.renderers[-1].data_source.data
    assert lost["kind"].tolist() == list(KINDS)
    assert lost["lost"][0] == pytest.approx(16.768, abs=1e-3)


def test_a_long_result_is_drawn_in_part(make):
    images = [([(FIBER, (10, 10, 40, 10))], [(0.9, FIBER, (10, 10, 40, 10))])] * 9
    evaluation = read_evaluation(make(images)[0])
    many = evaluation.particles.loc[np.arange(4500) % 9]
    evaluation.__dict__["particles"] = many
    chart = draw_charts(evaluation)["lengths"]
    assert "4,500" in chart.title and "2,000 of them drawn" in chart.title
    assert len(chart.figure.renderers[0].data_source.data["error"]) == 2000


def picture(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def has_color(image, box, outcome):
    """Whether the outline of a box in px of the photograph is drawn in the colour of an outcome."""
    scale = image.shape[0] / SIZE[0]
    x, y, w, h = (round(scale * each) for each in box)
    part = image[y - 6 : y + 6, x : x + w]
    return bool((np.abs(part - OUTCOME_COLORS[outcome]).max(axis=2) < 60).any())


def test_the_worst_images_show_what_is_wrong(make):
    images = [
        ([(FIBER, (10, 20, 40, 10))], [(0.9, FIBER, (10, 20, 40, 10))]),
        (
            [(FIBER, (10, 20, 40, 10)), (FIBER, (10, 60, 40, 10))],
            [(0.9, FIBER, (10, 20, 40, 10)), (0.8, FIBER, (70, 60, 40, 10))],
        ),
    ]
    folder, dataset = make(images)
    (worst,) = draw_worst(read_evaluation(folder), dataset)
    assert (worst.name, worst.summary) == ("2.png", "1 correct, 1 missed, 1 background")
    truth, found = picture(worst.truth), picture(worst.found)
    assert truth.shape == found.shape == (500, 600, 3)
    assert has_color(truth, (10, 20, 40, 10), "correct")
    assert has_color(truth, (10, 60, 40, 10), "missed")
    assert not has_color(truth, (10, 20, 40, 10), "missed")
    assert has_color(found, (70, 60, 40, 10), "background")
    assert not has_color(found, (10, 60, 40, 10), "missed")


def test_a_photograph_that_cannot_be_read_is_named(make):
    folder, dataset = make(IMAGES[:2])
    (folder / "1.png").write_bytes(b"no image")
    page = write_evaluation_report(folder, dataset).read_text()
    assert "No picture:" in page and page.count("data:image/jpeg") == 2


def test_names_are_shown_as_text(make):
    folder, dataset = make(IMAGES[2:3], [EVIL, "NA", "all"])
    page = write_evaluation_report(folder, dataset).read_text()
    assert "<img src=x" not in page and page.count("<script") == page.count("</script>")
    assert [row[0] for row in rows_of(page, "Figures of each class")[1:]] == [
        EVIL,
        "NA",
        "all",
        "all",
    ]


def test_nothing_found_and_nothing_there(make):
    folder, dataset = make([(IMAGES[0][0], [])])
    page = write_evaluation_report(folder, dataset).read_text()
    assert "nothing was found" in page and "3 missed" in page
    folder, dataset = make([([], []), ([], [])])
    page = write_evaluation_report(folder, dataset).read_text()
    assert "No image has an error." in page


def test_boxes_alone_have_precision_and_recall(make):
    folder, dataset = make()
    about = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**about, "score_thresholds": {}}))
    table = (folder / "evaluation_pr_curves.csv").read_text().splitlines()
    boxes = [line for line in table if not line.startswith("segm")]
    (folder / "evaluation_pr_curves.csv").write_text("\n".join(boxes))
    page = write_evaluation_report(folder, dataset).read_text()
    assert "Box AP50" in page and "The worst images" not in page and "of the boxes" in page


def steps(folder):
    return {step.title: step for step in advice.next_steps(read_evaluation(folder))}


def test_what_costs_most_comes_first(make):
    titles = list(steps(make()[0]))
    kinds = [title.split()[0].lower() for title in titles if "points of AP50" in title]
    assert kinds == ["missed", "duplicate", "class", "localisation"]
    assert titles[-1].startswith("Fewer than 50 true particles: Fiber (5), Film (4)")


def test_missed_particles_that_a_lower_threshold_finds(make):
    box, other = (10, 10, 40, 10), (10, 50, 40, 10)
    found = [(0.9, FIBER, box), (0.3, FIBER, other)]
    images = [([(FIBER, box), (FIBER, other), (FIBER, (70, 80, 40, 10))], found)] * 4
    given = steps(make(images, ["Fiber"], threshold=0.5)[0])
    (missed,) = [s for title, s in given.items() if title.startswith("Missed particles cost 33.")]
    assert missed.text.startswith("8 particles are not counted, but 4 of them are found, or nearly")
    # One of three against two of three: F1 50 and 80.
    (threshold,) = [s for title, s in given.items() if "score threshold" in title]
    assert "F1 of Fiber would be 80.0 %" in threshold.title and threshold.worth == 30


def test_lengths_that_are_off_beyond_chance(make):
    boxes = [(10, 10, 40, 10), (10, 40, 50, 10), (10, 70, 60, 10)]
    short = [(x, y, round(0.8 * w), h) for x, y, w, h in boxes]
    images = [([(FIBER, b) for b in boxes], [(0.9, FIBER, b) for b in short])]
    given = steps(make(images, ["Film"])[0])
    assert any(re.match(r"Film is \d+ % too short on average \(3 particles\)", t) for t in given)
    images = [([(FIBER, b) for b in boxes], [(0.9, FIBER, b) for b in boxes])]
    assert list(steps(make(images, ["Film"])[0])) == ["Fewer than 50 true particles: Film (3)."]


def test_report_makes_the_page_again(make, cli):
    folder, _ = make(IMAGES[:1])
    done = cli("report", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "evaluation.html")
    assert "Mask AP50" in (folder / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("evaluation.json", "{}", "evaluation.json has no usable microplastics"),
        ("evaluation_pr_curves.csv", None, "evaluation_pr_curves.csv is missing"),
        ("evaluation_errors.csv", "error\nmissed", "AP50_lost"),
        ("evaluation_errors.csv", "class,error,AP50_lost,detections,counted\n", "(24)"),
        ("evaluation_particles.csv", '"', "not readable"),
        ("counting_curves.csv", "class,threshold\nFiber,high", "not readable"),
        ("counting.csv", "class,size_class\nall,all", "lacks"),
    ],
)
def test_files_that_evaluate_did_not_write(make, name, text, words):
    folder, dataset = make(IMAGES[1:2])
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with user_error("file_missing" if text is None else "file_invalid", words):
        write_evaluation_report(folder, dataset)


@pytest.mark.slow
def test_all_charts_are_drawn_in_the_browser(make, browser):
    page = write_evaluation_report(*make()).read_text()
    nonce = re.search(r'nonce="([\w-]+)"', page)[1]
    look = """setTimeout(() => {
      const find = (root) => [...root.querySelectorAll("*")].flatMap(
      (e) => e.shadowRoot ? find(e.shadowRoot) : e.tagName === "svg" ? [e] : []);
      const paths = find(document).map((svg) => svg.querySelectorAll("path").length);
      document.title = paths.filter((number) => number > 5).length; }, 3000);"""
    script = f'<script nonce="{nonce}">{look}</script></body>'
    dom = browser(page.replace("</body>", script), "--dump-dom")
    charts = len(draw_charts(read_evaluation(make.folder)))
    assert re.search("<title>(.*)</title>", dom)[1] == str(charts) == "10"
