"""ALITForImageClassification: a head on the mean of image tokens and latents."""

import json

import pytest
import torch
from elsewhere import run_elsewhere
from same_weights import assert_same_weights
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_config, tiny_images, tiny_model
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from alit_hf import ALITForImageClassification, ALITImageProcessor, ALITModel


def tiny_classifier(num_labels: int = 5, **fields) -> ALITForImageClassification:
    return ALITForImageClassification(tiny_config(num_labels=num_labels, **fields)).eval()


@pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)
def test_logits_are_of_the_mean_of_image_tokens_and_latents(base, quantize):
    model = tiny_classifier(base=base, quantize=quantize)
    pixel_values = tiny_images(2)
    with torch.no_grad():
        for num_tokens in (3, 12):
            tokens = model.alit(pixel_values, num_tokens=num_tokens).last_hidden_state
            assert tokens.shape[1] == 1 + 64 + num_tokens
            features = model.layernorm((tokens[:, 1:].sum(dim=1)) / (64 + num_tokens))
            expected = features @ model.classifier.weight.T + model.classifier.bias
            torch.testing.assert_close(model(pixel_values, num_tokens=num_tokens).logits, expected)
        torch.testing.assert_close(model(pixel_values).logits, expected)


def test_no_decoder_runs(monkeypatch):
    model = tiny_classifier()

    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(model.alit.decoder, "forward", fail)
    monkeypatch.setattr(model.alit.base_tokenizer, "decode", fail)
    model(tiny_images(2))


def test_features_without_the_decoder_are_those_with_it():
    model = tiny_model()
    pixel_values = tiny_images(2)
    without = {"return_reconstruction": False, "return_decoder_output": False}
    with torch.no_grad():
        steps = list(model.rollouts(pixel_values))
        bare = list(model.rollouts(pixel_values, **without))
        assert len(bare) == len(steps) == 4
        for step, expected in zip(bare, steps, strict=True):
            assert step.decoder_output is None
            assert torch.equal(step.last_hidden_state, expected.last_hidden_state)
            assert torch.equal(step.token_ids, expected.token_ids)
        output = model(pixel_values, **without)
        assert output.decoder_output is None
        assert torch.equal(output.last_hidden_state, steps[-1].last_hidden_state)
        # A picture needs the decoder, whatever is said of it.
        picture = model(pixel_values, return_decoder_output=False).reconstruction
        assert torch.equal(picture, steps[-1].reconstruction)


def test_gradients_reach_all_that_features_come_from():
    model = tiny_classifier().train()
    labels = torch.tensor([1, 4])
    output = model(tiny_images(2), labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    for name in (
        "alit.base_tokenizer.model.encoder.conv_in.weight",
        "alit.embeddings.patch_embeddings.weight",
        "alit.latent_tokens.tokens",
        "alit.encoder.layers.0.attention.q_proj.weight",
        "layernorm.weight",
        "classifier.weight",
    ):
        assert name in reached
    assert not any(name.startswith("alit.decoder") for name in reached)


def test_finetuning_separates_classes():
    model = tiny_classifier(num_labels=2).train()
    dark = 0.2 * tiny_images(2)
    pixel_values, labels = torch.cat([dark, 1 - dark]), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        loss = model(pixel_values, labels=labels, num_tokens=6).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    assert torch.equal(model.eval()(pixel_values, num_tokens=6).logits.argmax(dim=1), labels)


def test_a_checkpoint_of_the_model_gets_a_fresh_head(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, output_loading_info=True
    )
    assert type(classifier) is ALITForImageClassification
    assert set(report["missing_keys"]) == {
        f"{part}.{name}" for part in ("layernorm", "classifier") for name in ("weight", "bias")
    }
    assert not report["unexpected_keys"]
    assert_same_weights(classifier.alit, model)
    assert classifier.classifier.weight.shape == (7, 32)
    assert classifier(tiny_images(2)).logits.isfinite().all()


def test_save_and_load(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "ant"}
    model = tiny_classifier(id2label=labels, label2id={name: number for number, name in labels.items()}, num_labels=3)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_weights(loaded, model)
    assert loaded.config.id2label == labels
    with torch.no_grad():
        assert torch.equal(loaded(tiny_images(2)).logits, model(tiny_images(2)).logits)
    # The model in it is found without its head.
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is ALITModel
    assert_same_weights(base, model.alit)


def test_pipeline(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "ant"}
    tiny_classifier(id2label=labels, num_labels=3).save_pretrained(tmp_path)
    processor = ALITImageProcessor(size=32, crop_size=32)
    processor.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    (best, *others) = classify(processor.postprocess(tiny_images(1, 40, 50))[0])
    assert {best["label"], *(other["label"] for other in others)} == set(labels.values())
    assert best["score"] >= max(other["score"] for other in others)


def test_intermediate_outputs():
    model = tiny_classifier(num_encoder_layers=2, attn_implementation="eager")
    output = model(tiny_images(2), num_tokens=6, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 1 + 2 * 2
    assert output.hidden_states[-1].shape == (2, 1 + 64 + 6, 32)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 68, 68)] * 2 + [(2, 4, 71, 71)] * 2


def test_wrong_arguments():
    model = tiny_classifier()
    with pytest.raises(ValueError, match=r"`labels` has 3 entries, it must have one for each of 2"):
        model(tiny_images(2), labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="`num_tokens` is 4"):
        model(tiny_images(2), num_tokens=4)


SCRIPT = """
import sys
from transformers import AutoModelForImageClassification

folder, resaved = sys.argv[1:]
model, report = AutoModelForImageClassification.from_pretrained(
    folder, trust_remote_code=True, output_loading_info=True
)
assert not any(report.values()), report
assert type(model).__module__.startswith("transformers_modules.")
model.save_pretrained(resaved)
"""


def test_loads_without_alit_hf(tmp_path):
    model = tiny_classifier()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"].keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoImageProcessor",
    }
    run_elsewhere(tmp_path, SCRIPT, tmp_path / "model", tmp_path / "resaved", installed=False)
    assert_same_weights(ALITForImageClassification.from_pretrained(tmp_path / "resaved"), model)
