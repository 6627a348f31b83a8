"""The linear classifier that reads frozen features."""

import numpy as np
import pytest

from alit_hf.analysis.linear_probe import WEIGHT_DECAYS, choose_probe, fit_probe, stratified_split


pytestmark = pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def noisy():
    """120 rows of 3 classes that overlap: features `(120, 10)`, labels `(120,)`."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    centres = random.normal(size=(3, 10))
    return (centres[labels] + random.normal(size=(120, 10)) * 2).astype(np.float32), labels


@pytest.mark.parametrize("weight_decay", [1e-3, 1.0])
def test_the_fit_is_a_minimum(noisy, weight_decay):
    features, labels = noisy
    probe = fit_probe(features, labels, weight_decay)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    weight, bias = probe.pipeline[-1].coef_, probe.pipeline[-1].intercept_
    logits = standardised @ weight.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    excess = (probabilities - np.eye(3)[labels]) / len(labels)
    # Its gradient is that of the cross-entropy, which the regularisation balances.
    np.testing.assert_allclose(excess.T @ standardised, -weight_decay * weight, atol=2e-5)
    np.testing.assert_allclose(excess.sum(axis=0), 0, atol=2e-5)
    np.testing.assert_array_equal(probe.predict(features), logits.argmax(axis=1))


def test_weights_of_two_classes_are_regularised_as_those_of_more(noisy):
    features, labels = noisy[0], np.minimum(noisy[1], 1)
    probe = fit_probe(features, labels, 0.1)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    # The difference of the classes' weights, which are each other's negatives.
    difference, bias = probe.pipeline[-1].coef_[0], probe.pipeline[-1].intercept_[0]
    excess = (1 / (1 + np.exp(-standardised @ difference - bias)) - labels) / len(labels)
    np.testing.assert_allclose(excess @ standardised, -0.1 * difference / 2, atol=2e-5)
    np.testing.assert_array_equal(probe.predict(features), (standardised @ difference + bias > 0).astype(int))


def test_features_that_are_nearly_dependent_are_fitted_to_the_end(noisy):
    features, labels = noisy[0].astype(np.float64), noisy[1]
    features[:, 1:] = features[:, :1] + 1e-3 * features[:, 1:]
    probe = fit_probe(features, labels, 1e-5)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    excess = (probe.pipeline.predict_proba(features) - np.eye(3)[labels]) / len(labels)
    np.testing.assert_allclose(excess.T @ standardised, -1e-5 * probe.pipeline[-1].coef_, atol=1e-7)


def test_units_of_features_do_not_matter(noisy):
    features, labels = noisy
    units = 10.0 ** np.arange(-4, 6).astype(np.float32)
    expected = fit_probe(features, labels, 0.1).predict(features)
    np.testing.assert_array_equal(
        fit_probe(features * units + units, labels, 0.1).predict(features * units + units), expected
    )


def test_a_constant_feature_changes_nothing(noisy):
    features, labels = noisy
    with_constant = np.hstack([features, np.full((120, 1), 7, dtype=np.float32)])
    probe = fit_probe(with_constant, labels, 0.1)
    np.testing.assert_array_equal(probe.predict(with_constant), fit_probe(features, labels, 0.1).predict(features))


def test_regularisation_is_chosen_on_rows_that_were_not_fitted():
    # One feature tells the class in most rows, the others are noise.
    random = np.random.default_rng(1)
    labels = np.tile([0, 1], 50)
    features = random.normal(size=(100, 30))
    features[:, 0] += 2 * labels
    held_out = stratified_split(labels, 0.2, seed=0)

    def best_on(rows):
        def accuracy(weight_decay):
            probe = fit_probe(features[~held_out], labels[~held_out], weight_decay)
            return (probe.predict(features[rows]) == labels[rows]).mean()

        return max(WEIGHT_DECAYS, key=lambda weight_decay: (accuracy(weight_decay), weight_decay))

    assert best_on(held_out) != best_on(~held_out)
    assert choose_probe(features, labels, seed=0).weight_decay == best_on(held_out)


def test_the_chosen_probe_is_fitted_to_all_rows(noisy):
    features, labels = noisy
    chosen = choose_probe(features, labels, seed=0)
    again = fit_probe(features, labels, chosen.weight_decay)
    np.testing.assert_array_equal(chosen.pipeline[-1].coef_, again.pipeline[-1].coef_)


def test_stratified_split():
    labels = np.array([0] * 40 + [1] * 10 + [2] * 2)
    drawn = stratified_split(labels, 0.25, seed=0)
    # Of ten a quarter is 2 or 3, of two it is one and never both.
    assert [int(drawn[labels == label].sum()) for label in (0, 1, 2)] == [10, 2, 1]
    np.testing.assert_array_equal(drawn, stratified_split(labels, 0.25, seed=0))
    assert not np.array_equal(drawn, stratified_split(labels, 0.25, seed=1))
