"""
Trains the stage of a configuration twice, whole and sharded over two ranks (FSDP2), and checks that it is the same.
Started by torchrun, with the configuration's file as argument.
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from training.averaging import WeightAverage
from training.configuration import load_configs
from training.sharding import whole
from training.stages import STAGES


def trained(config, sharded: bool):
    """Weights and averages, whole, after four steps with a revival of codes; and scores of the average."""
    torch.manual_seed(0)
    stage = STAGES[config.stage].build(config).train()
    if sharded:
        for layer in (*stage.model.encoder.layers, *stage.model.decoder.layers):
            fully_shard(layer)
        fully_shard(stage)
        assert all(isinstance(parameter, DTensor) for parameter in stage.parameters())
    # Not AdamW, which makes full steps of gradients that should be zero.
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    average = WeightAverage(stage, decay=0.9)
    pixel_values = torch.rand(2, 3, 32, 32)
    for stage.step in range(4):
        torch.manual_seed(stage.step)
        loss, _ = stage(pixel_values, "training_loss")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        for replaced in stage.end_step():
            assert replaced.rows.any()
            average.take_over(replaced.parameter, replaced.rows)
    weights = {name: whole(parameter).clone() for name, parameter in stage.named_parameters()}
    state = average.state_dict()
    average.load_state_dict(state)
    stage.eval()
    with average.applied(), torch.no_grad():
        scores = stage(pixel_values, "score")
    return weights, state["shadow_params"], scores


def main() -> None:
    dist.init_process_group("gloo")
    (config,) = load_configs(sys.argv[1])
    expected, found = (trained(config, sharded) for sharded in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
