"""Classifiers and depth models by name, as analyses use them."""

import pytest
import torch
from depth_model import save_tiny_depth_model
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from alit_hf.analysis.image_models import load_classifier, load_depth_model, relative_depth_error
from alit_hf.evaluation.settings import SettingsError


CPU = torch.device("cpu")


@pytest.fixture
def classifier_folder(tmp_path):
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label={0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "crane"},
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=1.0, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_classifier_gets_what_its_processor_makes_of_clamped_pictures(classifier_folder):
    classifier = load_classifier(classifier_folder, CPU)
    assert classifier.name == classifier_folder
    assert classifier.class_names == ["tench", "goldfish", "crane"]
    # Whole levels, so that nothing is rounded; some of them beyond white.
    levels = torch.randint(0, 300, (2, 3, 32, 32))
    model = ResNetForImageClassification.from_pretrained(classifier_folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        expected = model((levels.clamp(max=255) / 255 - mean) / std).logits
        torch.testing.assert_close(classifier.logits(levels / 255), expected, rtol=1e-4, atol=1e-5)


def test_a_fingerprint_tells_weights_and_processors_from_others(classifier_folder):
    first, again = (load_classifier(classifier_folder, CPU).fingerprint for _ in range(2))
    assert first == again
    ConvNextImageProcessor(size={"shortest_edge": 48}).save_pretrained(classifier_folder)
    resized = load_classifier(classifier_folder, CPU).fingerprint
    model = ResNetForImageClassification.from_pretrained(classifier_folder)
    with torch.no_grad():
        model.classifier[1].bias[0] += 1e-3
    model.save_pretrained(classifier_folder)
    assert len({first, resized, load_classifier(classifier_folder, CPU).fingerprint}) == 3


def test_a_depth_model_gets_what_its_processor_makes_of_pictures(tmp_path):
    folder = save_tiny_depth_model(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 28, 28)) / 255
    model = AutoModelForDepthEstimation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    inputs = processor([(picture * 255).round().to(torch.uint8) for picture in pixels], return_tensors="pt")
    with torch.no_grad():
        depth = load_depth_model(folder, CPU).depth(pixels)
        torch.testing.assert_close(depth, model(**inputs).predicted_depth)
    assert depth.shape == (2, 28, 28)


def test_relative_depth_error():
    original = torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])
    depth = torch.tensor([[[2.0, 2.0]], [[20.0, 40.0]]])
    assert relative_depth_error(depth, original).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="0 everywhere"):
        relative_depth_error(depth, torch.zeros_like(depth))


def test_models_that_cannot_be_loaded_are_wrong_use(tmp_path, classifier_folder):
    with pytest.raises(SettingsError, match="the classifier nobody/nothing cannot be loaded"):
        load_classifier("nobody/nothing", CPU)
    with pytest.raises(SettingsError, match=f"the depth model {tmp_path} cannot be loaded"):
        load_depth_model(classifier_folder, CPU)


def test_a_head_that_is_not_there_is_not_drawn_at_random(tmp_path, classifier_folder):
    model = ResNetForImageClassification.from_pretrained(classifier_folder)
    model.resnet.save_pretrained(tmp_path / "headless")
    AutoImageProcessor.from_pretrained(classifier_folder).save_pretrained(tmp_path / "headless")
    with pytest.raises(SettingsError, match=r"it lacks classifier\."):
        load_classifier(str(tmp_path / "headless"), CPU)


def test_a_classifier_of_one_class_is_refused(classifier_folder, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label={0: "tench"})
    ResNetForImageClassification(config).save_pretrained(tmp_path / "one")
    AutoImageProcessor.from_pretrained(classifier_folder).save_pretrained(tmp_path / "one")
    with pytest.raises(SettingsError, match=r"the classifier .*one has 1 class, it must have 2 or more"):
        load_classifier(str(tmp_path / "one"), CPU)


def test_missing_efficientnet_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match=r"efficientnet-lite2.* -m alit_hf\.networks\.efficientnet_lite"):
        load_classifier("efficientnet-lite2", CPU)
