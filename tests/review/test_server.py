"""The server of the page: who is answered, and what."""

import socket
import time

import cv2
import numpy as np
import pytest
import tifffile
from review_support import TOKEN, box, serving, write_annotations
from support import user_error

from microplastics.data.images import read_image
from microplastics.review import Review, ReviewImage, server, tiles
from microplastics.runs.images import RunOptions
from microplastics.writers.tables import write_csv


@pytest.fixture
def ask(review):
    with serving(review) as client:
        yield client


def test_only_the_page_on_this_machine_is_answered(ask):
    own = f"127.0.0.1:{ask.port}"
    assert ask("/")[0] == 200
    assert ask("/", Host=f"localhost:{ask.port}")[0] == 200
    assert ask("/api/state", Host=own, Origin=f"http://{own}")[0] == 200
    refused = [
        {"Host": "evil.example"},  # a name that was made to lead here
        {"Host": f"127.0.0.1.evil.example:{ask.port}"},
        {"Host": "["},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://{own}"},
    ]
    for headers in refused:
        assert ask("/api/state", **headers)[0] == 403, headers
        assert ask("/api/do", {"op": "undo"}, **headers)[0] == 403, headers
    for prefix in ("", "/", "/x", f"/{TOKEN}x", f"/{TOKEN[:-1]}"):
        assert ask("/api/state", prefix=prefix)[0] == 403, prefix


def test_a_websocket_is_refused(ask):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    assert ask("/api/state", Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==", **upgrade)[0] != 101


def test_the_page_asks_no_other_machine_and_no_path_leads_out(ask):
    status, content, headers = ask("/")
    assert status == 200 and b"http" not in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    for path in ("/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd", "/x.js"):
        assert ask(path)[0] == 404, path
    for path in ("/api/images/2", "/api/images/0/particles/99"):
        assert ask(path)[0] == 400, path
    for path in ("/api/images/0/0/1/0", "/api/images/0/99/0/0", "/api/images/0/0/-1/0"):
        assert ask(path)[0] == 404, path


REFUSED = [
    b"{",
    b"[" * 100_000,
    [],
    {"op": "close"},
    {"op": ["undo"]},
    {"op": "accept", "image": 0, "ids": 1, "version": 0, "reviewer": "a"},
    {"op": "accept", "image": 9, "ids": [1], "version": 0, "reviewer": "a"},
    {"op": "accept", "image": 0, "ids": [True], "version": 0, "reviewer": "a"},
    {"op": "accept", "image": 0, "ids": [1], "version": -1, "reviewer": "a"},
    {"op": "accept", "image": 0, "ids": [1], "version": 7, "reviewer": "a"},
    {"op": "accept", "image": 0, "ids": [1], "version": 0},
    {"op": "accept", "image": 0, "ids": [1], "version": 0, "reviewer": ""},
    {"op": "accept", "image": 0, "ids": [], "version": 0, "reviewer": "a"},
    {"op": "class", "image": 0, "ids": [1], "version": 0, "reviewer": "a", "class": {}},
    {"op": "class", "image": 0, "ids": [1], "version": 0, "reviewer": "a"},
    {"op": "cut", "image": 0, "ids": [1], "version": 0, "reviewer": "a", "line": [1, "x"]},
    {"op": "cut", "image": 0, "ids": [1], "version": 0, "reviewer": "a", "line": [[0, {}]]},
    {"op": "split", "image": 0, "ids": [1], "version": 0, "reviewer": "a", "pieces": [1, 2]},
    {"op": "draw", "image": 0, "version": 0, "reviewer": "a", "polygons": [[[[1e999, 0]]]]},
    {"op": "outline", "image": 0, "ids": [1, 2], "version": 0, "reviewer": "a"},
    {"op": "merge", "image": 0, "ids": [1], "version": 0, "reviewer": "a"},
    {"op": "undo", "image": 0, "version": 0, "reviewer": "a"},
]


def test_what_no_page_sends_is_refused_with_a_sentence(ask, review):
    for order in REFUSED:
        status, answer, _ = ask("/api/do", order)
        assert status == 400 and answer["error"].endswith("."), order
    assert review.version == 0


def test_a_request_of_any_size_is_not_read(ask):
    assert ask("/api/do", b" " * (server._MOST_BYTES + 1))[0] == 413


def test_two_tabs_do_not_overwrite_each_other(ask, review):
    status, answer = ask.do("class", [1], **{"class": "Film"})
    assert status == 200 and answer["version"] == 1 and answer["changed"] == [1]
    status, answer = ask.do("reject", [1], version=0, reviewer="ben")
    assert status == 409 and answer["code"] == "review_conflict" and "ada" in answer["error"]
    assert review.version == 1
    # What ben's tab learns when it asks, and then decides on.
    status, seen, _ = ask("/api/changes?since=0&reviewer=ben")
    (record,) = seen["particles"]["0"]
    assert (record["class"], record["state"], record["reviewer"]) == ("Film", "accepted", "ada")
    assert not seen["canUndo"]
    assert ask.do("reject", [1], version=seen["version"], reviewer="ben")[0] == 200


def test_every_operation_answers_with_what_it_changed(ask, review):
    outline = box(60, 5, 8, 4)[0]
    states = [record["state"] for record in ask("/api/images/0")[1]["particles"]]
    assert states == ["unseen"] * 3
    _, drawn = ask.do("draw", polygons=[outline], **{"class": "Film"})
    (record,) = drawn["particles"]["0"]
    assert (record["id"], record["area"], record["box"]) == (4, 32, [60, 5, 8, 4])
    row = review.table("a.png").set_index("particle").loc[4]
    assert record["feret_max"] == pytest.approx(row["feret_max_px"], rel=1e-5)
    _, cut = ask.do("cut", [4], version=1, line=[[64, 0], [64, 20]])
    assert sorted(each["state"] for each in cut["particles"]["0"]) == [
        *("accepted", "accepted", "gone")
    ]
    _, merged = ask.do("merge", [5, 6], version=2)
    assert {each["id"]: each.get("area") for each in merged["particles"]["0"]}[7] == 32
    _, back = ask.do("undo", version=3)
    assert back["canRedo"] and {5, 6} <= {each["id"] for each in back["particles"]["0"]}
    _, done = ask.do("finish", version=4)
    assert done["images"]["0"]["finished"] and "unseen" not in done["images"]["0"]["counts"]


def test_the_table_is_that_of_the_review(ask, review, tmp_path):
    ask.do("reject", [2])
    write_csv(review.table(), tmp_path / "table.csv")
    assert ask("/api/particles.csv")[1] == (tmp_path / "table.csv").read_bytes()


def test_the_uncertain_of_all_images(ask):
    found = ask("/api/uncertain")[1]
    assert found == {"left": 4, "images": 2, "next": [[1, 4], [0, 2], [0, 3], [0, 1]]}
    assert ask("/api/uncertain?image=0&id=3")[1]["next"] == [[0, 1], [1, 4], [0, 2], [0, 3]]
    ask.do("reject", [3])
    assert ask("/api/uncertain?image=0&id=3")[1]["next"] == [[0, 1], [1, 4], [0, 2]]
    assert ask("/api/uncertain?hide=Fiber&high=0.5")[1]["next"] == [[0, 2]]
    for odd in ("image=99&id=x", "image=-1&low=nan", "image=1e999&high=a"):
        assert ask(f"/api/uncertain?{odd}")[1]["left"] == 3, odd


def test_an_export_is_waited_for_at_the_end(review, monkeypatch):
    written = []

    def export(review, progress):
        time.sleep(0.5)
        written.append(review)
        return review.output

    monkeypatch.setattr(server, "export", export)
    with serving(review) as ask:
        assert ask("/api/export", {})[1]["running"]
    assert written == [review]


def test_read_only(review):
    with serving(review, read_only=True) as ask:
        assert ask("/api/state")[1]["readOnly"]
        assert ask.do("accept", [1])[0] == 403
        assert ask("/api/export", {})[0] == 403
    assert review.version == 0


@pytest.mark.parametrize("name", ["whole.tif", "photo.png"])
def test_tiles_show_the_photograph(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tiles, "_OVERVIEW", 400)  # levels 0 and 1 are read by region
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 255, (12, 22, 3), np.uint8), (1300, 700))
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, pixels, tile=(256, 256), photometric="rgb")
    else:
        cv2.imwrite(str(tmp_path / name), pixels)
    whole = read_image(str(tmp_path / name))
    image = ReviewImage(name, str(tmp_path / name), 1300, 700, None)
    with tiles.Tiles(RunOptions(output="")) as cut:
        for level in range(4):
            step = 512 << level
            for row in range(-(-700 // step)):
                for column in range(-(-1300 // step)):
                    coded = np.frombuffer(cut.tile(image, level, column, row), np.uint8)
                    tile = cv2.imdecode(coded, cv2.IMREAD_COLOR)
                    part = whole[row * step : (row + 1) * step, column * step :][:, :step]
                    size = [-(-length // 2**level) for length in part.shape[:2]]
                    assert np.abs(np.subtract(tile.shape[:2], size)).max() <= 1
                    wanted = cv2.resize(part, tile.shape[1::-1], interpolation=cv2.INTER_AREA)
                    assert cv2.absdiff(wanted, tile).mean() < 6  # of the JPEG
        assert cut.tile(image, 0, 3, 0) is None and cut.tile(image, 0, 0, 2) is None


def test_a_photograph_that_broke_meanwhile_is_named(tmp_path):
    source = write_annotations(tmp_path)
    with Review.open(source, images=str(tmp_path / "images")) as review, serving(review) as ask:
        (tmp_path / "images" / "a.png").write_bytes(b"no image")
        status, answer, _ = ask("/api/images/0/0/0/0")
        assert status == 400 and answer["code"] == "image_invalid" and "a.png" in answer["error"]
        assert ask("/api/images/1/0/0/0")[0] == 200


def test_what_is_missing_is_named(review, monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with user_error("dependency_missing", "starlette", "microplastics[review]"):
        server.serve(review, reviewer="ada")


def test_an_address_that_is_taken_is_named(review):
    with server._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with user_error("option_invalid", port):
            server.serve(review, reviewer="ada", port=port)
    with user_error("option_invalid", "192.0.2.1"):
        server.serve(review, reviewer="ada", host="192.0.2.1")


def test_other_machines_come_in_only_with_a_warning(review, monkeypatch, caplog, capsys):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    server.serve(review, reviewer="ada", browser=False)
    assert not caplog.records
    server.serve(review, reviewer="ada", browser=False, host="0.0.0.0")
    assert "open to other machines" in caplog.text
    assert f"http://{socket.gethostname()}:" in capsys.readouterr().out


def test_commands_open_the_page(annotations, cli, tmp_path):
    images = annotations.parent / "images"
    with server._listen("127.0.0.1", 0) as taken:
        at = ("--no-browser", "--port", taken.getsockname()[1])
        for command in (
            ("review", annotations, "--images", images, "--output", tmp_path / "out", *at),
            ("view", "page", f"{annotations}:{images}", *at),
            ("view", f"{annotations}:{images}", "--predictions", annotations, *at),
            ("view", f"{annotations}:{images}", "--augmented", 1, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
            + at,
        ):
            done = cli(*command)
            assert done.returncode == 2 and "expected an address" in done.stderr, done
    assert (tmp_path / "out" / "review.jsonl").exists()
    assert {each.name for each in annotations.parent.iterdir()} == {"images", "set.json"}
