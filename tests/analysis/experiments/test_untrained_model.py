"""An untrained copy has a model's configuration, and weights of its seed alone."""

import torch
from tiny_config import tiny_model

from alit_hf.analysis.untrained_model import untrained_copy
from alit_hf.codes.token_file import model_fingerprint


def test_weights_are_those_of_the_seed():
    model = tiny_model()
    model.set_attn_implementation("eager")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    copies = [untrained_copy(model, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), expected)
    same, again, other = map(model_fingerprint, copies)
    assert same == again
    assert len({same, other, model_fingerprint(model)}) == 3
    for copied in copies:
        assert copied.config.to_dict() == model.config.to_dict()
        assert copied.config is not model.config
        assert copied.config._attn_implementation == "eager"
        assert not copied.training
