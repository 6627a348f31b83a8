"""Lengths chosen after the first rollout, and the promise of the calibration."""

import itertools
import math

import pytest
import torch
from tiny_config import tiny_images, tiny_model

from alit_hf import ALITModel
from alit_hf.model.length_prediction import bound_margin, from_logs, largest_shortfall, least_calibration_size, to_logs


SHORTFALLS = [number / 20 for number in range(-10, 30)]
IMAGES = tiny_images(6, seed=3)


def model_with_predictor(criterion: str = "l1", shortfalls: list[float] | None = SHORTFALLS, **kwargs) -> ALITModel:
    """With a random head that tells pictures and lengths apart: longer codes are better on the whole."""
    model = tiny_model(**kwargs)
    model.set_length_criterion(criterion)
    model.config.length_shortfalls = shortfalls
    with torch.no_grad():
        model.length_predictor.fc1.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        model.length_predictor.fc2.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        means = torch.linspace(-1, -2, model.config.max_rollouts)
        model.length_predictor.fc2.bias += means - predicted_logs(model, IMAGES).mean(dim=0)
    return model


@torch.no_grad()
def predicted_logs(model: ALITModel, pixel_values: torch.Tensor) -> torch.Tensor:
    first = next(iter(model.rollouts(pixel_values, return_reconstruction=False)))
    return model.length_predictor(model.length_predictor.features(first.last_hidden_state))


@pytest.fixture(scope="module")
def model() -> ALITModel:
    return model_with_predictor()


@pytest.fixture(scope="module")
def threshold(model) -> float:
    """One that gives the images several lengths, and none to some."""
    bounds = predicted_logs(model, IMAGES) + bound_margin(SHORTFALLS, 0.9)
    return bounds.amin(dim=1).sort().values[-2].exp().item() * 1.0001


@torch.no_grad()
def test_each_image_gets_the_smallest_length_whose_bound_meets_the_threshold(model, threshold):
    bounds = (predicted_logs(model, IMAGES) + bound_margin(SHORTFALLS, 0.9)).exp()
    code = model.encode(IMAGES, threshold=threshold, confidence=0.9)
    step, most = model.config.tokens_per_rollout, model.config.max_rollouts
    for row, of_image in enumerate(bounds.tolist()):
        meets = [rollout for rollout, bound in enumerate(of_image, 1) if bound < threshold]
        chosen = meets[0] if meets else most
        assert code.num_tokens[row] == chosen * step
        assert code.satisfied[row] == bool(meets)
        assert code.score[row].item() == pytest.approx(of_image[chosen - 1], rel=1e-5)
    assert code.score_is_bound.all()
    assert len(set(code.num_tokens.tolist())) > 2
    assert not code.satisfied.all()


@torch.no_grad()
def test_codes_are_those_of_their_length(model, threshold):
    code = model.encode(IMAGES, threshold=threshold, confidence=0.9, return_reconstruction=True)
    for row, length in enumerate(code.num_tokens.tolist()):
        fixed = model.encode(IMAGES[row : row + 1], num_tokens=length, return_reconstruction=True)
        assert torch.equal(code.token_ids[row, :length], fixed.token_ids[0])
        assert (code.token_ids[row, length:] == -1).all()
        assert torch.allclose(code.reconstruction[row], fixed.reconstruction[0], atol=1e-5)


@torch.no_grad()
def test_nothing_is_decoded_and_no_more_rollouts_run_than_needed(model, threshold, monkeypatch):
    passes = []
    monkeypatch.setattr(model.decoder, "forward", lambda *_: pytest.fail("decodes"))
    monkeypatch.setattr(model.base_tokenizer, "decode", lambda *_: pytest.fail("decodes"))
    encoder = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda h, *rest: passes.append(len(h)) or encoder(h, *rest))
    code = model.encode(IMAGES, threshold=threshold, confidence=0.9)
    rollouts = code.num_tokens // model.config.tokens_per_rollout
    assert passes == [int((rollouts >= number).sum()) for number in range(1, int(rollouts.max()) + 1)]


@torch.no_grad()
def test_batch_mates_change_nothing(model, threshold):
    together = model.encode(IMAGES, threshold=threshold, confidence=0.9)
    for row in range(len(IMAGES)):
        alone = model.encode(IMAGES[row : row + 1], threshold=threshold, confidence=0.9)
        assert alone.num_tokens[0] == together.num_tokens[row]
        assert torch.allclose(alone.score[0], together.score[row], rtol=1e-5)


@torch.no_grad()
def test_more_confidence_takes_more_tokens(model, threshold):
    lengths = [
        model.encode(IMAGES, threshold=threshold, confidence=confidence).num_tokens for confidence in (0.1, 0.5, 0.9)
    ]
    assert all((shorter <= longer).all() for shorter, longer in itertools.pairwise(lengths))
    assert lengths[0].sum() < lengths[-1].sum()


@torch.no_grad()
def test_exact_scores_are_no_bounds(model):
    assert not model.encode(IMAGES, threshold=0.5).score_is_bound.any()


@torch.no_grad()
def test_a_saved_model_keeps_predictor_and_calibration(model, threshold, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ALITModel.from_pretrained(tmp_path)
    assert loaded.config.length_shortfalls == SHORTFALLS
    expected, found = (one.encode(IMAGES, threshold=threshold, confidence=0.9) for one in (model, loaded))
    assert torch.equal(found.score, expected.score)


@torch.no_grad()
def test_half_precision_keeps_the_calibration(tmp_path, model, threshold):
    model.save_pretrained(tmp_path)
    half = ALITModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.config.length_shortfalls == SHORTFALLS
    code = half.encode(IMAGES, threshold=threshold, confidence=0.9)
    assert code.score.dtype == torch.float32


@torch.no_grad()
def test_one_token_a_rollout():
    code = model_with_predictor(tokens_per_rollout=1).encode(IMAGES, threshold=0.3, confidence=0.9)
    assert code.score.isfinite().all()


def test_a_predictor_can_be_taken_away(tmp_path):
    model = model_with_predictor()
    model.set_length_criterion(None)
    assert not [name for name in model.state_dict() if name.startswith("length_predictor")]
    model.save_pretrained(tmp_path)
    assert ALITModel.from_pretrained(tmp_path).config.length_criterion is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 0.9}, "must come with a `threshold`"),
        ({"confidence": 0.9, "num_tokens": 6}, "must come with a `threshold`"),
        ({"confidence": 0.0, "threshold": 0.1}, "`confidence` is 0.0, it must be a number above 0 and below 1"),
        ({"confidence": 90, "threshold": 0.1}, "`confidence` is 90, it must"),
        ({"confidence": "0.9", "threshold": 0.1}, "`confidence` is '0.9', it must"),
        ({"confidence": math.nan, "threshold": 0.1}, "`confidence` is nan, it must"),
        ({"confidence": 0.99, "threshold": 0.1}, "calibrated on 40 pictures, .* at most 0.9756: 0.99 takes 99"),
        ({"confidence": 0.9, "threshold": 0.1, "criterion": "l2"}, "`criterion` is 'l2', .* trained for 'l1'"),
        ({"confidence": 0.9, "threshold": 0.1, "criterion": lambda *_: None}, "`criterion` is .* trained for 'l1'"),
    ],
)
def test_what_cannot_be_promised_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.encode(IMAGES, **arguments)


def test_other_sizes_than_the_calibrated_one_are_refused(model):
    with pytest.raises(ValueError, match=r"`pixel_values` .* calibrated on pictures of height and width \(32, 32\)"):
        model.encode(
            tiny_images(1, 16, 32), threshold=0.1, confidence=0.9, interpolate_pos_encoding=True, num_tokens=None
        )


@pytest.mark.parametrize(("criterion", "has"), [(None, "no length predictor"), ("l1", "without calibration")])
def test_models_that_cannot_predict_say_what_to_run(criterion, has):
    model = tiny_model()
    model.set_length_criterion(criterion)
    with pytest.raises(ValueError, match=f"{has}.*stage `lengths`"):
        model.encode(IMAGES, threshold=0.1, confidence=0.9)


@pytest.mark.parametrize("shortfalls", [[], [0.2, 0.1], [0.1, math.nan], [math.inf]])
def test_calibrations_that_cannot_be_are_refused(shortfalls):
    config = tiny_model().config
    config.length_criterion, config.length_shortfalls = "l1", shortfalls
    with pytest.raises(ValueError, match="`length_shortfalls` is"):
        ALITModel(config)


@pytest.mark.parametrize(("confidence", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (1 / 3, 1)])
def test_margins_are_the_order_statistics_of_split_conformal_prediction(confidence, needed):
    assert least_calibration_size(confidence) == needed
    for count in (needed, needed + 1, 200):
        shortfalls = [float(number) for number in range(1, count + 1)]
        assert bound_margin(shortfalls, confidence) == math.ceil(round((count + 1) * confidence, 9))


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_bounds_hold_at_all_lengths_as_often_as_promised(confidence):
    """Over many draws of calibration and new pictures whose errors at neighbouring lengths are alike."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(300, 60, 1, generator=generator) + 0.5 * torch.randn(300, 60, 8, generator=generator)
    shortfalls = largest_shortfall(torch.zeros(18000, 8), errors.flatten(0, 1)).view(300, 60)
    kept = [
        (new.amax() <= bound_margin(calibration.sort().values.tolist(), confidence)).float()
        for calibration, new in zip(shortfalls[:, :59], errors[:, 59], strict=True)
    ]
    # A standard deviation of 300 trials is at most 0.029.
    assert confidence - 0.06 < torch.stack(kept).mean() < confidence + 0.08


def test_logs_go_back_to_scores():
    scores = torch.tensor([0.01, 0.1, 2.0])
    for higher_is_better in (False, True):
        logs = to_logs(scores, higher_is_better)
        assert torch.allclose(from_logs(logs, higher_is_better), scores)
        better = logs[0] > logs[-1] if higher_is_better else logs[0] < logs[-1]
        assert better
    assert to_logs(torch.zeros(1), False).isfinite().all()
