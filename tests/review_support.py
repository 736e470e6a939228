"""A small data set to review, outlines to draw on it, and the server of its page."""

import contextlib
import http.client
import json
import threading
import time

import cv2
import numpy as np

from microplastics.review import server, tiles

CLASSES = ["Fiber", "Film"]
TOKEN = "token-of-the-test"


def box(x, y, width=10, height=10):
    """Polygons of a rectangle, as operations take them."""
    return [[[[x, y], [x + width, y], [x + width, y + height], [x, y + height]]]]


def write_annotations(folder):
    """Write two photographs with four squares of 10 px, and return their COCO JSON."""
    (folder / "images").mkdir()
    images, found = [], []
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a.png", "b.png"], start=1):
        pixels = rng.integers(60, 120, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / name), pixels)
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
    for image, x, y in (1, 5, 5), (1, 25, 5), (1, 50, 30), (2, 10, 10):
        ((outline,),) = box(x, y)
        number = len(found)
        found.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": 1 + number % 2,
                "bbox": [x, y, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": [np.ravel(outline).tolist()],
                "score": [0.9, 0.4, 0.7, 0.55][number],
            }
        )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    data = {"images": images, "annotations": found, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
    return folder / "set.json"


class Client:
    """Asks the server over a real connection."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, order=None, prefix=f"/{TOKEN}", **headers):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(link):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            body = order if isinstance(order, bytes | None) else json.dumps(order)
            link.request("POST" if body else "GET", prefix + path, body, headers)
            answer = link.getresponse()
            content = answer.read()
        if answer.getheader("Content-Type", "").startswith("application/json"):
            content = json.loads(content)
        return answer.status, content, answer.headers

    def do(self, op, ids=(), version=0, **fields):
        order = {"op": op, "image": 0, "ids": list(ids), "version": version, "reviewer": "ada"}
        return self("/api/do", {**order, **fields})[:2]


@contextlib.contextmanager
def serving(review, **how):
    import uvicorn

    listening = server._listen("127.0.0.1", 0)
    with tiles.Tiles(review.options) as cut:
        app = server.application(review, cut, TOKEN, reviewer="ada", **how)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            yield Client(listening.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join()
