"""Scale bars as many programs draw them, independent of the renderer's own, with their truth."""

import dataclasses

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_DEJAVU = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
TEXTS = ("750 µm", "100 µm", "1 mm", "0.5 mm", "50µm", "200 um", "10 µm", "2.5 mm")
INKS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "yellow": (0, 255, 255),
    "red": (0, 0, 255),
    "green": (0, 255, 0),
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture with its bar's truth: length and left end in px, upper edge, thickness."""

    image: np.ndarray
    px: float
    x: float
    y: float
    thick: float
    text_box: tuple[int, int, int, int] | None
    style: dict


def draw_style(rng, width, height):
    """Choose how a bar is drawn."""
    whole = rng.random() < 0.6
    px = rng.uniform(0.1, 0.35) * width
    thick = rng.uniform(2, max(3, height / 50))
    return {
        "px": float(round(px) if whole else px),
        "thick": float(round(thick) if whole else thick),
        "whole": whole,
        "ticks": str(rng.choice(["none", "none", "both", "up", "down"])),
        "tick": int(rng.integers(1, 4)),
        "text": str(rng.choice(TEXTS)),
        "font": str(rng.choice(["dejavu", "pillow", "hershey"])),
        "font_px": int(rng.uniform(0.035, 0.075) * height) + 6,
        "place": str(rng.choice(["above", "above", "below", "left", "right"])),
        "plate": str(rng.choice(["none", "none", "none", "solid", "translucent"])),
        "outline": int(rng.choice([0, 0, 0, 1, 2])),
        "corner": str(rng.choice(["sw", "se", "nw", "ne", "s", "n"])),
        "margin": int(rng.integers(6, 20)),
        "ink": str(rng.choice(list(INKS), p=[0.42, 0.42, 0.06, 0.06, 0.04])),
    }


def thin_style(rng, width, height):
    """Choose a bar as many cameras' programs burn it in: 1 to 2 px thin, thin grey letters."""
    px = rng.uniform(0.1, 0.35) * width
    whole = rng.random() < 0.3
    return draw_style(rng, width, height) | {
        "px": float(round(px) if whole else px),
        "thick": float(rng.integers(1, 3) if whole else rng.uniform(1, 2)),
        "whole": whole,
        "shift": tuple(rng.uniform(0, 1, 2).tolist()),
        "ticks": str(rng.choice(["both", "both", "up", "none"])),
        "tick": float(rng.choice([1, 1.5, 2])),
        "reach": int(rng.integers(4, 9)),
        "font_px": int(rng.integers(11, 20)),
        "text_opacity": float(rng.uniform(0.5, 1)),
        "softness": float(rng.choice([0, 0, 0.4, 0.6])),
        "place": str(rng.choice(["above", "above", "above", "below"])),
        "plate": "none",
        "outline": 0,
        "ink": str(rng.choice(["black", "white"])),
    }


def plain_style(**changes):
    """A black bar of 120 x 4 px with "750 µm" above it, with some things changed."""
    style = draw_style(np.random.default_rng(0), 400, 300)
    style |= {"px": 120.0, "thick": 4.0, "whole": True, "ticks": "none", "tick": 2, "ink": "black"}
    style |= {"text": "750 µm", "font": "dejavu", "font_px": 18, "place": "above"}
    style |= {"plate": "none", "outline": 0, "corner": "se", "margin": 12}
    return style | changes


def draw_bar(image, style):
    """Burn a bar into a copy of a picture.

    Args:
        image: uint8 (H, W, 3), BGR.
        style: from :func:`draw_style`.

    Returns:
        The picture with its truth; None if the ink would not show or has no room.
    """
    height, width = image.shape[:2]
    text = _text(style)
    bar_w, bar_h, x, y, text_at, size = _layout(style, text)
    left, top = _corner(style, size, width, height)
    if left < 1 or top < 1 or left + size[0] >= width or top + size[1] >= height:
        return None
    shift = (0.0, 0.0) if style["whole"] else style.get("shift", (0.37, 0.61))
    x, y = left + x + shift[0], top + y + shift[1]
    cover = _rectangle(image.shape, x, y, bar_w, bar_h)
    for end in (x, x + bar_w - style["tick"]) if style["ticks"] != "none" else ():
        reach = _reach(style)
        up, down = (reach * (style["ticks"] in (way, "both")) for way in ("up", "down"))
        tick = _rectangle(image.shape, end, y - up, style["tick"], bar_h + up + down)
        cover = np.maximum(cover, tick)
    text_box = None
    if text is not None:
        u, v = left + text_at[0], top + text_at[1]
        letters = cv2.GaussianBlur(text / 255, (0, 0), style.get("softness") or 0.01)
        letters = letters * style.get("text_opacity", 1.0)
        cover[v : v + text.shape[0], u : u + text.shape[1]] = letters
        text_box = (u, v, text.shape[1], text.shape[0])
    ink = np.array(INKS[style["ink"]], np.float64)
    canvas = image.astype(np.float64)
    box = (slice(max(top - 4, 0), top + size[1] + 4), slice(max(left - 4, 0), left + size[0] + 4))
    contrary = 255.0 if ink @ (0.114, 0.587, 0.299) < 128 else 0.0
    if style["plate"] != "none":
        opacity = 1.0 if style["plate"] == "solid" else 0.6
        canvas[box] = canvas[box] * (1 - opacity) + contrary * opacity
    ground = canvas[box].reshape(-1, 3) @ (0.114, 0.587, 0.299)
    grey = ink @ (0.114, 0.587, 0.299)
    shows = np.percentile(np.abs(ground - grey), 4) > 60
    if style["outline"]:
        around = cv2.dilate(cover, np.ones((2 * style["outline"] + 1,) * 2))
        canvas += around[..., None] * (contrary - canvas)
    elif not shows:
        return None
    canvas += cover[..., None] * (ink - canvas)
    drawn = np.round(canvas).astype(np.uint8)
    return Drawn(drawn, bar_w, x, y, bar_h, text_box, style)


def as_jpeg(image, quality):
    """Compress a picture as JPEG and decode it, the colours at half the resolution."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def reader(image):
    """``read`` of a picture in memory."""
    return lambda x0, y0, x1, y1: image[y0:y1, x0:x1]


def _layout(style, text):
    """Bar's size and place, the text's place, and the size of both, in px from their corner."""
    bar_w, bar_h = style["px"], style["thick"]
    reach = _reach(style) if style["ticks"] != "none" else 0
    gap = 3 + style["outline"]
    tall, wide = (0, 0) if text is None else text.shape
    high = bar_h + 2 * reach
    if text is None:
        return bar_w, bar_h, 0, reach, (0, 0), (int(bar_w) + 2, int(high) + 2)
    if style["place"] in ("left", "right"):
        rows = int(max(tall, high)) + 2
        size = (int(bar_w) + 2 * gap + wide + 3, rows)
        x = 0 if style["place"] == "right" else wide + 2 * gap
        u = int(bar_w) + 2 * gap + 2 if style["place"] == "right" else 0
        return bar_w, bar_h, x, int((rows - bar_h) / 2), (u, (rows - tall) // 2), size
    columns = int(max(bar_w, wide)) + 2
    size = (columns, int(tall + gap + high) + 2)
    x, u = int((columns - bar_w) / 2), (columns - wide) // 2
    if style["place"] == "above":
        return bar_w, bar_h, x, tall + gap + reach, (u, 0), size
    return bar_w, bar_h, x, reach, (u, int(high) + gap), size


def _reach(style):
    """Rows that end ticks stand out."""
    return style.get("reach", round(1.5 * style["thick"]) + 2)


def _corner(style, size, width, height):
    where, margin = style["corner"], style["margin"]
    top = margin if "n" in where else height - margin - size[1]
    if len(where) == 1:
        return (width - size[0]) // 2, top
    return (margin if "w" in where else width - margin - size[0]), top


def _rectangle(shape, x, y, w, h):
    """Covered fraction of each pixel under a rectangle, exact."""

    def line(length, start, end):
        edges = np.arange(length + 1)
        return np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, 1)

    return np.outer(line(shape[0], y, y + h), line(shape[1], x, x + w))


def _text(style):
    """Ink of the text, uint8 (h, w), or None without a text."""
    text, size = style["text"], style["font_px"]
    if not text:
        return None
    if style["font"] == "hershey":
        text = text.replace("µ", "u")
        canvas = np.zeros((3 * size, 3 * size * len(text)), np.uint8)
        pen = max(1, size // 14)
        at = (size, 2 * size)
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 255, pen, cv2.LINE_AA)
    else:
        dejavu = style["font"] == "dejavu"
        font = ImageFont.truetype(_DEJAVU, size) if dejavu else ImageFont.load_default(size)
        text = text if dejavu else text.replace("µ", "u")
        picture = Image.new("L", (2 * size * len(text), 3 * size), 0)
        ImageDraw.Draw(picture).text((size, size), text, 255, font)
        canvas = np.asarray(picture)
    rows, columns = np.nonzero(canvas.any(1))[0], np.nonzero(canvas.any(0))[0]
    return canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
