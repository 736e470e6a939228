"""What calibration spheres look like: lenses in bright field, lobes and rims in dark field."""

import dataclasses

import cv2
import numpy as np

from microplastics.data.synthetic.background import Scene
from microplastics.data.synthetic.fields import smooth_noise
from microplastics.data.synthetic.particles import Particle
from microplastics.data.synthetic.shading import Crop, contour_contrast

# Light that beads scatter in dark field, B G R, and how often.
_SCATTER = np.array([(0.95, 1.0, 0.97), (0.7, 0.98, 0.95), (0.25, 0.7, 1.0), (0.95, 0.8, 1.0)])
_SCATTER_SHARE = (0.5, 0.22, 0.13, 0.15)


@dataclasses.dataclass(frozen=True)
class SphereLook:
    """How one microscope at one focus shows spheres: shared by the beads of a picture.

    Attributes:
        ring: depth of the dark ring in bright field.
        width: width of rings as a share of the radius.
        core: brightness of the middle against the ground in bright field.
        tint: float64 (3,), B G R, colour of the middle.
        halo: strength of the light around the outline.
        lobes: number of spots that a dark field makes of a sphere's light, 0 for an even ring.
        turn: direction of the first of them in rad.
        middle: how far from the centre, in radii, a dark field's light comes.
        glare: overexposure in dark field.
    """

    ring: float
    width: float
    core: float
    tint: np.ndarray
    halo: float
    lobes: int
    turn: float
    middle: float
    glare: float


def sphere_look(rng: np.random.Generator, diameter: float) -> SphereLook:
    """Draw how a picture shows its beads.

    Args:
        rng: where the numbers come from.
        diameter: of the beads in px: large ones scatter from their rim, small ones from all over.
    """
    large = diameter > 46
    return SphereLook(
        ring=rng.uniform(0.08, 0.42),
        width=rng.uniform(0.12, 0.26) if large else rng.uniform(0.18, 0.34),
        core=rng.uniform(-0.08, 0.16) if large else rng.uniform(-0.3, 0.08),
        tint=np.array([0.95, 1.02, 0.96]) + rng.normal(0, 0.03, 3),
        halo=rng.uniform(0.0, 0.12),
        lobes=int(rng.choice([0, 4], p=[0.3, 0.7])),
        turn=rng.uniform(0, np.pi),
        middle=rng.uniform(0.82, 0.98) if large else rng.uniform(0.4, 0.72),
        glare=rng.lognormal(-0.2, 0.5),
    )


def paint_bead(
    rng: np.random.Generator,
    bead: Particle,
    scene: Scene,
    look: SphereLook,
    min_contrast: float,
) -> bool:
    """Paint a bead onto the scene; its light may reach a little beyond its outline.

    Args:
        rng: where the numbers come from.
        bead: what to paint; it may reach beyond the frame.
        scene: changed in place.
        look: how the picture shows spheres.
        min_contrast: least :func:`contour_contrast`.

    Returns:
        Whether it was painted: False, and the scene unchanged, where it comes out below
        ``min_contrast`` along its contour.
    """
    crop = Crop(bead, scene.canvas.shape[0], margin=8 + int(0.6 * bead.radius))
    rows, columns = np.mgrid[: crop.shape[0], : crop.shape[1]].astype(np.float32)
    x = columns + np.float32(crop.left + 0.5 - bead.core[0, 0])
    y = rows + np.float32(crop.top + 0.5 - bead.core[0, 1])
    polar = np.hypot(x, y) / np.float32(bead.radius), np.arctan2(y, x)
    coverage = crop.coverage(bead.outline)
    below = scene.canvas[crop.window]
    for _ in range(3):
        painter = _scattering if scene.dark else _refracting
        painted = painter(rng, below, polar, coverage, look, scene)
        # Beads of one batch do not all lie in the focal plane.
        blur = rng.uniform(0.0, 0.07) * bead.radius
        if blur > 0.3:
            painted = below + cv2.GaussianBlur(painted - below, (0, 0), blur)
        if contour_contrast(painted, below, coverage) >= min_contrast:
            scene.canvas[crop.window] = painted
            return True
    return False


def _refracting(
    rng: np.random.Generator,
    below: np.ndarray,
    polar: tuple[np.ndarray, np.ndarray],
    coverage: np.ndarray,
    look: SphereLook,
    scene: Scene,
) -> np.ndarray:
    """Bright field: a ball lens. Its rim bends the light away, its middle gathers it."""
    r, angle = polar
    depth = look.ring * rng.uniform(0.8, 1.2)
    # The condenser is never quite centred: one side of the ring is darker.
    toward = np.arctan2(scene.light[1], scene.light[0])
    depth = depth * (1 + 0.25 * np.cos(angle - toward))
    gain = 1 - depth * np.exp(-(((r - 1 + 0.6 * look.width) / look.width) ** 2))
    core = np.clip(1 - (r / 0.9) ** 2, 0, 1)
    gain = gain + (look.core + 0.06 * rng.standard_normal()) * core
    gain = gain + 0.5 * look.halo * np.exp(-(((r - 0.42) / 0.12) ** 2))
    tinted = gain[..., None] * (1 + coverage[..., None] * (look.tint - 1))
    halo = look.halo * np.exp(-(((r - 1.12) / 0.1) ** 2)) * (1 - coverage)
    # Red and blue come to focus in different planes: a violet and a green side.
    fringe = 0.05 * np.exp(-(((r - 1) / 0.12) ** 2)) * np.cos(angle - look.turn)
    tinted = tinted + fringe[..., None] * np.array([1.0, -0.6, 0.6])
    inside = below * np.clip(tinted, 0.1, 1.6)
    mix = coverage[..., None]
    return (below * (1 + halo[..., None]) * (1 - mix) + inside * mix).astype(np.float32)


def _scattering(
    rng: np.random.Generator,
    below: np.ndarray,
    polar: tuple[np.ndarray, np.ndarray],
    coverage: np.ndarray,
    look: SphereLook,
    scene: Scene,
) -> np.ndarray:
    """Dark field: light from the rim, in lobes where the lamps are few, with its glow around."""
    r, angle = polar
    ring = np.exp(-(((r - look.middle) / (0.5 * look.width + 0.1)) ** 2))
    lobes = 1.0
    if look.lobes:
        lobes = 0.15 + 0.85 * np.cos(0.5 * look.lobes * (angle - look.turn)) ** 4
    body = np.clip(1 - r**4, 0, 1) * rng.uniform(0.03, 0.2)
    light = look.glare * rng.uniform(0.7, 1.3) * (ring * lobes + body)
    light = light * (1 + 0.2 * smooth_noise(rng, r.shape, 4.0))
    glow = look.glare * (0.3 + look.halo * 4) * 0.16 * np.exp(-np.clip(r - 0.9, 0, 9) * 6)
    color = _SCATTER[rng.choice(len(_SCATTER), p=_SCATTER_SHARE)]
    # Lenses split the colours across the bead: one side greenish, the other violet.
    split = 0.2 * r * np.cos(angle - look.turn)
    color = color * (1 + split[..., None] * np.array([0.4, -1.0, 0.5]))
    light = np.clip(light, 0, None) * np.clip(coverage + 0.4 * (r < 1.15), 0, 1) + glow
    return np.clip(below + color * light[..., None], 0, 1.15).astype(np.float32)
