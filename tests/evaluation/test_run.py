"""The numbers of an evaluation are those that the model's own calls and other libraries give image by image."""

import copy
import dataclasses
import json
import threading
import weakref

import numpy as np
import pytest
import torch
from lively_model import lively_model
from PIL import Image, features
from skimage import metrics
from thread_processes import in_processes

from alit_hf.data.images import open_images
from alit_hf.evaluation import frechet
from alit_hf.evaluation import run as run_module
from alit_hf.evaluation.description import describe_crop
from alit_hf.evaluation.report import results_table
from alit_hf.evaluation.run import evaluate_model
from alit_hf.evaluation.settings import EvaluationSettings, SettingsError
from alit_hf.evaluation.yardsticks import CODECS, fitting_files
from alit_hf.networks.lpips import LPIPS


SETTINGS = EvaluationSettings(thresholds=(0.1,), lpips_networks=(), batch_size=3)


def without_speed(results: dict) -> dict:
    """What must be the same on every run."""
    results = copy.deepcopy(results)
    for numbers in [*results["lengths"].values(), *results["adaptive"], results["base"]]:
        for name in [name for name in numbers if name.endswith("_per_second")]:
            assert numbers.pop(name) > 0
    return results


@pytest.fixture(scope="module")
def scores(model, pixel_values) -> torch.Tensor:
    """L1 before clamping of every image at every length, (7, 3)."""
    with torch.no_grad():
        pictures = [
            model.encode(pixel_values, num_tokens=length, return_reconstruction=True).reconstruction
            for length in (4, 8, 12)
        ]
    return torch.stack([(picture - pixel_values).abs().mean(dim=(1, 2, 3)) for picture in pictures], dim=1)


@pytest.fixture(scope="module")
def thresholds(scores) -> tuple[float, ...]:
    """What all images reach at once, what one reaches at its second length, what some reach, and what none does."""
    improved = (scores[:, 0] - scores[:, 1]).argmax()
    best = scores.min(dim=1).values.sort().values
    return (10.0, scores[improved, :2].mean().item(), ((best[1] + best[2]) / 2).item(), 0.0)


@pytest.fixture(scope="module")
def results(model, processor, images, thresholds) -> dict:
    return evaluate_model(model, processor, images, dataclasses.replace(SETTINGS, thresholds=thresholds))


@pytest.mark.parametrize("length", [4, 8, 12])
def test_scores_of_a_length_are_means_over_clamped_pictures(results, model, pixel_values, length):
    with torch.no_grad():
        ids = model.encode(pixel_values, num_tokens=length).token_ids
        decoded = model.decode(token_ids=ids).pixel_values
    assert ((decoded < 0) | (decoded > 1)).any()
    made, original = decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy(), pixel_values.permute(0, 2, 3, 1).numpy()
    numbers = results["lengths"][str(length)]
    assert numbers["l1"] == pytest.approx(np.abs(made - original).mean(), abs=2e-6)
    pairs = list(zip(original, made, strict=True))
    psnr = np.mean([metrics.peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs])
    assert numbers["psnr"] == pytest.approx(psnr, abs=1e-3)
    ssim = np.mean(
        [
            metrics.structural_similarity(
                *pair, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for pair in pairs
        ]
    )
    assert numbers["ssim"] == pytest.approx(ssim, abs=1e-3)
    assert numbers["codebook_usage"] == pytest.approx(len(ids.unique()) / 64, abs=1e-6)
    frequencies = ids.flatten().bincount() / ids.numel()
    entropy = -sum(p * np.log(p) for p in frequencies.tolist() if p)
    assert numbers["codebook_perplexity"] == pytest.approx(np.exp(entropy), rel=1e-4)
    assert (numbers["bits"], numbers["bytes"]) == (length * 6, length * 6 / 8)


def test_adaptive_lengths_are_those_of_encode(results, model, pixel_values, thresholds):
    seen = set()
    for threshold, numbers in zip(thresholds, results["adaptive"], strict=True):
        with torch.no_grad():
            code = model.encode(pixel_values, threshold=threshold, return_reconstruction=True)
        assert numbers["threshold"] == threshold
        assert numbers["mean_tokens"] == pytest.approx(code.num_tokens.float().mean().item(), abs=1e-6)
        assert numbers["satisfied"] == pytest.approx(code.satisfied.float().mean().item(), abs=1e-6)
        lengths = code.num_tokens.tolist()
        assert numbers["images_by_length"] == {str(length): lengths.count(length) for length in (4, 8, 12)}
        l1 = (code.reconstruction.clamp(0, 1) - pixel_values).abs().mean().item()
        assert numbers["l1"] == pytest.approx(l1, abs=2e-6)
        ids = code.token_ids[code.token_ids >= 0]
        assert numbers["codebook_usage"] == pytest.approx(len(ids.unique()) / 64, abs=1e-6)
        assert numbers["bits"] == pytest.approx(6 * numbers["mean_tokens"], abs=1e-5)
        seen.update(lengths)
    assert seen == {4, 8, 12}
    assert results["adaptive"][0]["satisfied"] == 1
    assert results["adaptive"][-1]["satisfied"] == 0


def test_share_of_satisfied_images_at_a_fixed_length(results, scores, thresholds):
    for threshold, numbers in zip(thresholds, results["adaptive"], strict=True):
        shares = (scores < threshold).float().mean(dim=0).tolist()
        assert list(numbers["satisfied_by_length"].values()) == pytest.approx(shares, abs=1e-6)


def test_base_is_the_round_trip_of_quantised_codes(results, model, pixel_values):
    vq = model.base_tokenizer.model
    with torch.no_grad():
        latents = vq.encode(pixel_values).latents
        pictures = vq.decode(latents).sample  # quantises
        ids = vq.quantize(latents)[2][2]
    l1 = (pictures.clamp(0, 1) - pixel_values).abs().mean().item()
    assert results["base"]["l1"] == pytest.approx(l1, abs=2e-6)
    assert results["base"]["codebook_usage"] == pytest.approx(len(ids.unique()) / 32, abs=1e-6)
    assert results["base"]["bits"] == 64 * 5


def test_yardsticks_are_made_of_what_the_model_sees(results, pixel_values):
    assert {length: (row["width"], row["height"]) for length, row in results["thumbnail"].items()} == {
        "4": (1, 1),
        "8": (2, 1),
        "12": (2, 1),
    }
    # One pixel: every picture is a flat colour, its own mean.
    levels = (pixel_values * 255).round()
    flat = levels.mean(dim=(2, 3), keepdim=True).round()
    expected = (levels - flat).abs().mean().item() / 255
    assert results["thumbnail"]["4"]["l1"] == pytest.approx(expected, abs=5e-3)
    assert results["webp"]["bytes"] < results["jpeg"]["bytes"] < 32 * 32
    assert results["webp"]["l1"] < results["thumbnail"]["12"]["l1"]
    assert results["fitting"] == {"jpeg": {}, "webp": {}, "avif": {}}  # no file has so few bytes


def test_files_of_the_same_bytes(model, processor, images, pixel_values, monkeypatch):
    monkeypatch.setattr("alit_hf.evaluation.run.payload_bytes", lambda config, num_tokens: 12 * num_tokens)
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    results = evaluate_model(model, processor, images, SETTINGS)
    assert results["avif"] is None
    assert results["fitting"]["avif"] == {}
    assert "AVIF: not in this Pillow" in results_table(results)
    pictures = processor.postprocess(pixel_values)
    files = [fitting_files(picture, CODECS["webp"], [48, 96, 144]) for picture in pictures]
    expected = {}
    for place, length in enumerate(("4", "8", "12")):
        of_length = [file[place] for file in files]
        if all(of_length):
            levels = np.stack([np.asarray(made, np.float32) for made, _ in of_length])
            originals = np.stack([np.asarray(picture, np.float32) for picture in pictures])
            expected[length] = (np.mean([size for _, size in of_length]), np.abs(levels - originals).mean() / 255)
    assert 0 < len(expected) < 3
    shown = {length: (row["bytes"], row["l1"]) for length, row in results["fitting"]["webp"].items()}
    assert list(shown) == list(expected)
    for length, numbers in expected.items():
        assert shown[length] == pytest.approx(numbers, abs=2e-3)
        assert f"as {length} " in results_table(results)


def test_data_is_named_and_known_again(results, images, photos, pixel_values):
    data = results["data"]
    assert (data["num_images"], data["undecodable"], data["split"]) == (7, [], None)
    assert data["sources"] == [photos.name]
    assert data["crop"] == "shortest edge to 32 pixels (bicubic), centre 32 x 32"
    assert len(data["pixels_sha256"]) == 64


def test_the_worst_pictures_come_first(results, scores, model, pixel_values, images):
    with torch.no_grad():
        pictures = model.decode(token_ids=model.encode(pixel_values).token_ids).pixel_values.clamp(0, 1)
    clamped = (pictures - pixel_values).abs().mean(dim=(1, 2, 3))
    worst = results["worst"]
    assert [image["index"] for image in worst] == clamped.argsort(descending=True).tolist()
    assert worst[0]["l1"] == pytest.approx(clamped.max().item(), abs=2e-6)
    assert worst[0]["image"] == images.name(worst[0]["index"])


def test_the_same_numbers_twice_and_as_json(results, model, processor, images, thresholds):
    again = evaluate_model(model, processor, images, dataclasses.replace(SETTINGS, thresholds=thresholds))
    assert without_speed(again) == without_speed(results)
    assert json.loads(json.dumps(again, allow_nan=False)) == again


def test_lpips_of_both_networks(model, processor, images, pixel_values):
    settings = dataclasses.replace(SETTINGS, lpips_networks=("alex", "vgg"), limit=2)
    results = evaluate_model(model, processor, images, settings)
    assert results["data"]["num_images"] == 2
    with torch.no_grad():
        pictures = model.decode(token_ids=model.encode(pixel_values[:2], num_tokens=8).token_ids).pixel_values
        for net in ("alex", "vgg"):
            expected = LPIPS(net, normalize=True)(pictures.clamp(0, 1), pixel_values[:2]).mean().item()
            assert results["lengths"]["8"][f"lpips_{net}"] == pytest.approx(expected, abs=1e-5)


def test_several_processes_give_the_numbers_of_one(results, model, processor, images, thresholds):
    """7 images and 3 processes, so that their shares differ."""
    settings = dataclasses.replace(SETTINGS, thresholds=thresholds)
    made = in_processes(3, lambda processes: evaluate_model(model, processor, images, settings, processes))
    expected = without_speed(results)
    for one in made:
        got = without_speed(one)
        assert got["settings"].pop("processes") == 3
        assert got == {**expected, "settings": {k: v for k, v in expected["settings"].items() if k != "processes"}}


def test_halting_draws_what_encode_draws(processor, images, pixel_values):
    model = lively_model(halting_threshold=0.2)
    results = evaluate_model(model, processor, images, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        code = model.encode(pixel_values, num_tokens=12, generator=generator)
    assert results["lengths"]["12"]["codebook_usage"] == pytest.approx(len(code.token_ids.unique()) / 64, abs=1e-6)


def test_continuous_latents_have_no_bytes(processor, images):
    results = evaluate_model(lively_model(quantize=False), processor, images, SETTINGS)
    for numbers in [*results["lengths"].values(), *results["adaptive"]]:
        assert numbers["bits"] is numbers["bytes"] is numbers["codebook_usage"] is None
        assert numbers["l1"] > 0
    assert results["thumbnail"] == {}
    assert results["base"]["bits"] == 320


def test_undecodable_images_are_counted_and_left_out(model, processor, images, photos, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.open(photos / "3.png").save(tmp_path / "b.png")
    results = evaluate_model(model, processor, open_images([str(tmp_path)]), SETTINGS)
    assert results["data"]["num_images"] == 1
    (failure,) = results["data"]["undecodable"]
    reason = "a.png is not a picture in a format that can be read"
    assert failure == {"index": 0, "image": "a.png", "reason": reason}
    assert str(tmp_path) not in json.dumps(results)


def test_nothing_decodable_is_an_error(model, processor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1 images can be decoded"):
        evaluate_model(model, processor, open_images([str(tmp_path)]), SETTINGS)


def test_a_model_that_makes_nan_is_an_error(processor, images):
    model = lively_model()
    with torch.no_grad():
        model.decoder.head.fc2.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        evaluate_model(model, processor, images, SETTINGS)


def test_a_processor_of_another_size_is_refused_at_once(model, processor, images):
    other = copy.deepcopy(processor)
    other.crop_size = {"height": 32, "width": 64}
    with pytest.raises(SettingsError, match="crops to 64 x 32 pixels, the model needs 32 x 32"):
        evaluate_model(model, other, images, SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_resize", False),
        ("do_center_crop", False),
        ("do_rescale", False),
        ("rescale_factor", 0.5),
        ("do_normalize", True),
    ],
)
def test_a_processor_that_changes_pixels_is_refused_at_once(model, processor, images, name, value):
    other = copy.deepcopy(processor)
    setattr(other, name, value)
    with pytest.raises(SettingsError, match=f"the image processor has {name}={value}, it must be"):
        evaluate_model(model, other, images, SETTINGS)


def test_the_filter_of_a_processor_is_named(model, processor):
    assert "(bicubic)" in describe_crop(model, processor)
    other = copy.deepcopy(processor)
    other.resample = Image.Resampling.LANCZOS
    assert "(lanczos)" in describe_crop(model, other)


def test_too_small_for_lpips_is_refused_at_once(processor, images):
    model = lively_model(image_size=28)
    small = type(processor)(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    with pytest.raises(SettingsError, match="31 are needed"):
        evaluate_model(model, small, images, dataclasses.replace(SETTINGS, lpips_networks=("alex",)))


def test_frechet_distances_of_every_variant(model, processor, images, pixel_values, monkeypatch):
    monkeypatch.setattr(frechet, "MIN_IMAGES", 7)

    class Averages(torch.nn.Module):
        """The mean of each channel, for whose distribution over images no network is needed."""

        name = "averages"
        num_features = 3

        def forward(self, pixels):
            assert pixels.min() >= 0
            assert pixels.max() <= 1
            return pixels.mean(dim=(2, 3))

    settings = dataclasses.replace(SETTINGS, thresholds=(10.0, 0.0), feature_network=Averages())
    results = evaluate_model(model, processor, images, settings)
    with torch.no_grad():
        pictures = model.decode(token_ids=model.encode(pixel_values).token_ids).pixel_values.clamp(0, 1)
    a, b = (pixels.double().mean(dim=(2, 3)).numpy() for pixels in (pixel_values, pictures))
    covariances = np.cov(a.T), np.cov(b.T)
    root_trace = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1]) - 2 * root_trace
    assert results["lengths"]["12"]["frechet_averages"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # The first threshold takes the shortest length for all images, the other one the longest.
    for number, length in enumerate(("4", "12")):
        distance = results["lengths"][length]["frechet_averages"]
        assert results["adaptive"][number]["frechet_averages"] == pytest.approx(distance, abs=1e-6)
    assert results["webp"]["frechet_averages"] < results["jpeg"]["frechet_averages"] < expected
    assert results["base"]["frechet_averages"] > 0
    assert results["settings"]["frechet"] == {
        "network": "averages",
        "num_features": 3,
        "num_images": 7,
        "reference": "the same images, cropped as `data` says",
    }
    with pytest.raises(ValueError, match="6 images would be noise"):
        evaluate_model(model, processor, images, dataclasses.replace(settings, limit=6))


def test_threads_change_nothing(results, model, processor, images, thresholds):
    settings = dataclasses.replace(SETTINGS, thresholds=thresholds, num_workers=2)
    assert without_speed(evaluate_model(model, processor, images, settings)) == without_speed(results)


def test_images_are_decoded_while_the_model_computes_and_only_so_many(model, processor, photos, tmp_path, monkeypatch):
    """The first batch waits for the next one, and the pixels of 100 images are never all there."""
    (tmp_path / "00.png").write_bytes(b"no picture")
    for number in range(1, 100):
        (tmp_path / f"{number:02d}.png").symlink_to(photos / f"{number % 7}.png")
    alive, most_alive, num_decoded = weakref.WeakSet(), 0, 0
    lock, ahead = threading.Lock(), threading.Event()

    def to_picture(image, processor):
        nonlocal most_alive, num_decoded
        picture = original(image, processor)
        with lock:
            alive.add(picture.pixel_values)
            num_decoded += 1
            most_alive = max(most_alive, len(alive))
            if num_decoded == 5:
                ahead.set()
        return picture

    def add(self, indices, pixel_values):
        assert ahead.wait(timeout=30)
        batches.append(indices)
        self.records += [run_module.ImageRecord(index, b"", criterion=[]) for index in indices]

    batches = []
    original = run_module.to_picture
    monkeypatch.setattr(run_module, "to_picture", to_picture)
    monkeypatch.setattr(run_module._Pass, "add", add)
    monkeypatch.setattr(run_module, "measure_speed", lambda *arguments: {})
    monkeypatch.setattr(run_module, "build_results", lambda **described: described["undecodable"])
    settings = dataclasses.replace(SETTINGS, num_workers=2)
    (failure,) = evaluate_model(model, processor, open_images([str(tmp_path)]), settings)
    assert failure["image"] == "00.png"
    assert batches == [[1, 2], *([number, number + 1, number + 2] for number in range(3, 99, 3)), [99]]
    # The last batch, the one that is put together, and what waits for it.
    assert 5 <= most_alive <= 3 * SETTINGS.batch_size + settings.num_workers + 1
