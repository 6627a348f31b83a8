"""Every metric as `evaluate.load` gives it: the numbers of other libraries and of calculations by hand."""

import json

import evaluate
import numpy as np
import pytest
from PIL import Image
from skimage import metrics

from alit_hf.evaluation import frechet
from alit_hf.evaluation.metrics import metric_path
from alit_hf.networks import efficientnet_lite
from alit_hf.networks.lpips import download_lpips_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def load(name: str) -> evaluate.EvaluationModule:
    return evaluate.load(metric_path(name))


@pytest.fixture
def pairs() -> tuple[list[Image.Image], list[Image.Image]]:
    """Pictures of different sizes and the same with noise."""
    random = np.random.default_rng(0)
    originals = [random.integers(0, 256, (40 + 3 * n, 48, 3), dtype=np.uint8) for n in range(3)]
    noisy = [
        (picture + random.normal(0, 9 * (n + 1), picture.shape)).clip(0, 255) for n, picture in enumerate(originals)
    ]
    return [Image.fromarray(picture.astype(np.uint8)) for picture in noisy], list(map(Image.fromarray, originals))


def arrays(pairs):
    return [tuple(np.asarray(picture) / 255 for picture in pair) for pair in zip(*pairs, strict=True)]


def compute(name, pairs, **kwargs):
    return load(name).compute(predictions=pairs[0], references=pairs[1], **kwargs)


def test_l1(pairs):
    expected = np.mean([np.abs(a - b).mean() for a, b in arrays(pairs)])
    assert compute("l1", pairs) == {"l1": pytest.approx(expected, rel=1e-5)}


def test_psnr(pairs):
    expected = np.mean([metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in arrays(pairs)])
    assert compute("psnr", pairs) == {"psnr": pytest.approx(expected, rel=1e-5)}


def test_psnr_of_equal_pictures_is_a_number(pairs):
    assert compute("psnr", (pairs[1], pairs[1])) == {"psnr": 100}


def test_ssim(pairs):
    options = {"data_range": 1, "channel_axis": -1, "gaussian_weights": True, "sigma": 1.5}
    expected = [metrics.structural_similarity(b, a, use_sample_covariance=False, **options) for a, b in arrays(pairs)]
    assert compute("ssim", pairs) == {"ssim": pytest.approx(np.mean(expected), abs=1e-3)}


def test_lpips(pairs):
    download_lpips_weights()
    near = compute("lpips", pairs)["lpips_alex"]
    far = compute("lpips", (pairs[0], [picture.rotate(180) for picture in pairs[1]]))["lpips_alex"]
    assert 0 < near < far
    assert compute("lpips", (pairs[1], pairs[1])) == {"lpips_alex": 0}


def test_frechet_distance(pairs, monkeypatch):
    efficientnet_lite.download_efficientnet_weights("efficientnet-lite0")
    with pytest.raises(ValueError, match="at least 256 images"):
        compute("frechet_distance", pairs)
    monkeypatch.setattr(frechet, "MIN_IMAGES", 2)
    assert compute("frechet_distance", (pairs[1], pairs[1])) == {
        "frechet_efficientnet_lite0": pytest.approx(0, abs=1e-2)
    }
    assert compute("frechet_distance", pairs)["frechet_efficientnet_lite0"] > 1


IDS = [[0, 1, 1, 5, -1, -1], [1, 1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codebook_usage", 3 / 8),
        ("codebook_perplexity", (1 / 6) ** (-2 / 6) * (4 / 6) ** (-4 / 6)),
        ("bits_per_image", 6 * 3 / 2),
    ],
)
def test_codebook(name, expected):
    assert load(name).compute(predictions=IDS, codebook_size=8) == {name: pytest.approx(expected, rel=1e-6)}


@pytest.mark.parametrize("name", ["codebook_usage", "codebook_perplexity", "bits_per_image"])
def test_ids_that_the_codebook_does_not_have(name):
    with pytest.raises(ValueError, match="go up to 5, they must be below `codebook_size`, 5"):
        load(name).compute(predictions=IDS, codebook_size=5)


def test_sizes_must_match(pairs):
    with pytest.raises(ValueError, match=r"prediction 0 is of size \(48, 40\), its reference of \(48, 46\)"):
        compute("l1", (pairs[0], pairs[1][::-1]))


def test_batches_and_json(pairs):
    metric = load("l1")
    for prediction, reference in zip(*pairs, strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert json.loads(json.dumps(metric.compute())) == compute("l1", pairs)


def test_unknown_metric():
    with pytest.raises(ValueError, match=r"'fid'.*frechet_distance.*lpips"):
        metric_path("fid")
