"""Criteria compared at equal shares of tokens."""

import numpy as np
import pytest

from alit_hf.analysis.trade_off import Curve, advantage, common_budgets, pareto_front


LENGTHS = np.array([0.25, 0.5, 1.0])


def test_a_curve_follows_the_choices():
    losses = np.array([[9.0, 4.0, 1.0], [8.0, 2.0, 0.0]])
    curve = Curve.of_choices(LENGTHS, losses, [np.array([0, 1]), np.array([2, 2])])
    np.testing.assert_array_equal(curve.tokens, [[0.25, 1.0], [0.5, 1.0]])
    np.testing.assert_array_equal(curve.losses, [[9.0, 1.0], [2.0, 0.0]])
    assert curve.num_images == 2
    assert curve.budgets == (0.375, 1.0)
    # From 5.5 at 0.375 to 0.5 at 1; half way.
    assert curve.mean_at(np.array([0.6875])) == pytest.approx(3)
    assert curve.mean_at(np.array([0.375, 1.0])) == pytest.approx((5.5 + 0.5) / 2)
    assert curve.mean_at(np.array([1.0]), np.array([0, 0])) == pytest.approx(1)


def test_of_points_that_cost_the_same_the_best_counts():
    curve = Curve(np.array([[0.5, 0.5, 1.0]]), np.array([[3.0, 2.0, 0.0]]))
    assert curve.mean_at(np.array([0.5])) == pytest.approx(2)
    assert curve.mean_at(np.array([0.75])) == pytest.approx(1)


def test_budgets_are_those_that_all_can_spend():
    def curve(*tokens):
        return Curve(np.array([tokens]), np.zeros((1, len(tokens))))

    assert common_budgets([curve(0.2, 0.8), curve(0.4, 1.0)]).tolist() == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert common_budgets([curve(0.2, 0.4), curve(0.4, 1.0)]) is None


def test_advantage_is_positive_for_the_smaller_loss_and_follows_the_sample():
    tokens = np.tile([0.25, 1.0], (3, 1))
    own, other = Curve(tokens, np.zeros((3, 2))), Curve(tokens, np.array([[1.0, 1.0], [1.0, 1.0], [4.0, 4.0]]))
    arguments = {"own": own, "other": other, "budgets": np.array([0.5, 1.0])}
    assert advantage(np.arange(3), -1, **arguments) == pytest.approx(2)
    samples = np.array([[0, 1, 1], [2, 2, 2]])
    assert advantage(samples, -1, **arguments).tolist() == pytest.approx([1, 4])
    assert advantage(np.arange(3), -1, own=other, other=own, budgets=np.array([0.5])) == pytest.approx(-2)


@pytest.mark.parametrize(
    ("higher_is_better", "expected"), [(False, [("a", 5), ("b", 3)]), (True, [("a", 5), ("a", 7)])]
)
def test_pareto_front(higher_is_better, expected):
    points = {
        "a": [{"threshold": 1, "tokens_share": 0.2, "task": 5}, {"threshold": 2, "tokens_share": 0.8, "task": 7}],
        "b": [{"threshold": 3, "tokens_share": 0.6, "task": 3}, {"threshold": 4, "tokens_share": 0.9, "task": 4}],
    }
    front = pareto_front(points, "task", higher_is_better=higher_is_better)
    assert [(point["criterion"], point["value"]) for point in front] == expected
    assert front[0] == {"criterion": "a", "threshold": 1, "tokens_share": 0.2, "value": 5}
