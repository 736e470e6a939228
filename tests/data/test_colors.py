"""Colours of classes."""

from microplastics.data.colors import class_colors


def test_colors_are_distinct_and_stay_with_the_default_classes():
    assert class_colors(["Film", "Foam", "Fiber"])[::2] == [[0, 158, 115], [213, 94, 0]]
    many = class_colors([f"class {i}" for i in range(20)])
    assert len({tuple(color) for color in many}) == 20
    mixed = class_colors(["Fiber", *"abcdef"])
    assert len({tuple(color) for color in mixed}) == 7
