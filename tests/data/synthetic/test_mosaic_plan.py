import itertools

import numpy as np
import pytest
from pycocotools import mask as mask_util

from microplastics.data.synthetic.mosaic_plan import MosaicSettings, ground_of, plan_particles
from microplastics.data.synthetic.particles import FIBER, FILM, FRAGMENT
from microplastics.errors import UserError

SETTINGS = MosaicSettings(3000, 2.0, 4, 220, "default", "polycarbonate", None)


@pytest.fixture(scope="module")
def plan():
    return plan_particles(SETTINGS, progress=False)


def test_all_that_makes_stitching_hard_occurs(plan):
    laid, annotations = plan
    particles = [one.particle for one in laid]
    assert len(particles) == len(annotations) >= 200
    order = [p.category_id for p in particles]
    assert order == sorted(order, key=[FILM, FRAGMENT, FIBER].index) and set(order) == {1, 2, 3}
    lengths = [a["truth"]["length_um"] / 2 for a in annotations]
    assert max(lengths) == pytest.approx(0.3 * 3000) and sum(v > 400 for v in lengths) >= 3
    fibers = [p.outline for p in particles if p.category_id == FIBER]
    compact = [p.outline for p in particles if p.category_id != FIBER]
    crossing = sum(a.intersects(b) for a, b in itertools.combinations(fibers, 2))
    touching = sum(a.distance(b) < 1 for a, b in itertools.combinations(compact, 2))
    assert crossing > 15 and touching > 5


def test_particles_lie_where_the_sample_ran_through(plan):
    membrane = ground_of(SETTINGS).membrane
    assert membrane.deposit_radius < membrane.radius < 1500
    for one in plan[0]:
        edge = np.asarray(one.particle.outline.exterior.coords) - membrane.center
        assert np.hypot(*edge.T).max() < membrane.deposit_radius


def test_annotations_are_those_of_the_masks(plan):
    ratios = []
    for annotation in plan[1]:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            (rle,) = mask_util.frPyObjects(rle, 3000, 3000)
        assert mask_util.area(rle) == annotation["area"]
        assert mask_util.toBbox(rle).tolist() == annotation["bbox"]
        assert not annotation["touches_edge"]
        ratios.append(annotation["area"] * 4 / annotation["truth"]["area_um2"])
    assert np.median(ratios) == pytest.approx(1, abs=0.005)
    assert any(isinstance(a["segmentation"], dict) for a in plan[1])


def test_each_particle_has_a_look_of_its_own(plan):
    assert len({one.look for one in plan[0]}) == len(plan[0])


def test_without_a_number_the_preset_says_how_many():
    for preset, expected in (("default", 10), ("dense", 50), ("blank", 0)):
        settings = MosaicSettings(1024, 2.0, 0, None, preset, None, None)
        assert settings.count(ground_of(settings).membrane) == pytest.approx(expected, rel=0.15)
    settings = MosaicSettings(1024, 2.0, 0, None, "blank", None, None)
    assert plan_particles(settings, progress=False) == ([], [])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 1023}, "--size is 1023: give a side between 1024 and 40000 px"),
        ({"size": 40001}, "--size is 40001"),
        ({"um_per_px": float("nan")}, "--um-per-px is nan: give micrometres per pixel"),
        ({"um_per_px": 0.0}, "--um-per-px is 0"),
        ({"seed": -1}, "--seed is -1: give 0 or more"),
        ({"particles": -1}, "--particles is -1: give between 0 and 50000"),
        ({"particles": 50001}, "--particles is 50001"),
        ({"jpeg_quality": 0}, "--jpeg-quality is 0: give 1 to 100"),
        ({"preset": "mud"}, "no preset 'mud'"),
        ({"preset": "beads"}, "--preset beads has no whole filter"),
        ({"filter_name": "nylon_mesh"}, "no whole filter 'nylon_mesh': choose one of glass_fiber"),
    ],
)
def test_nonsense_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        MosaicSettings(**{**vars(SETTINGS), **change}).check()
