"""The U-Net with the book's backbones in its encoder, and what it answers."""

import numpy as np
import pytest
import torch

from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.networks import Backbone
from skinbook.segmentation import UNet, predict_masks

SMALL = (16, 16, 8, 8, 8)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenet_v2"])
def test_the_encoder_answers_as_the_backbone_whose_weights_it_took(name):
    weights = "lab" if name == "test_resnet" else "none"
    torch.manual_seed(0)
    network = UNet(name, weights, SMALL).eval()
    torch.manual_seed(0)  # so that weights that are drawn are drawn alike
    held = Backbone(name, weights).model.state_dict()
    prefix = "model." if name == "test_resnet" else "features."
    encoder = network.model.encoder.state_dict()
    assert {key.removeprefix(prefix) for key in encoder} <= set(held)
    assert all(torch.equal(value, held[key.removeprefix(prefix)]) for key, value in encoder.items())
    if weights == "lab":
        assert network.weights == "lab backbone"
        x = torch.randn(2, 3, 64, 64)
        deepest = Backbone(name, weights).eval()(x)
        assert torch.allclose(network.model.encoder(x)[-1], deepest, atol=1e-5)


def test_a_logit_for_every_pixel():
    assert UNet("test_resnet", decoder=SMALL).eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 64, 96)


def test_photographs_that_cannot_be_halved_five_times_are_refused():
    with pytest.raises(SkinbookError, match="multiples of 32"):
        UNet("test_resnet", decoder=SMALL)(torch.zeros(1, 3, 60, 60))
    with pytest.raises(SkinbookError, match="five steps"):
        UNet("test_resnet", decoder=(8, 8))


def test_predictions_come_in_order_and_are_probabilities():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    network = UNet("test_resnet", decoder=SMALL)
    rows = np.array([4, 1, 5])
    found = predict_masks(network, Batches(pixels, np.zeros(6), rows, batch_size=2))
    assert found.shape == (3, 32, 32)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    alone = predict_masks(network, Batches(pixels, np.zeros(6), rows[1:2]))
    assert np.allclose(found[1], alone[0], atol=1e-5)


def test_predictions_refuse_photographs_that_were_moved():
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(SkinbookError, match="in order and as they are"):
        predict_masks(UNet("test_resnet", decoder=SMALL), Batches(pixels, np.zeros(2), [0, 1], augment=Augment()))


@pytest.mark.parametrize("flip", [False, True])
def test_photograph_and_mask_move_together(flip):
    down, across = np.mgrid[:48, :48]
    masks = np.stack([(down - 15) ** 2 + (across - 28) ** 2 < 90, (down > 25) & (across < 20)]).astype(np.uint8)
    painted = np.repeat(255 * masks[..., None], 3, axis=-1)
    batches = Batches(painted, np.zeros(2), [0, 1], masks=masks, augment=Augment(flip=flip, rotate=45.0), seed=3)
    batch = next(batches.epoch())
    agree = (batch.inputs[:, :1] > 0) == (batch.masks > 0)
    assert agree.float().mean() > 0.98
    assert set(batch.masks.unique().tolist()) == {0.0, 1.0}
    assert (batch.masks[:, 0].numpy() != masks).mean() > 0.02
