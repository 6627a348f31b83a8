"""What the demo keeps of a picture: the same codes as the model's own, with a map for every token."""

import threading

import numpy as np
import pytest
import torch
from noise_photo import noise_photo
from tiny_config import tiny_model

from alit_hf import ALITImageProcessor
from alit_hf.analysis.attention_maps import AttentionSource, rollout_maps
from alit_hf.codes.token_file import TokenFile
from alit_hf.demo.tokenizer import DemoTokenizer


def test_every_length_is_that_of_the_model(tokenizer):
    encoded = tokenizer.encode("a.png", noise_photo(0))
    model, processor = tokenizer.model, tokenizer.processor
    pixel_values = processor(noise_photo(0), return_tensors="pt").pixel_values
    expected_maps = rollout_maps(model, pixel_values, [AttentionSource("decoder", 0)])[AttentionSource("decoder", 0)]
    assert np.array_equal(encoded.original, processor.postprocess(pixel_values)[0])
    for index, num_tokens in enumerate((3, 6, 9, 12)):
        with torch.no_grad():
            code = model.encode(pixel_values, num_tokens=num_tokens, return_reconstruction=True)
        assert encoded.rollouts[index].num_tokens == num_tokens
        assert np.array_equal(encoded.token_files[index].token_ids, code.token_ids[0])
        assert encoded.token_files[index].original_size == (50, 40)
        error = (code.reconstruction - pixel_values).abs().mean().item()
        assert encoded.rollouts[index].l1 == pytest.approx(error, abs=1e-6)
        assert np.allclose(encoded.maps[index], expected_maps[index][0], atol=1e-6)


def test_threshold_chooses_as_encode_does(tokenizer):
    encoded = tokenizer.encode("a.png", noise_photo(0))
    pixel_values = tokenizer.processor(noise_photo(0), return_tensors="pt").pixel_values
    errors = [rollout.l1 for rollout in encoded.rollouts]
    for threshold in (0.0, *(error * (1 + 1e-5) for error in errors), 1.0):
        with torch.no_grad():
            code = tokenizer.model.encode(pixel_values, threshold=threshold)
        chosen = encoded.choose(threshold)
        assert chosen.num_tokens == code.num_tokens.item()
        assert chosen.is_satisfied == code.satisfied.item()
        assert chosen.position == chosen.num_tokens // 3
        assert len(chosen.maps) == chosen.num_tokens == chosen.token_file.num_tokens


def test_predicted_lengths_are_those_of_encode():
    model = tiny_model()
    model.set_length_criterion("l1")
    model.config.length_shortfalls = [number / 20 - 0.5 for number in range(20)]
    with torch.no_grad():
        model.length_predictor.fc2.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        model.length_predictor.fc2.bias.copy_(torch.linspace(-1, -2, 4))
    predicting = DemoTokenizer(model, ALITImageProcessor.for_config(model.config))
    encoded = predicting.encode("a.png", noise_photo(0))
    pixel_values = predicting.processor(noise_photo(0), return_tensors="pt").pixel_values
    lengths = set()
    for threshold in (0.0, *(rollout.l1_bound * (1 + 1e-5) for rollout in encoded.rollouts), 1.0):
        with torch.no_grad():
            code = model.encode(pixel_values, threshold=threshold, confidence=0.9)
        assert encoded.choose(threshold, is_predicted=True).num_tokens == code.num_tokens.item()
        lengths.add(code.num_tokens.item())
    assert len(lengths) > 2


@pytest.mark.parametrize(("criterion", "count"), [(None, 20), ("l1", 8), ("l2", 20)])
def test_without_a_fitting_predictor_none_is_offered(criterion, count):
    model = tiny_model()
    model.set_length_criterion(criterion)
    if criterion is not None:
        model.config.length_shortfalls = [0.0] * count
    without = DemoTokenizer(model, ALITImageProcessor.for_config(model.config))
    assert without.confidence is None
    assert without.encode("a.png", noise_photo(0)).rollouts[0].l1_bound is None


def test_choosing_runs_nothing(tokenizer):
    encoded = tokenizer.encode("a.png", noise_photo(0))
    calls = []
    handle = tokenizer.model.register_forward_pre_hook(lambda *_: calls.append(1))
    hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in tokenizer.model.children()]
    for threshold in (0.0, 0.1, 1.0):
        encoded.choose(threshold)
    for hook in (handle, *hooks):
        hook.remove()
    assert not calls


@pytest.mark.parametrize("index", range(4))
def test_file_decodes_to_the_picture_that_was_seen(tokenizer, index):
    encoded = tokenizer.encode("a.png", noise_photo(0))
    file = TokenFile.from_bytes(encoded.token_files[index].to_bytes())
    decoded = tokenizer.decode("a.alit", file)
    chosen = decoded.choose(0.5)
    # Two ways to the same picture may round one level differently.
    seen = encoded.rollouts[index].picture
    assert np.abs(np.subtract(chosen.picture, seen, dtype=np.int16)).max() <= 1
    assert np.allclose(chosen.maps, encoded.maps[index], atol=1e-5)
    assert (chosen.num_tokens, chosen.position, chosen.rollout) == (3 * (index + 1), 0, None)
    assert chosen.payload_bytes == encoded.rollouts[index].payload_bytes


def test_file_of_another_grid_has_maps_of_that_grid(tokenizer):
    file = tokenizer.encode("a.png", noise_photo(0)).token_files[0]
    wide = TokenFile(file.token_ids, (96, 32), (4, 12), file.codebook_size, file.fingerprint)
    decoded = tokenizer.decode("wide.alit", wide)
    assert decoded.picture.size == (48, 16)
    assert decoded.maps.shape == (3, 4, 12)


def test_file_of_another_model_is_refused(tokenizer, make_tokenizer):
    file = make_tokenizer(num_encoder_layers=1).encode("a.png", noise_photo(0)).token_files[0]
    with pytest.raises(ValueError, match="made by another model"):
        tokenizer.decode("a.alit", file)


def test_model_with_continuous_latents_has_no_files(tokenizer, make_tokenizer):
    continuous = make_tokenizer(quantize=False)
    chosen = continuous.encode("a.png", noise_photo(0)).choose(0.0)
    assert (chosen.token_file, chosen.payload_bytes) == (None, None)
    assert chosen.maps.shape == (12, 8, 8)
    with pytest.raises(ValueError, match="continuous"):
        continuous.decode("a.alit", tokenizer.encode("a.png", noise_photo(0)).token_files[0])


def test_pictures_at_the_same_time_do_not_mix(tokenizer):
    expected = {seed: tokenizer.encode(str(seed), noise_photo(seed)) for seed in range(6)}
    found = {}

    def encode(seed: int) -> None:
        found[seed] = tokenizer.encode(str(seed), noise_photo(seed))

    threads = [threading.Thread(target=encode, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, encoded in expected.items():
        assert found[seed].name == str(seed)
        assert np.array_equal(found[seed].original, encoded.original)
        for index in range(4):
            assert found[seed].token_files[index] == encoded.token_files[index]
            assert len(found[seed].maps) == 4
            assert np.allclose(found[seed].maps[index], encoded.maps[index], atol=1e-6)
