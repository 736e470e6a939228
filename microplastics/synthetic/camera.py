"""Light, lens, camera and scale bar of rendered photographs."""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

# Fraction of the cameras that have a colour filter array.
MOSAIC = 0.7


@dataclasses.dataclass
class Scene:
    """A picture while it is being drawn."""

    canvas: np.ndarray  # float (size, size, 3), BGR, 0 black to 1 white, changed in place
    light: np.ndarray  # unit vector (x, y) in the image that points to the lamp
    filter: str  # name of the filter, or "photograph"
    dark: bool  # whether particles shine on a dark ground
    # float32 (size, size), fraction of each pixel of a photographed filter that particles cover.
    cover: np.ndarray | None = None
    throw: float = 1.0  # factor on the distance of particles from their shadows
    faint: float = 0.0  # fraction of the fibres that are colourless and nearly transparent


@dataclasses.dataclass(frozen=True)
class Camera:
    """A lens and a sensor."""

    blur: float  # of the lens, standard deviation in px
    sharpening: float  # strength of the camera's own sharpening, 0 for none
    shot: float  # photon noise of a white pixel, as a fraction of white
    read: float  # noise of a black pixel, as a fraction of white

    def focus(self, image: np.ndarray) -> np.ndarray:
        """Blur and sharpen a picture, float32 (H, W, 3); a new array."""
        image = cv2.GaussianBlur(image, (0, 0), self.blur)
        if self.sharpening:
            # With its halo.
            image += self.sharpening * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
        return image

    def sense(self, image: np.ndarray, noise: np.ndarray, demosaic: bool) -> np.ndarray:
        """Add noise and digitise to uint8 (H, W, 3).

        ``image`` is changed in place; ``noise`` are independent standard normal numbers, which
        demosaicing spreads over neighbours; both are float32 (H, W, 3).
        """
        if demosaic:
            noise = cv2.GaussianBlur(noise, (0, 0), 0.6) * 2.0
        # Photon noise grows with the root of the signal, read noise does not (EMVA 1288).
        image += noise * np.sqrt(self.shot**2 * np.clip(image, 0, 1) + self.read**2)
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def generator(*key: int | str) -> Generator:
    """Make the counter-based generator of a key of integers >= 0 and words (their CRC-32).

    Keys that differ in one entry give independent streams: an image depends on its own key, not
    on the process that draws it or on what was drawn before.
    """
    entropy = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in key]
    return Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def smooth_noise(rng: Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draw a smooth random field with structures of ``cell`` px.

    Returns:
        float32 (height, width), mean about 0, standard deviation about 0.6 to 1.
    """
    height, width = shape
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    if cell <= 1:
        return grid[:height, :width]
    # A random shift of the grid: its knots must not lie on the same pixels in every image.
    dy, dx = rng.random(2)
    scale = np.array([[1 / cell, 0, dx], [0, 1 / cell, dy]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, scale, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)


def fractal_noise(
    rng: Generator, shape: tuple[int, int], cells: Sequence[float], falloff: float = 1.0
) -> np.ndarray:
    """Sum :func:`smooth_noise` of several cells, weighted by 1, ``falloff``, its square and so on.

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
    """Compute the slope of a height field, float32 (H, W), which makes a texture look raised.

    It is positive on slopes that face the light, a unit vector (x, y) in the image.
    """
    height = np.asarray(height, np.float32)
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return -(dx * float(light[0]) + dy * float(light[1]))


def walk(start: np.ndarray | tuple[float, float], heading: np.ndarray, step: float) -> np.ndarray:
    """Return the points (N + 1, 2) of a line from its start, N headings in rad and a step in px."""
    steps = step * np.stack([np.cos(heading), np.sin(heading)], 1)
    return np.concatenate([[start], start + np.cumsum(steps, 0)])


def expose(rng: Generator, scene: Scene, blur_range: tuple[float, float]) -> np.ndarray:
    """Photograph a finished scene: uneven light, lens and camera; uint8 (size, size, 3), BGR."""
    image = scene.canvas * _illumination(rng, scene.canvas.shape[0])
    camera = draw_camera(rng, blur_range)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return camera.sense(camera.focus(image), noise, rng.random() < MOSAIC)


def draw_camera(rng: Generator, blur_range: tuple[float, float]) -> Camera:
    """Draw a camera with a lens of a blur in ``blur_range`` (px)."""
    blur = rng.uniform(*blur_range)
    sharpening = rng.uniform(0.2, 0.6) if rng.random() < 0.3 else 0.0
    return Camera(blur, sharpening, rng.uniform(0.008, 0.03), rng.uniform(0.003, 0.01))


def draw_cast(rng: Generator) -> np.ndarray:
    """Draw the colour of a lamp as the camera balances it, float64 (3,), BGR, about 1."""
    cast = np.array([(1, 1, 1), (0.84, 0.95, 1.03), (1.04, 1.0, 0.93), (0.95, 1.02, 0.98)])
    return cast[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])] + rng.normal(0, 0.015, 3)


def scratch(rng: Generator, scene: Scene, amount: float) -> None:
    """Draw scratches of the filter: hair-fine, nearly straight lines, lighter or darker."""
    size = scene.canvas.shape[0]
    for _ in range(int(rng.poisson(0.6 * amount * size / 256))):
        start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        reach, bend = rng.uniform(20, 140), rng.normal(0, 0.05)
        window, line = draw_hairline(scene, walk(start, angle + bend * np.arange(5), reach / 5))
        if line.size:
            depth = rng.uniform(0.02, 0.06) * rng.choice([-1, 1])
            window += depth * cv2.GaussianBlur(line, (0, 0), 0.5)[..., None]


def draw_hairline(scene: Scene, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw a line of 1 px through points, float (N, 2), without changing the scene.

    Returns:
        The window of the canvas around the line, and the line, float32 (h, w), 0 to 1; both are
        empty outside the frame.
    """
    low = np.maximum(np.floor(points.min(0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 5, scene.canvas.shape[0])
    line = np.zeros(np.maximum(high - low, 0)[::-1], np.uint8)
    if line.size:
        fixed = np.round((points - low - 0.5) * 16).astype(np.int32)
        cv2.polylines(line, [fixed], False, 255, 1, cv2.LINE_AA, shift=4)
    window = scene.canvas[low[1] : low[1] + len(line), low[0] : low[0] + line.shape[1]]
    return window, line.astype(np.float32) / 255


def soil_lens(rng: Generator, scene: Scene) -> None:
    """Put dust on the camera: faint grey discs far out of focus."""
    size = scene.canvas.shape[0]
    veil = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.poisson(0.8))):
        x, y = rng.integers(0, size, 2)
        cv2.circle(veil, (int(x), int(y)), int(rng.uniform(3, 9)), int(rng.uniform(60, 255)), -1)
    if veil.any():
        soft = cv2.GaussianBlur(veil, (0, 0), 2.5).astype(np.float32) / 255
        scene.canvas *= 1 - rng.uniform(0.03, 0.08) * soft[..., None]


def defocus(rng: Generator, scene: Scene, blur: float) -> None:
    """Blur a scene ever more away from the plane in focus, by at most ``blur`` px.

    A tilted or bent ground leaves the depth of field on one side.
    """
    size = scene.canvas.shape[0]
    angle, axis = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, size, dtype=np.float32)
    depth = axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    depth = np.abs(depth - rng.uniform(-0.6, 0.6) + 0.2 * smooth_noise(rng, (size, size), size / 2))
    # Between three levels of blur, each pixel's is interpolated.
    level = np.clip(depth * rng.uniform(0.6, 2.0), 0, 2)[..., None]
    half, full = (
        cv2.GaussianBlur(scene.canvas, (0, 0), part * blur).astype(np.float32) for part in (0.5, 1)
    )
    near, far = np.minimum(level, 1), np.maximum(level - 1, 0)
    scene.canvas[:] = (scene.canvas * (1 - near) + half * near) * (1 - far) + full * far


def plan_caption(rng: Generator, size: int, image_height: int, bar: dict | None) -> dict | None:
    """Choose a line that a camera's software burns in, at the edge without the scale bar.

    Returns:
        ``text``, and ``bbox``, ``ink`` and ``plate`` as of :func:`plan_scale_bar`; None if it does
        not fit.
    """
    month, day, hour, minute = rng.integers((1, 1, 8, 0), (13, 29, 19, 60))
    number, zoom = int(rng.integers(1, 400)), rng.choice([0.67, 0.8, 1, 1.6, 2, 3.2, 4, 5])
    texts = (
        f"2024-{month:02d}-{day:02d} {hour:02d}:{minute:02d}",
        f"S{number:03d}  {zoom:g}x",
        f"Sample {number}  zoom {zoom:g}x  {day:02d}.{month:02d}.2024",
    )
    text = str(rng.choice(texts))
    ink = _text_mask(text, int(np.clip(size / 26, 9, 28) * rng.uniform(0.9, 1.3)))
    height, width = ink.shape
    pad = int(rng.integers(4, max(5, size // 30) + 1))
    if width + 2 * pad > size or 3 * (height + 2 * pad) > image_height:
        return None
    x = int(rng.choice([pad, (size - width) // 2, size - pad - width]))
    at_top = bar is None or bar["bbox"][1] > image_height // 2
    y = pad if at_top else image_height - pad - height
    ink = (ink / 255).astype(np.float32)[..., None]
    plate = bool(rng.random() < 0.4)
    return {"text": text, "bbox": [x, y, width, height], "ink": ink, "plate": plate}


def plan_scale_bar(
    rng: Generator, size: int, um_per_px: float, image_height: int | None = None
) -> dict | None:
    """Choose a scale bar: a round number of micrometres over an eighth to a third of the width.

    Args:
        size: width of the picture in px.
        image_height: its height in px; None for that of a square.

    Returns:
        ``um``, ``px`` (drawn length, whole pixels), ``bbox`` ([x, y, width, height] of bar and
        number), and for :func:`burn_in` ``ink`` (their pixels, 0 to 1) and ``plate``; None
        if the number does not fit.
    """
    power = math.floor(math.log10(um_per_px * size * 0.125))
    powers, steps = range(power - 1, power + 3), (1, 2, 2.5, 5, 7.5)
    lengths = [float(f"{step}e{power}") for power in powers for step in steps]
    fitting = [um for um in lengths if 0.125 <= um / um_per_px / size <= 0.34]
    um = float(rng.choice(fitting))
    px = round(um / um_per_px)
    thick = min(int(rng.integers(2, max(3, size // 64) + 1)), 8)
    font_px = int(np.clip(size / 20, 9, 34) * rng.uniform(0.9, 1.3))
    text = _text_mask(bar_text(um), font_px) / 255
    ticks = int(thick * 1.5) if rng.random() < 0.5 else 0
    gap = 3 + ticks
    width, height = max(px, text.shape[1]), len(text) + gap + thick + ticks
    pad = int(rng.integers(5, max(6, size // 24) + 1))
    x = pad if rng.random() < 0.5 else size - pad - width
    image_height = image_height or size
    y = pad if rng.random() < 0.3 else image_height - pad - height
    if width + 2 * pad > size or height + 2 * pad > image_height:
        return None
    plate, above = bool(rng.random() < 0.25), rng.random() < 0.7
    bar_x, text_x = (width - px) // 2, (width - text.shape[1]) // 2
    bar_y, text_y = (len(text) + gap, 0) if above else (ticks, height - len(text))
    ink = np.zeros((height, width, 1), np.float32)
    ink[text_y : text_y + len(text), text_x : text_x + text.shape[1], 0] = text
    ink[bar_y : bar_y + thick, bar_x : bar_x + px] = 1
    if ticks:
        for tick in (bar_x, bar_x + px - 2):
            ink[bar_y - ticks : bar_y + thick + ticks, tick : tick + 2] = 1
    return {"um": um, "px": px, "bbox": [x, y, width, height], "ink": ink, "plate": plate}


def bar_text(um: float) -> str:
    """Format a length in nm, µm or mm, as instruments do."""
    if um >= 1000:
        return f"{um / 1000:g} mm"
    return f"{um:g} µm" if um >= 1 else f"{um * 1000:g} nm"


def burn_in(image: np.ndarray, bar: dict) -> None:
    """Burn a planned scale bar or caption into a photograph, uint8 (H, W, 3), BGR."""
    x, y, width, height = bar["bbox"]
    window = image[y : y + height, x : x + width]
    ground = window.mean()
    color = 0 if ground > (60 if bar["plate"] else 115) else 255
    if bar["plate"]:
        image[max(y - 3, 0) : y + height + 3, max(x - 3, 0) : x + width + 3] = 255 - color
    window[:] = np.round(window * (1 - bar["ink"]) + color * bar["ink"]).astype(np.uint8)


def _illumination(rng: Generator, size: int) -> np.ndarray:
    """Draw the light over the field, float32 (size, size, 3): a lamp, vignetting, a cast."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    cx, cy = rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.16)
    light = 1 + slope * (x * math.cos(angle) + y * math.sin(angle))
    light = light - rng.uniform(0.03, 0.22) * ((x - cx) ** 2 + (y - cy) ** 2) / 1.4
    light *= rng.uniform(0.84, 1.08)
    return light[..., None] * draw_cast(rng).astype(np.float32)


def _text_mask(text: str, font_px: int) -> np.ndarray:
    """Draw a line of text, uint8 (h, w), cropped to the ink."""
    # Pillow's own font lacks µ: it is drawn as a u with a tail.
    font = ImageFont.load_default(font_px)
    drawing = Image.new("L", (font_px * (len(text) + 2), font_px * 2), 0)
    pen, x = ImageDraw.Draw(drawing), font_px // 2
    for letter in text:
        pen.text((x, 0), "u" if letter == "µ" else letter, 255, font)
        if letter == "µ":
            _, top, _, bottom = font.getbbox("u")
            # The tail starts below the left edge of the ink.
            left = int(np.nonzero(np.asarray(drawing)[:, int(x) :].any(0))[0][0]) + int(x)
            stem = max(1, round(font_px / 12)) - 1
            pen.rectangle((left, (top + bottom) // 2, left + stem, bottom + font_px // 5), 255)
        x += round(font.getlength("u" if letter == "µ" else letter))
    ink = np.asarray(drawing)
    x, y, width, height = cv2.boundingRect(ink)
    return ink[y : y + height, x : x + width]
