"""
`recorded_run.py` with parameters that are sharded by FSDP2, as after `accelerate launch` with such a configuration.

Accelerate shards on accelerators only; here it is told that the CPUs are some.
"""

import os
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from recorded_run import run

from training.engine.loop import Trainer
from training.stages.sharding import is_sharded


os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
original_state, original_trainer = AcceleratorState.__init__, Trainer.__init__


def accelerator_state(self, *arguments, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **options):
    is_first = not AcceleratorState._shared_state
    original_state(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    self.distributed_type = DistributedType.FSDP
    if is_first:
        self.fsdp_plugin = fsdp_plugin


def trainer(self, config):
    original_trainer(self, config)
    parts = [self.wrapped] if self.opponent is None else [self.wrapped, self.opponent.wrapped]
    assert all(is_sharded(parameter) for part in parts for parameter in part.parameters())


AcceleratorState.__init__, Trainer.__init__ = accelerator_state, trainer

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
