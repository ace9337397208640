"""Directions of texts: their largest values, components and angles, image by image."""

import torch

from overpaint.blocks.text_directions import along, cosines, largest


def test_the_largest_values_of_each_image_and_channel_are_kept():
    direction = torch.tensor([1.0, -4, 3, 2, 10, 40, -30, 20]).reshape(1, 2, 2, 2)
    kept = largest(direction, 0.5)
    assert kept.flatten().tolist() == [0, -4, 3, 0, 0, 40, -30, 0]
    assert torch.equal(largest(direction, 0.0), direction)
    assert torch.equal(largest(direction.half(), 0.5), kept.half())


def test_the_component_along_an_axis_is_of_each_image_alone():
    vectors, axes = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    axes[1] = 0
    parts = along(vectors, axes)
    assert torch.allclose(((vectors - parts) * axes).sum(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.equal(parts[1], torch.zeros_like(parts[1]))
    assert torch.allclose(along(vectors[2:], axes[2:]), parts[2:])
    assert torch.allclose(cosines(parts[::2], axes[::2]).abs(), torch.ones(2))
