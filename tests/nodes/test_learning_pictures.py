"""The curve of a training can be read in every theme: its picture has no background of its own."""

import numpy as np
import pytest

from tests.nodes.pack import pack_module

draw_curve = pack_module("nodes.values.learning_pictures").draw_curve


def luminance(colour):
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    share = np.asarray(colour, dtype=float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", [(255, 255, 255), (38, 39, 41)], ids=["light", "dark"])
def test_contrast(background):
    """Text and curves stand out by 3:1, which WCAG asks of graphics and large text."""
    pixels = np.asarray(draw_curve([1, 0.5, 0.3, 0.1], 12, {2: 0.3, 4: 0.6}))
    assert pixels.shape[-1] == 4 and pixels[0, 0, 3] == 0
    opaque = pixels[pixels[..., 3] == 255][:, :3]
    assert len(opaque) > 500
    for colour in np.unique(opaque, axis=0):
        assert contrast(colour, background) > 3, colour
