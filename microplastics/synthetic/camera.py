"""From the filter to the file: lamp, lens, camera, dirt on both, scale bar."""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont


def generator(*key: int | str) -> np.random.Generator:
    """Make the counter-based generator that belongs to ``key``.

    Keys that differ in one entry give independent streams, so that an image depends on its own
    key alone and not on which process drew it or what was drawn before.

    Args:
        key: integers >= 0 and words; a word counts as its CRC-32.
    """
    entropy = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draw a smooth random field with structures of about ``cell`` pixels.

    Args:
        rng: where the numbers come from.
        shape: (height, width) in px.
        cell: size of the structures in px.

    Returns:
        float32 (height, width), mean about 0, standard deviation about 0.6 to 1.
    """
    height, width = shape
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    if cell <= 1:
        return grid[:height, :width]
    # A random shift of the grid: its knots are not to lie on the same pixels in every image.
    dy, dx = rng.random(2)
    scale = np.array([[1 / cell, 0, dx], [0, 1 / cell, dy]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, scale, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[float], falloff: float = 1.0
) -> np.ndarray:
    """Sum :func:`smooth_noise` over scales and bring it to standard deviation 1.

    Args:
        rng: where the numbers come from.
        shape: (height, width) in px.
        cells: structure sizes in px; the first has weight 1, each further one ``falloff`` times
            that of the one before.
        falloff: see ``cells``.

    Returns:
        float32 (height, width), mean 0, standard deviation 1.
    """
    field, weight = np.zeros(shape, np.float32), 1.0
    for cell in cells:
        field += weight * smooth_noise(rng, shape, cell)
        weight *= falloff
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def relief(height: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Slope of a height field towards the light: what makes a texture look raised.

    Args:
        height: float32 (H, W).
        light: unit vector (x, y) in the image that points to the light.

    Returns:
        float32 (H, W), positive on slopes that face the light.
    """
    height = np.asarray(height, np.float32)
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return -(dx * float(light[0]) + dy * float(light[1]))


def lognormal(
    rng: np.random.Generator, median: float, sigma: float, low: float, high: float
) -> float:
    """Draw one log-normal number, held within [low, high] (low wins where they cross)."""
    return float(max(low, min(high, median * np.exp(sigma * rng.standard_normal()))))


@dataclasses.dataclass
class Scene:
    """A picture while it is being drawn.

    Attributes:
        canvas: float32 (size, size, 3), BGR, 0 black to 1 white, changed in place.
        light: unit vector (x, y) in the image that points to the lamp.
        filter: name of the filter, or ``"photograph"``.
        dark: whether particles shine on a dark ground.
        cover: float32 (size, size), how much of each pixel of a photographed filter particles
            cover; None on a rendered one.
    """

    canvas: np.ndarray
    light: np.ndarray
    filter: str
    dark: bool
    cover: np.ndarray | None = None


_BAR_STEPS = (1, 2, 2.5, 5, 7.5)


def expose(
    rng: np.random.Generator, scene: Scene, blur_range: tuple[float, float] = (0.35, 0.95)
) -> np.ndarray:
    """Photograph a scene: uneven light, lens and camera.

    Args:
        rng: where the numbers come from.
        scene: the finished scene.
        blur_range: bounds of the lens's blur, standard deviation in px.

    Returns:
        uint8 (size, size, 3), BGR.
    """
    image = scene.canvas * _illumination(rng, scene.canvas.shape[0])
    camera = draw_camera(rng, blur_range)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    camera = dataclasses.replace(camera, demosaic=draw_demosaic(rng))
    return camera.sense(camera.focus(image), noise)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A lens and a sensor.

    Attributes:
        blur: of the lens, standard deviation in px.
        sharpening: strength of the camera's own sharpening, 0 for none.
        shot: photon noise of a white pixel, as a share of white.
        read: noise of a black pixel, as a share of white.
        demosaic: whether demosaicing spreads each pixel's noise over its neighbours.
    """

    blur: float
    sharpening: float
    shot: float
    read: float
    demosaic: bool = False

    def focus(self, image: np.ndarray) -> np.ndarray:
        """Blur and sharpen a picture, float32 (H, W, 3); a new array."""
        image = cv2.GaussianBlur(image, (0, 0), self.blur)
        if self.sharpening:
            # With its halo.
            image += self.sharpening * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
        return image

    def sense(self, image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Add noise and digitise.

        Args:
            image: float32 (H, W, 3), changed in place.
            noise: float32 (H, W, 3), independent standard normal numbers.

        Returns:
            uint8 (H, W, 3).
        """
        if self.demosaic:
            noise = cv2.GaussianBlur(noise, (0, 0), 0.6) * 2.0
        # Photon noise grows with the root of the signal, read noise does not (EMVA 1288).
        image += noise * np.sqrt(self.shot**2 * np.clip(image, 0, 1) + self.read**2)
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def draw_camera(rng: np.random.Generator, blur_range: tuple[float, float]) -> Camera:
    """Draw a camera, but for its demosaicing, which :func:`draw_demosaic` draws."""
    blur = rng.uniform(*blur_range)
    sharpening = rng.uniform(0.2, 0.6) if rng.random() < 0.3 else 0.0
    return Camera(blur, sharpening, rng.uniform(0.008, 0.03), rng.uniform(0.003, 0.01))


def draw_demosaic(rng: np.random.Generator) -> bool:
    """Draw whether a camera has a colour filter array."""
    return bool(rng.random() < 0.7)


def draw_cast(rng: np.random.Generator) -> np.ndarray:
    """Draw the colour of a lamp as the camera balances it, float64 (3,), BGR, about 1."""
    cast = np.array([(1, 1, 1), (0.84, 0.95, 1.03), (1.04, 1.0, 0.93), (0.95, 1.02, 0.98)])
    return cast[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])] + rng.normal(0, 0.015, 3)


def _illumination(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light over the field, float32 (size, size, 3): a lamp from one side, vignetting, a cast."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    cx, cy = rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.16)
    light = 1 + slope * (x * math.cos(angle) + y * math.sin(angle))
    light = light - rng.uniform(0.03, 0.22) * ((x - cx) ** 2 + (y - cy) ** 2) / 1.4
    light *= rng.uniform(0.84, 1.08)
    return light[..., None] * draw_cast(rng).astype(np.float32)


def scratch(rng: np.random.Generator, scene: Scene, amount: float = 1.0) -> None:
    """Draw a few scratches of the filter: hair-fine straight lines, lighter or darker.

    Args:
        rng: where the numbers come from.
        scene: changed in place.
        amount: factor on their number.
    """
    size = scene.canvas.shape[0]
    for _ in range(int(rng.poisson(0.6 * amount * size / 256))):
        start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        reach, bend = rng.uniform(20, 140), rng.normal(0, 0.05)
        heading = angle + bend * np.arange(5)
        step = reach / 5 * np.stack([np.cos(heading), np.sin(heading)], 1)
        points = np.concatenate([[start], start + np.cumsum(step, 0)])
        low = np.maximum(np.floor(points.min(0)).astype(int) - 3, 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + 4, size)
        if (high <= low).any():
            continue
        line = np.zeros((high - low)[::-1], np.uint8)
        fixed = np.round((points - low - 0.5) * 16).astype(np.int32)
        cv2.polylines(line, [fixed], False, 255, 1, cv2.LINE_AA, shift=4)
        soft = cv2.GaussianBlur(line.astype(np.float32) / 255, (0, 0), 0.5)
        depth = rng.uniform(0.02, 0.06) * rng.choice([-1, 1])
        scene.canvas[low[1] : high[1], low[0] : high[0]] += depth * soft[..., None]


def soil_lens(rng: np.random.Generator, scene: Scene) -> None:
    """Put dust on the camera: a few faint grey discs far out of focus."""
    size = scene.canvas.shape[0]
    veil = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.poisson(0.8))):
        x, y = rng.integers(0, size, 2)
        cv2.circle(veil, (int(x), int(y)), int(rng.uniform(3, 9)), int(rng.uniform(60, 255)), -1)
    if veil.any():
        soft = cv2.GaussianBlur(veil, (0, 0), 2.5).astype(np.float32) / 255
        scene.canvas *= 1 - rng.uniform(0.03, 0.08) * soft[..., None]


def plan_scale_bar(rng: np.random.Generator, size: int, um_per_px: float) -> dict | None:
    """Choose a scale bar: a round number of micrometres over an eighth to a third of the width.

    Args:
        rng: where the numbers come from.
        size: side of the image in px.
        um_per_px: micrometres per pixel.

    Returns:
        ``um``, ``px`` (drawn length, whole pixels), ``bbox`` ([x, y, width, height] of bar and
        number) and, under ``style``, what :func:`draw_scale_bar` needs; None where the number
        has no room in the image.
    """
    power = math.floor(math.log10(um_per_px * size * 0.125))
    lengths = [float(f"{s}e{p}") for p in range(power - 1, power + 3) for s in _BAR_STEPS]
    fitting = [um for um in lengths if 0.125 <= um / um_per_px / size <= 0.34]
    um = float(rng.choice(fitting))
    px, thick = round(um / um_per_px), int(rng.integers(2, max(3, size // 64) + 1))
    thick = min(thick, 8)
    text = bar_text(um)
    font_px = int(np.clip(size / 20, 9, 34) * rng.uniform(0.9, 1.3))
    text_width, text_height = _text_mask(text, font_px).shape[::-1]
    ticks = int(thick * 1.5) if rng.random() < 0.5 else 0
    gap = 3 + ticks
    width = max(px, text_width)
    height = text_height + gap + thick + ticks
    pad = int(rng.integers(5, max(6, size // 24) + 1))
    x = pad if rng.random() < 0.5 else size - pad - width
    y = pad if rng.random() < 0.3 else size - pad - height
    if width + 2 * pad > size or height + 2 * pad > size:
        return None
    style = {"text": text, "font_px": font_px, "thick": thick, "ticks": ticks, "gap": gap}
    style |= {"plate": bool(rng.random() < 0.25), "above": bool(rng.random() < 0.7)}
    return {"um": um, "px": px, "bbox": [x, y, width, height], "style": style}


def bar_text(um: float) -> str:
    """Write a length as instruments do: in nm, µm or mm."""
    if um >= 1000:
        return f"{um / 1000:g} mm"
    return f"{um:g} µm" if um >= 1 else f"{um * 1000:g} nm"


def draw_scale_bar(image: np.ndarray, bar: dict) -> None:
    """Burn a planned scale bar into a photograph.

    Args:
        image: uint8 (size, size, 3), BGR, changed in place.
        bar: from :func:`plan_scale_bar`.
    """
    x, y, width, height = bar["bbox"]
    style = bar["style"]
    ground = image[y : y + height, x : x + width].mean()
    ink = 0 if ground > 115 else 255
    if style["plate"]:
        plate = image[max(y - 3, 0) : y + height + 3, max(x - 3, 0) : x + width + 3]
        ink = 0 if ground > 60 else 255
        plate[:] = 255 - ink
    text = _text_mask(style["text"], style["font_px"])
    thick, ticks = style["thick"], style["ticks"]
    bar_x = (width - bar["px"]) // 2
    bar_y = len(text) + style["gap"] if style["above"] else ticks
    text_x, text_y = (width - text.shape[1]) // 2, 0 if style["above"] else height - len(text)
    mask = np.zeros((height, width, 1), np.float32)
    mask[text_y : text_y + len(text), text_x : text_x + text.shape[1], 0] = text / 255
    mask[bar_y : bar_y + thick, bar_x : bar_x + bar["px"]] = 1
    if ticks:
        for tick in (bar_x, bar_x + bar["px"] - 2):
            mask[bar_y - ticks : bar_y + thick + ticks, tick : tick + 2] = 1
    window = image[y : y + height, x : x + width]
    window[:] = np.round(window * (1 - mask) + ink * mask).astype(np.uint8)


def _text_mask(text: str, font_px: int) -> np.ndarray:
    """Ink of a line of text, uint8 (h, w), cut to what is inked.

    Pillow's own font has no µ: it is drawn as a u with a tail.
    """
    font = ImageFont.load_default(font_px)
    drawing = Image.new("L", (font_px * (len(text) + 2), font_px * 2), 0)
    pen, x = ImageDraw.Draw(drawing), font_px // 2
    for letter in text:
        pen.text((x, 0), "u" if letter == "µ" else letter, 255, font)
        if letter == "µ":
            _, top, _, bottom = font.getbbox("u")
            # The tail goes on where the ink of the left stem begins.
            left = int(np.nonzero(np.asarray(drawing)[:, int(x) :].any(0))[0][0]) + int(x)
            stem = max(1, round(font_px / 12)) - 1
            pen.rectangle((left, (top + bottom) // 2, left + stem, bottom + font_px // 5), 255)
        x += round(font.getlength("u" if letter == "µ" else letter))
    ink = np.asarray(drawing)
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def jpeg_quality(rng: np.random.Generator) -> int:
    """Draw the JPEG quality that a camera or an export was set to."""
    return int(rng.integers(84, 98))
