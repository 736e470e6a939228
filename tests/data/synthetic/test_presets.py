import pytest

from microplastics.data.synthetic.background import DARK_FILTERS, render_filter
from microplastics.data.synthetic.particles import BEAD, FIBER, FILM, FRAGMENT, MAKERS
from microplastics.data.synthetic.presets import PRESETS, find_preset
from microplastics.errors import UserError


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_makes_sense(preset):
    assert sum(preset.filters.values()) == pytest.approx(1)
    assert sum(preset.mix.values()) == pytest.approx(1)
    assert set(preset.mix) <= set(MAKERS)
    for name in ("empty_share", "scale_bar_share", "crossing", "touching", "max_overlap"):
        assert 0 <= getattr(preset, name) <= 1
    assert preset.max_crossing <= 1 - preset.min_visible + 0.3
    ids = [category["id"] for category in preset.categories]
    assert {preset.category_id(kind) for kind in preset.mix} == set(ids)
    assert ids == list(range(1, len(ids) + 1))


def test_ids_are_those_of_the_project():
    kinds = [FIBER, FRAGMENT, FILM, BEAD]
    assert [find_preset("dense").category_id(kind) for kind in kinds[:3]] == [1, 2, 3]
    assert find_preset("beads").category_id(BEAD) == 1


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="no preset 'Default': choose one of default, glass-filt"):
        find_preset("Default")


@pytest.mark.parametrize("name", sorted({f for p in PRESETS.values() for f in p.filters}))
def test_every_filter_is_drawn_dark_or_bright(name):
    scene = render_filter((1, name), 96, {name: 1.0})
    assert scene.filter == name and scene.dark == (name in DARK_FILTERS)
    level = scene.canvas.mean()
    assert level < 0.6 if scene.dark else level > 0.25
