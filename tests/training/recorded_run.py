"""
`training/train.py` for tests that watch it from outside, with random weights in LPIPS. Environment variables: RECORD
names a file for all that is logged; KILL_WHILE_WRITING names a checkpoint in whose middle the process kills itself;
STOP_AT_STEP is the number of a step at whose start the process group gets SIGINT, PRESSES times.
"""

import json
import os
import signal
import sys
import time

from accelerate import Accelerator
from random_lpips import random_lpips

from training import train
from training.engine.loop import Trainer
from training.engine.monitoring import Display
from training.stages import pixel_loss


pixel_loss.LPIPS = random_lpips

records: list[dict[str, float]] = []
original_scalars, original_save = Display.scalars, Accelerator.save_state
original_set_learning_rate = Trainer._set_learning_rate


def scalars(self, values, step):
    records.append(values)
    original_scalars(self, values, step)


def save_state(self, output_dir):
    original_save(self, output_dir)
    if os.environ.get("KILL_WHILE_WRITING", "nothing") in output_dir:
        os.kill(os.getpid(), signal.SIGKILL)


def _set_learning_rate(self):
    if self.progress.steps == int(os.environ.get("STOP_AT_STEP", "-1")):
        for _ in range(int(os.environ["PRESSES"])):
            os.killpg(0, signal.SIGINT)
            time.sleep(1.5)
    original_set_learning_rate(self)


Display.scalars, Accelerator.save_state = scalars, save_state
Trainer._set_learning_rate = _set_learning_rate


def run(arguments: list[str]) -> int:
    """Trains as `training/train.py` does, and writes the record; gives the exit code."""
    code = train.main(arguments)
    if "RECORD" in os.environ and os.environ.get("RANK", "0") == "0":
        with open(os.environ["RECORD"], "w", encoding="utf-8") as file:
            json.dump(records, file)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
