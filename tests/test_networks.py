import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skinbook import keyed, networks
from skinbook.batches import Batches
from skinbook.config import SkinbookError, book_data
from skinbook.networks import SCRATCH, Backbone, Classifier, frozen_features, parameters


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SKINBOOK_WEIGHTS", raising=False)


def test_the_weights_that_the_page_on_data_tells_readers_to_make_are_found(tmp_path, monkeypatch):
    import torchvision

    page = (Path(__file__).parent.parent / "chapters" / "datasets.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    build, asked = torchvision.models.mobilenet_v2, []
    monkeypatch.setattr(
        torchvision.models, "mobilenet_v2", lambda weights: asked.append(weights) or build(weights=None)
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # the page's own lines
    monkeypatch.setattr(torchvision.models, "mobilenet_v2", build)
    assert asked == [torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1]
    monkeypatch.setenv("SKINBOOK_WEIGHTS", str(tmp_path / "weights"))
    found = Backbone("mobilenet_v2", "pretrained")
    assert (found.weights, found.mean) == ("mobilenet_v2.safetensors", networks.IMAGENET_MEAN)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("resnet18.bogus", "resnet18.a1_in1k, "),
        ("seresnet18.a1_in1k", "seresnet18.untrained"),
        ("resnet18.a1_in1k.a", ""),
    ],
)
def test_weights_that_timm_does_not_know_are_named_beside_those_it_does(name, known):
    with pytest.raises(SkinbookError, match=f"timm knows no weights '{name}'; of (se)?resnet18 it knows .*{known}"):
        Backbone(name)
    assert Backbone("test_resnet.r160_in1k").channels == 96


@pytest.mark.parametrize(("name", "channels"), [("test_resnet", 96), ("resnet18", 512), ("mobilenet_v2", 1280)])
def test_a_backbone_gives_a_feature_map(name, channels):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, channels, 2, 2)
    assert (backbone.channels, backbone.stride, backbone.weights) == (channels, 32, SCRATCH)


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "mobilenet_v2"])
def test_an_earlier_stage_gives_a_larger_map_and_carries_no_dead_weight(name):
    whole, early = Backbone(name), Backbone(name, stride=8).eval()
    with torch.no_grad():
        assert early(torch.zeros(1, 3, 64, 64)).shape == (1, early.channels, 8, 8)
    assert parameters(early) < parameters(whole)


@pytest.mark.parametrize(
    ("name", "stride", "earlier"),
    [
        ("test_resnet", None, [(32, 32), (32, 16), (48, 8), (192, 4)]),
        ("test_efficientnet", None, [(16, 32), (24, 16), (32, 8), (48, 4)]),
        ("test_convnext", None, [(24, 16), (32, 8), (48, 4)]),
        ("mobilenet_v2", None, [(16, 32), (24, 16), (32, 8), (96, 4)]),
        ("test_resnet", 8, [(32, 32), (32, 16)]),
        ("mobilenet_v2", 8, [(16, 32), (24, 16)]),
    ],
)
def test_the_maps_on_the_way_come_with_the_last_one(name, stride, earlier):
    backbone = Backbone(name, stride=stride).eval()
    x = torch.from_numpy(keyed.uniform("maps", 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)).float()
    with torch.no_grad():
        last, early = backbone.with_early_maps(x)
        torch.testing.assert_close(last, backbone(x))
    assert [(m.shape[1], m.shape[2]) for m in early] == earlier


def test_counts_of_parameters_are_pinned():
    assert parameters(Backbone("resnet18")) == 11_176_512
    assert parameters(Backbone("resnet34")) == 21_284_672
    assert parameters(Classifier(Backbone("test_resnet"), 8)) == 373_464


def test_what_is_not_there_is_said():
    with pytest.raises(SkinbookError, match="not a network"):
        Backbone("resnet1001")
    with pytest.raises(SkinbookError, match="no feature map of stride 5"):
        Backbone("test_resnet", stride=5)
    with pytest.raises(SkinbookError, match="expected none, pretrained or lab"):
        Backbone("test_resnet", "imagenet")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", r" \(Input height"),  # one size of photographs only
        ("test_vit", ""),  # tokens
        ("test_mambaout", ""),  # channels last
        ("inception_next_atto", r" \(Cannot disable pooling"),  # not without its classifier
    ],
)
def test_a_network_without_a_feature_map_of_any_size_is_refused(name, why):
    sentence = (
        f"{name} does not give a feature map of any size{why}.*; choose a convolutional network, such as resnet18"
    )
    with pytest.raises(SkinbookError, match=sentence):
        Backbone(name)


def test_stages_have_their_channels_first_where_the_last_map_has_not():
    assert Backbone("test_mambaout", stride=8).channels == 32


def test_every_network_of_the_book_is_taken():
    texts = [book_data(f"{name}.toml").read_text(encoding="utf-8") for name in ("models", "recipes", "systems")]
    names = {name for text in texts for name in re.findall(r'network = "(\w+)"', text)}
    assert len(names) > 8
    for name in names | {"mobilenetv3_small_050"}:
        assert Backbone(name).channels > 0


def test_pretrained_without_network_and_file_is_from_scratch_and_says_so(capsys):
    networks._tell_of_scratch.cache_clear()
    Backbone("test_resnet", "none")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert Backbone("test_resnet", "pretrained").weights == SCRATCH
    told = capsys.readouterr().err
    assert told.count("\n") == 1, "said once for each network"
    assert "No pretrained weights of test_resnet are at hand, so it learns from scratch" in told
    assert "holds test_resnet.safetensors, or go online" in told


def test_weights_that_a_hub_gave_before_are_found_without_a_network(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    networks._tell_of_scratch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(1)
    given = Backbone("test_resnet").model.state_dict()
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a1")
    (snapshot := repository / "snapshots" / "a1").mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(b"a pickle")
    assert Backbone("test_resnet", "pretrained").weights == SCRATCH
    save_file(given | {"fc.weight": torch.zeros(10, 96)}, snapshot / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    found = Backbone("test_resnet", "pretrained")
    assert (found.weights, capsys.readouterr().err) == ("timm hub: test_resnet.r160_in1k", "")
    assert found.mean == (0.5, 0.5, 0.5), "timm's for these weights, and not ImageNet's"
    assert all(torch.equal(value, given[key]) for key, value in found.model.state_dict().items())
    assert Backbone("test_resnet", "none").weights == SCRATCH
    (snapshot / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(SkinbookError, match=r"model\.safetensors cannot be read .*Fetch it again"):
        Backbone("test_resnet", "pretrained")


@pytest.mark.parametrize("name", ["mobilenet_v2", "seresnet18"])
def test_a_network_that_no_hub_holds_is_not_looked_for_there(name, monkeypatch, capsys):
    networks._tell_of_scratch.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("a hub was asked"))
    assert Backbone(name, "pretrained").weights == SCRATCH
    assert "go online" not in capsys.readouterr().err


def test_what_a_hub_raises_is_said_with_a_way_out(monkeypatch):
    class Refused(Exception):
        pass

    def refuse(*_, **__):
        raise Refused("429 Too Many Requests.\nfor url")

    monkeypatch.setattr(networks, "_hub_reachable", lambda name: True)
    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(SkinbookError, match=r"no weights of resnet18 \(429 Too Many Requests\)\. .* HF_HUB_OFFLINE=1"):
        Backbone("resnet18", "pretrained")


def weights_file(folder, name="mobilenet_v2", **about):
    torch.manual_seed(1)
    other = Backbone(name)
    state = {f"features.{k}": v.half() if v.is_floating_point() else v for k, v in other.model.state_dict().items()}
    file = folder / f"{name}_somewhere.safetensors"
    save_file(state, file, {"arch": f"torchvision.{name}", "mean": "0.5,0.5,0.5", "std": "0.25,0.5,0.5"} | about)
    return file, other


def test_a_local_file_is_loaded_with_its_normalisation(tmp_path, monkeypatch):
    file, other = weights_file(tmp_path)
    for place in (tmp_path, file):
        monkeypatch.setenv("SKINBOOK_WEIGHTS", str(place))
        backbone = Backbone("mobilenet_v2", "pretrained")
        assert backbone.weights == "mobilenet_v2_somewhere.safetensors"
        assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
        for (key, loaded), kept in zip(backbone.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(loaded, kept.half().float() if kept.is_floating_point() else kept), key
    assert Backbone("test_resnet", "pretrained").weights == SCRATCH


def test_a_file_of_a_network_with_a_longer_name_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINBOOK_WEIGHTS", str(tmp_path))
    nothing = {"x": torch.zeros(1)}
    for stem in ("mobilenetv4_conv_small_050", "mobilenetv4_conv_small_050.e3000_r224_in1k"):
        save_file(nothing, tmp_path / f"{stem}.safetensors")
    assert networks.local_weights("mobilenetv4_conv_small") is None
    assert networks.local_weights("mobilenetv4_conv_small_050") is not None
    named = tmp_path / "mobilenetv4_conv_small_035.safetensors"
    save_file(nothing, named, {"arch": "mobilenetv4_conv_small"})  # what it says goes over its name
    assert networks.local_weights("mobilenetv4_conv_small") == named
    named.unlink()
    save_file(nothing, tmp_path / "mobilenetv4_conv_small_a.safetensors", {"arch": "mobilenetv4_conv_small_035"})
    save_file(nothing, tmp_path / "mobilenetv4_conv_small_b.safetensors", {"arch": "mobilenetv4_conv_small"})
    assert networks.local_weights("mobilenetv4_conv_small").name == "mobilenetv4_conv_small_b.safetensors"


def test_a_file_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINBOOK_WEIGHTS", str(tmp_path))
    file, other = weights_file(tmp_path, arch="torchvision.resnet50")
    with pytest.raises(SkinbookError, match=r"holds weights of torchvision\.resnet50"):
        Backbone("mobilenet_v2", "pretrained")
    state = {k: v for k, v in other.model.state_dict().items() if k != "0.0.weight"}
    save_file(state, file)
    with pytest.raises(SkinbookError, match=r"does not fit mobilenet_v2: 0\.0\.weight"):
        Backbone("mobilenet_v2", "pretrained")
    file.write_bytes(b"not safetensors")
    with pytest.raises(SkinbookError, match="cannot be read"):
        Backbone("mobilenet_v2", "pretrained")
    monkeypatch.setenv("SKINBOOK_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(SkinbookError, match="does not exist"):
        Backbone("mobilenet_v2", "pretrained")


def test_frozen_features_come_in_the_order_of_the_rows_and_leave_the_backbone_as_it_was():
    pixels = (keyed.uniform("pixels", 10 * 64 * 64 * 3) * 256).astype(np.uint8).reshape(10, 64, 64, 3)
    backbone = Backbone("test_resnet").train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    rows = np.array([7, 2, 5, 9, 0])
    batches = Batches(pixels, np.zeros(10), rows, batch_size=2)
    pooled, tokens = frozen_features(backbone, batches), frozen_features(backbone, batches, pool=False)
    assert pooled.shape == (5, 96)
    assert tokens.shape == (5, 4, 96)
    assert torch.allclose(tokens.mean(1), pooled, atol=1e-5)
    (single,) = [b.inputs for b in Batches(pixels, np.zeros(10), np.array([5])).epoch()]
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(single).mean((2, 3))[0], pooled[2], atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
