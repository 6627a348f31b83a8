"""
Work that a launcher's processes share: `torchrun --nproc_per_node N -m alit_hf.cli COMMAND …`, or
`accelerate launch -m alit_hf.cli COMMAND …`.
"""

import argparse
import os
from collections.abc import Callable
from datetime import timedelta

from alit_hf.utils.processes import Processes


# Processes that have finished wait for the others, which may have much more to do.
_LONGEST_WAIT = timedelta(days=1)


def run_shared(work: Callable[[argparse.Namespace, Processes], int], options: argparse.Namespace) -> int:
    """
    Runs `work(options, processes)` on all processes started by a launcher, or on this one alone.

    Args:
        options: with `device`; if it is `None` and there are several processes, it is set to this process's device.

    Returns:
        what `work` returns, the exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work(options, Processes())

    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, gather_object

    accelerator = Accelerator(
        # Without this, Accelerate treats several CPU ranks as separate single-process runs.
        cpu=options.device == "cpu" or not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    if options.device is None:
        options.device = str(accelerator.device)
    code = work(options, Processes(accelerator.process_index, accelerator.num_processes, gather_object))
    accelerator.free_memory()
    accelerator.end_training()
    return code


__all__ = ["run_shared"]
