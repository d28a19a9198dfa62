"""Maps and their controls: the same as pytorch-grad-cam's, as cheap as promised, and the code that chapter 07 shows."""

import ast
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
from torch import nn

from skinbook import explain
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.networks import Backbone, Classifier

CHAPTER = Path(__file__).parent.parent / "chapters" / "07_grad_cam.md"
SIDE = 32


def tree(source):
    """The syntax tree of one function, as text, without its docstring."""
    found = ast.parse(textwrap.dedent(source)).body[0]
    if ast.get_docstring(found) is not None:
        found.body = found.body[1:]
    return ast.dump(found)


def shown(name):
    """The source of a function as the chapter's cells show it."""
    for cell in jupytext.read(CHAPTER).cells:
        if cell.cell_type == "code" and f"def {name}(" in cell.source:
            return next(ast.unparse(n) for n in ast.parse(cell.source).body if getattr(n, "name", None) == name)
    raise AssertionError(f"{CHAPTER.name} shows no {name}")


@pytest.mark.parametrize("name", ["pointing", "energy", "centred", "cascade"])
def test_the_chapter_shows_what_the_package_runs(name):
    assert tree(shown(name)) == tree(inspect.getsource(getattr(explain, name)))


def test_a_difference_between_chapter_and_package_is_seen():
    changed = inspect.getsource(explain.energy).replace("* masks", "* (1 - masks)")
    assert tree(shown("energy")) != tree(changed)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Classifier(Backbone("test_resnet", stride=8), 3).eval()


def photographs(count=10, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Batches(pixels, np.zeros(count), np.arange(count), batch_size=4, **options)


def by_library(network, batches, targets, layer, method="GradCAM"):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    inputs = torch.cat([batch.inputs for batch in batches.epoch()])
    asked = None if targets is None else [ClassifierOutputTarget(t) for t in targets]
    with getattr(pytorch_grad_cam, method)(network, [layer]) as cam:
        return cam(input_tensor=inputs, targets=asked)


@pytest.mark.parametrize("targets", [None, np.arange(10) % 3])
def test_maps_are_those_of_the_library(network, targets):
    found = explain.maps(network, photographs(), targets)
    assert found.shape == (10, SIDE, SIDE)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.allclose(found, by_library(network, photographs(), targets, network.backbone), atol=1e-5)


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_at_a_layer_before_a_relu_in_place(method, capfd):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(8)
    after = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), layer, *after).eval()
    targets = np.arange(4) % 3  # one batch, as the library is handed
    found = explain.maps(network, photographs(4), targets, layer, method)
    assert found.max() > 0.9
    assert np.allclose(found, by_library(network, photographs(4), targets, layer, explain.METHODS[method]), atol=1e-4)


def test_score_cam_says_nothing(network, capfd):
    explain.maps(network, photographs(2), method="score-cam")
    assert capfd.readouterr().err == ""


def test_tokens_become_a_grid():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=SIDE)

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, SIDE // 16, SIDE // 16)

    found = explain.maps(model, photographs(), layer=model.blocks[-1].norm1, reshape=grid)
    assert found.shape == (10, SIDE, SIDE)
    assert found.max() > 0.5


def test_the_network_is_left_as_it_was(network):
    network.head.bias.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    explain.maps(network, photographs())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert [p.requires_grad for p in network.head.parameters()] == [True, False]
    assert not network.backbone._forward_hooks
    network.head.bias.requires_grad_(True)
    assert network.backbone.model.conv1[0].weight.requires_grad


def test_what_cannot_be_mapped_is_said(network):
    with pytest.raises(SkinbookError, match="'cam' is not a method"):
        explain.maps(network, photographs(), method="cam")
    with pytest.raises(SkinbookError, match="not a layer of this network"):
        explain.maps(network, photographs(), layer=nn.Conv2d(3, 3, 1))
    with pytest.raises(SkinbookError, match="not a layer of this network"):
        explain.maps(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), photographs())
    with pytest.raises(SkinbookError, match="10 photographs need as many targets; got 3"):
        explain.maps(network, photographs(), np.zeros(3, int))
    for options in ({"shuffle": True}, {"augment": Augment(flip=True)}):
        with pytest.raises(SkinbookError, match="in order and as they are"):
            explain.maps(network, photographs(**options))


def test_maps_walk_once_there_and_once_back(network):
    """What that costs beside a training, `skinbook bench --parts grad-cam` measures."""
    walks = {"there": 0, "back": 0}

    def there(*_):
        walks["there"] += 1

    def back(*_):
        walks["back"] += 1

    hooks = [network.register_forward_hook(there), network.head.register_full_backward_hook(back)]
    explain.maps(network, photographs(10))
    for hook in hooks:
        hook.remove()
    assert walks == {"there": 3, "back": 3}  # of ten photographs, four at a time


MASK = np.zeros((2, 4, 4))
MASK[:, :2, :2] = 1


def test_pointing_and_energy():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 1], maps[0, 3, 3] = 0.9, 0.3
    maps[1, 2, 2] = 1
    assert explain.pointing(maps, MASK).tolist() == [True, False]
    assert np.allclose(explain.energy(maps, MASK), [0.75, 0], atol=1e-6)
    assert np.allclose(explain.energy(np.zeros((2, 4, 4)), MASK), 0.25)  # a blank map is spread evenly


def test_the_centred_map_has_the_same_values_and_falls_from_the_middle():
    maps = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    found = explain.centred(maps)
    assert found.dtype == maps.dtype
    assert np.array_equal(np.sort(found.reshape(3, -1)), np.sort(maps.reshape(3, -1)))
    assert (found[:, 3:5, 3:5].min(axis=(1, 2)) >= np.sort(maps.reshape(3, -1))[:, -4]).all()
    assert (found[:, 3, 4:-1] >= found[:, 3, 5:]).all()


@pytest.mark.parametrize(
    "targets", [[0, 1, 2, 7, 0, 1, 2, 0, 1, 2], [0] * 9 + [-1], [0.5] * 10, [0] * 9, [0] * 11], ids=str
)
def test_targets_that_are_no_classes_of_the_network_are_refused(network, targets):
    """The library took what was beyond for a good end, and gave the maps until then; -1 was the last class."""
    order = np.zeros((10, SIDE, SIDE), np.float32)
    with pytest.raises(SkinbookError, match="targets"):
        explain.maps(network, photographs(), np.array(targets))
    with pytest.raises(SkinbookError, match="targets"):
        explain.erased(network, photographs(), order, np.array(targets))


def test_an_index_error_of_the_network_is_no_good_end(network):
    class Breaks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.seen = network.backbone, 0

        def forward(self, inputs):
            self.seen += 1
            return network(inputs) if self.seen < 3 else [][0]

    with pytest.raises(IndexError):
        explain.maps(Breaks(), photographs())
    assert network.backbone._forward_hooks == {}


def test_erasing_takes_as_many_maps_as_photographs_and_a_blur_that_fits(network):
    order, targets = np.zeros((10, SIDE, SIDE), np.float32), np.zeros(10, int)
    with pytest.raises(SkinbookError, match="10 photographs need as many maps; got 9"):
        explain.erased(network, photographs(), order[:9], targets)
    for blur in (0, 0.8):
        with pytest.raises(SkinbookError, match="blur is"):
            explain.erased(network, photographs(), order, targets, blur=blur)
    assert explain.erased(network, photographs(), order, targets, steps=1, blur=0.6).shape == (10, 2)


def test_places_as_far_from_the_middle_are_filled_in_reading_order_on_every_processor():
    """The four corners of a square tie, and which of them came first was left to the processor's instructions."""
    side = 12
    found = explain.centred(np.arange(side * side, dtype=np.float32).reshape(1, side, side))[0]
    away = np.abs(np.arange(side) - (side - 1) / 2)
    distance = np.hypot(*np.meshgrid(away, away))
    for ring in np.unique(distance):
        assert (np.diff(found[distance == ring]) < 0).all()


def test_displaced_maps_keep_their_values_and_repeat():
    maps = np.random.default_rng(0).random((5, 8, 8)).astype(np.float32)
    found = explain.displaced(maps, seed=1)
    assert np.array_equal(np.sort(found.reshape(5, -1)), np.sort(maps.reshape(5, -1)))
    assert np.array_equal(found, explain.displaced(maps, seed=1))
    assert not np.array_equal(found, explain.displaced(maps, seed=2))
    assert not np.array_equal(found, maps)


def test_the_cascade_begins_with_the_last_layer_and_ends_with_all(network):
    inputs = next(photographs().epoch()).inputs
    before = {k: v.clone() for k, v in network.state_dict().items() if k.endswith("weight")}
    changed = []
    for found in explain.cascade(network, inputs, stages=3, seed=0):
        state = found.state_dict()
        changed.append([k for k, v in before.items() if not torch.equal(state[k], v)])
        assert not found.training
        assert torch.isfinite(found(inputs)).all()
    assert changed[0] == ["head.weight"]
    assert len(changed) == 4
    assert all(set(a) < set(b) for a, b in pairwise(changed))
    assert "backbone.model.conv1.0.weight" in changed[-1]
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())  # the network itself keeps its own


def test_similarity_is_a_rank_correlation():
    maps = np.random.default_rng(0).random((3, 4, 4))
    assert np.allclose(explain.similarity(maps, maps**3), 1)
    assert np.allclose(explain.similarity(maps, -maps), -1)
    assert np.allclose(explain.similarity(maps, np.zeros((3, 4, 4))), 0)


class Corner(nn.Module):
    """Says "1" the more, the brighter the upper left quarter is."""

    def forward(self, x):
        bright = x[:, :, : SIDE // 2, : SIDE // 2].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 8 * bright], 1)


def test_deletion_falls_and_insertion_rises_sooner_in_the_right_order():
    pixels = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2, : SIDE // 2] = 255
    batches = Batches(pixels, np.zeros(3), np.arange(3), batch_size=2)
    right, targets = (pixels[..., 0] / 255).astype(np.float32), np.ones(3, int)
    for insert, sign in ((False, -1), (True, 1)):
        good = explain.erased(Corner(), batches, right, targets, steps=4, insert=insert, blur=0.3)
        bad = explain.erased(Corner(), batches, 1 - right, targets, steps=4, insert=insert, blur=0.3)
        assert good.shape == (3, 5)
        assert np.allclose(good[:, [0, -1]], bad[:, [0, -1]])  # nothing and all are the same in any order
        assert (sign * (good[:, 1] - bad[:, 1]) > 0.02).all()
        assert (sign * (good[:, -1] - good[:, 0]) > 0).all()
