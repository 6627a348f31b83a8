"""Two models with the same weights."""

import torch


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
