import numpy as np
import pytest
import torch

from skinbook import keyed
from skinbook.augment import DRAWS, PLACE_AND_COLOUR, Augment, augmented, draws, grid

ZERO, ONE = torch.zeros(3), torch.ones(3)


def photographs(n=4, height=32, width=32):
    return torch.from_numpy((keyed.uniform("pixels", n * height * width * 3) * 256).astype(np.uint8)).view(
        n, height, width, 3
    )


def out(pixels, augment, u=None, size=None, masks=None):
    u = draws(0, 0, np.arange(len(pixels))) if u is None else u
    return augmented(pixels, augment, u, size or pixels.shape[1], ZERO, ONE, masks)


def as_images(pixels):
    return pixels.permute(0, 3, 1, 2).float() / 255


def test_no_augmentation_changes_nothing():
    pixels = photographs()
    plain, _ = augmented(pixels, None, None, 32, ZERO, ONE)
    assert torch.allclose(plain, as_images(pixels), atol=1e-6)
    identity, _ = out(pixels, Augment())
    assert torch.allclose(identity, as_images(pixels), atol=1e-5)


def test_normalisation_is_the_usual_one():
    pixels, mean, std = photographs(), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
    normal, _ = augmented(pixels, None, None, 32, mean, std)
    assert torch.allclose(normal, (as_images(pixels) - mean[:, None, None]) / std[:, None, None], atol=1e-5)


@pytest.mark.parametrize(("across", "down"), [(0.2, 0.8), (0.8, 0.2), (0.2, 0.2)])
def test_a_flip_is_a_flip_for_the_mask_too(across, down):
    pixels = photographs()
    masks = (pixels[..., 0] > 128).to(torch.uint8)
    u = torch.full((4, DRAWS), 0.5)
    u[:, 2], u[:, 3] = across, down
    flipped, held = out(pixels, Augment(flip=True), u, masks=masks)
    axes = [axis for axis, draw in ((3, across), (2, down)) if draw < 0.5]
    assert torch.allclose(flipped, as_images(pixels).flip(axes), atol=1e-5)
    assert torch.equal(held, masks[:, None].float().flip(axes))


def test_a_quarter_turn_is_a_quarter_turn():
    pixels = photographs()
    u = torch.full((4, DRAWS), 0.5)
    u[:, 0] = 1.0
    turned, _ = out(pixels, Augment(rotate=90), u)
    image = as_images(pixels)
    assert torch.allclose(turned, image.rot90(1, (2, 3)), atol=1e-4), "counterclockwise"
    u[:, 0] = 0.0
    turned, _ = out(pixels, Augment(rotate=90), u)
    assert torch.allclose(turned, image.rot90(-1, (2, 3)), atol=1e-4), "and clockwise"


def test_a_wide_photograph_gives_its_centre_square():
    pixels = photographs(height=24, width=32)
    square, _ = augmented(pixels, None, None, 24, ZERO, ONE)
    assert torch.allclose(square, as_images(pixels)[..., 4:28], atol=1e-5)


def test_nothing_comes_from_outside_the_frame():
    """Whatever the turn and the shift, a photograph of one colour stays one colour, and values stay in their range."""
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(8, 32, 32, 3).contiguous()
    moved, _ = out(colour, Augment(flip=True, rotate=180, zoom=(0.5, 2), shift=0.4))
    assert torch.allclose(moved, (torch.tensor([200, 100, 50]) / 255)[:, None, None].expand_as(moved), atol=1e-4)
    mask = torch.ones(8, 32, 32, dtype=torch.uint8)
    _, held = out(photographs(8), Augment(rotate=180, zoom=(0.5, 2), shift=0.4), masks=mask)
    assert set(held.unique().tolist()) == {1.0}


def test_colour_jitter_by_hand():
    pixels = photographs()
    u = torch.full((4, DRAWS), 0.5)
    u[:, 6] = 1.0
    assert torch.allclose(out(pixels, Augment(brightness=0.2), u)[0], as_images(pixels) * 1.2, atol=1e-5)
    u[:, 6], u[:, 7] = 0.5, 0.0
    assert torch.allclose(out(pixels, Augment(contrast=0.5), u)[0], as_images(pixels) * 0.5 + 0.25, atol=1e-5)
    u[:, 7], u[:, 8] = 0.5, 0.0
    grey = (as_images(pixels) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert torch.allclose(out(pixels, Augment(saturation=1.0), u)[0], grey.expand(-1, 3, -1, -1), atol=1e-5)
    u[:, 8], u[:, 9] = 0.5, 1.0
    turned, _ = out(pixels, Augment(hue=0.5), u)
    assert torch.allclose(
        (turned * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True), grey, atol=1e-3
    )
    assert not torch.allclose(turned, as_images(pixels), atol=0.05)


def test_every_photograph_has_its_own_draw_whatever_its_company():
    strong = Augment(flip=True, rotate=180, zoom=(0.8, 1.2), brightness=0.3, hue=0.1)
    pixels = photographs(1).expand(6, -1, -1, -1)
    together, _ = out(pixels, strong)
    assert all(not torch.allclose(together[0], together[k], atol=0.01) for k in range(1, 6))
    alone, _ = out(pixels[:1], strong, draws(0, 0, np.array([4])))
    assert torch.allclose(together[4], alone[0], atol=1e-6)
    assert not torch.equal(draws(0, 1, np.arange(6)), draws(0, 0, np.arange(6)))


def test_a_cutout_hides_one_square_and_nothing_else():
    """Its centre is where the draws say, it may stick out, it has the mean colour, and the mask stays whole."""
    pixels, mean = photographs(2), torch.tensor([0.4, 0.5, 0.6])
    u = torch.full((2, DRAWS), 0.5)
    u[0, PLACE_AND_COLOUR:] = torch.tensor([0.5, 0.25])  # across, down
    u[1, PLACE_AND_COLOUR:] = torch.tensor([1.0, 0.0])  # a corner: a quarter of the square lies inside
    masks = torch.ones(2, 32, 32, dtype=torch.uint8)
    hidden, held = augmented(pixels, Augment(cutout=0.25), u, 32, mean, ONE, masks)
    whole, _ = augmented(pixels, Augment(), u, 32, mean, ONE)
    expected = torch.zeros(2, 32, 32, dtype=torch.bool)
    expected[0, 4:12, 12:20] = True
    expected[1, :4, 28:] = True
    assert torch.equal((hidden == 0).all(1), expected)
    assert torch.equal(hidden[~expected[:, None].expand_as(hidden)], whole[~expected[:, None].expand_as(whole)])
    assert held.min() == 1


def test_a_cutout_lies_elsewhere_in_every_photograph_and_epoch_and_moves_no_other_draw():
    first, second = draws(0, 0, np.arange(6)), draws(0, 1, np.arange(6))
    assert len(torch.unique(first[:, PLACE_AND_COLOUR:])) == 12
    assert not torch.equal(first[:, PLACE_AND_COLOUR:], second[:, PLACE_AND_COLOUR:])
    counters = np.arange(6)[:, None] * PLACE_AND_COLOUR + np.arange(PLACE_AND_COLOUR)
    alone = keyed.uniform(("augment", 0, 0), counters).astype(np.float32)
    assert np.array_equal(first[:, :PLACE_AND_COLOUR].numpy(), alone)


def test_places_are_those_of_affine_grid():
    maps = torch.randn(3, 2, 3, dtype=torch.float64)
    expected = torch.nn.functional.affine_grid(maps, [3, 3, 7, 7], align_corners=False)
    assert torch.allclose(grid(maps, 7), expected)
