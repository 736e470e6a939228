"""What is rendered: which filters, how many particles of which kind, how dirty, how sharp."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from microplastics.data.synthetic.particles import (
    BEAD,
    BEAD_CATEGORIES,
    CATEGORIES,
    FIBER,
    FILM,
    FRAGMENT,
)
from microplastics.errors import UserError

# Particles on one picture at most, whatever its size and preset.
MAX_PARTICLES = 400


@dataclasses.dataclass(frozen=True)
class Preset:
    """What pictures of one kind have in common.

    Attributes:
        about: what it is for, in a few words.
        filters: how often each filter of :mod:`.background` is drawn; the shares add up to 1.
        mix: how often each kind of particle is drawn, lowest layer first; they add up to 1.
        particles_per_256: particles on 256 x 256 px (median); 0 gives none at all.
        spread: standard deviation of the logarithm of their number.
        empty_share: share of the pictures without a particle.
        scale_bar_share: share of the pictures with a burnt-in scale bar.
        dirt: factor on the amount of natural debris, scratches and the filter's own loose fibres.
        bubbles: air bubbles on 256 x 256 px (mean).
        crossing: share of the fibres that are laid across another one.
        touching: share of the other particles that are set against another one.
        max_overlap: share of a particle that another may cover, neither being a fibre.
        max_crossing: share of a particle that another of its kind may cover.
        min_visible: share of a particle that must be left uncovered by all that lie on it.
        min_contrast: least colour difference (0 to 1) along most of a particle's contour.
        blur: range of the lens's blur, standard deviation in px.
    """

    about: str
    filters: Mapping[str, float]
    mix: Mapping[int, float]
    particles_per_256: float = 6.5
    spread: float = 0.5
    empty_share: float = 0.05
    scale_bar_share: float = 0.35
    dirt: float = 1.0
    bubbles: float = 0.12
    crossing: float = 0.25
    touching: float = 0.0
    max_overlap: float = 0.06
    max_crossing: float = 0.3
    min_visible: float = 0.6
    min_contrast: float = 0.13
    blur: tuple[float, float] = (0.35, 0.95)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The COCO categories: the project's three, or the single one of beads."""
        return BEAD_CATEGORIES if BEAD in self.mix else CATEGORIES

    def category_id(self, kind: int) -> int:
        """The COCO category id of a kind of particle."""
        return 1 if kind == BEAD else kind


_FILTERS = {
    "glass_fiber": 0.28,
    "cellulose": 0.28,
    "polycarbonate": 0.20,
    "nylon_mesh": 0.10,
    "dark_polycarbonate": 0.14,
}
_BEAD_FILTERS = {
    "gold_membrane": 0.34,
    "clear_membrane": 0.18,
    "black_membrane": 0.30,
    "glowing_membrane": 0.18,
}
_MIX = {FILM: 0.25, FRAGMENT: 0.29, FIBER: 0.46}
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": Preset("every filter, moderately laden", _FILTERS, _MIX),
        "glass-filter": Preset(
            "glass fibre mats, mostly fibres",
            {"glass_fiber": 1.0},
            {FILM: 0.16, FRAGMENT: 0.26, FIBER: 0.58},
        ),
        "cellulose": Preset(
            "cellulose ester felt with stains and printed grids",
            {"cellulose": 1.0},
            {FILM: 0.2, FRAGMENT: 0.3, FIBER: 0.5},
            dirt=1.3,
        ),
        "darkfield": Preset(
            "dark membranes on which particles shine",
            {"dark_polycarbonate": 1.0},
            _MIX,
            particles_per_256=8.0,
        ),
        "dense": Preset(
            "five times as many particles, touching and crossing",
            _FILTERS,
            {FILM: 0.13, FRAGMENT: 0.37, FIBER: 0.5},
            particles_per_256=32.0,
            spread=0.25,
            empty_share=0.0,
            crossing=0.5,
            touching=0.5,
            max_overlap=0.12,
            max_crossing=0.4,
            min_visible=0.5,
        ),
        "blank": Preset(
            "filters without a particle, but with all else: for false positives",
            _FILTERS,
            _MIX,
            particles_per_256=0.0,
            dirt=3.0,
            bubbles=0.6,
        ),
        "beads": Preset(
            "calibration spheres of one diameter a picture, bright and dark field",
            _BEAD_FILTERS,
            {BEAD: 1.0},
            particles_per_256=4.5,
            spread=0.6,
            scale_bar_share=0.0,
            dirt=0.25,
            bubbles=0.0,
            touching=0.45,
            min_contrast=0.035,
            blur=(0.8, 2.4),
        ),
    }
)


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset '{name}': choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
