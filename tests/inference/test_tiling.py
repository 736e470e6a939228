import pytest

from microplastics.config import get_cfg
from microplastics.errors import UserError
from microplastics.inference.tiling import Tiling, choose_tiling


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    return cfg


def test_an_image_like_the_trainings_is_predicted_whole(cfg):
    assert choose_tiling(cfg, (750, 1000), training_side=750) is None
    assert choose_tiling(cfg, (750, 1200), training_side=750) is None
    # Smaller ones are enlarged, as Detectron2 does.
    assert choose_tiling(cfg, (200, 200), training_side=750) is None
    assert choose_tiling(cfg, (9000, 9000), training_side=750, tile=0) is None


def test_windows_show_particles_as_large_as_the_training_did(cfg):
    assert choose_tiling(cfg, (9000, 12000), training_side=750) == Tiling(750, 188, 4, 800 / 750)
    # Without word of the training's images they count as not resized.
    assert choose_tiling(cfg, (9000, 12000)) == Tiling(800, 200, 4, 1.0)
    cfg.INPUT.TILE.SIZE = 400
    assert choose_tiling(cfg, (9000, 12000)) == Tiling(400, 100, 4, 2.0)


def test_the_largest_particle_decides_overlap_and_coarse_pass(cfg):
    size = (9000, 12000)
    assert choose_tiling(cfg, size, largest=300) == Tiling(800, 300, 0, 1.0)
    assert choose_tiling(cfg, size, largest=2000) == Tiling(800, 400, 3, 1.0)
    assert choose_tiling(cfg, size, largest=2000, coarse=False) == Tiling(800, 400, 0, 1.0)
    assert choose_tiling(cfg, (900, 1000), tile=800, overlap=32) == Tiling(800, 32, 2, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 10}, "--tile 10 is too small"),
        ({"overlap": 31}, "--overlap 31 is too small"),
        ({"largest": float("nan")}, "--largest nan is no length"),
        ({"tile": 100, "overlap": 60}, "more than half of the windows' 100 px"),
    ],
)
def test_numbers_that_do_not_agree_are_refused(cfg, options, words):
    for size in ((1, 1), (5000, 5000)):
        with pytest.raises(UserError, match=words):
            choose_tiling(cfg, size, **options)
