"""
Trains a model: `accelerate launch training/train.py --config training/configs/NAME.yaml [--field value …]`.

A dot leads into a section: `--optimization.max_steps 100 --data.train "[a.parquet, b.parquet]"`. If the file describes
a sequence of runs, such a value applies to all of them, and `--sequence.base.optimization.max_steps 100` to one. Exit
codes: 0 for a finished run, 2 for a wrong configuration, 3 for a run that cannot continue (non-finite loss,
undecodable images, a checkpoint that cannot be written), 75 if SIGTERM or SIGINT (Ctrl-C) ended it after a checkpoint,
130 if Ctrl-C ended it at once: before the first step, after the last one, or pressed again.
"""

import argparse
import logging
import sys
from pathlib import Path


# When run as a file, Python puts this folder on the path, not the one that contains the package `training`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alit_hf.utils.processes import is_first_process
from alit_hf.utils.progress import adopt_library_bars
from alit_hf.utils.shown_text import one_line
from training.configuration import DataConfig, LoggingConfig, OptimizationConfig, TrainingConfig, describe_fields
from training.stages.loss_config import LOSS_CONFIGS


EXIT_WRONG_USE = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 75
# What shells report for a process ended by SIGINT.
EXIT_ENDED_AT_ONCE = 130


def main(arguments: list[str]) -> int:
    """Runs what the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_all_fields(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, see training/configs")
    known, overrides = parser.parse_known_args(arguments)

    # Imported late, so that help is quick.
    import datasets
    import torch.distributed as dist

    from training.engine.checkpointing import CheckpointError
    from training.engine.loop import CannotStartError, InterruptedTrainingError, train
    from training.engine.monitoring import NonFiniteLossError
    from training.images.batches import UndecodableImagesError
    from training.stages.registry import load_configs

    try:
        configs = load_configs(known.config, overrides)
    except (ValueError, OSError) as error:
        _print_error(error)
        return EXIT_WRONG_USE

    logging.basicConfig(
        # Accelerate knows it, too, but must not be asked before the run has configured it.
        level=logging.INFO if is_first_process() else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    adopt_library_bars()
    try:
        for config in configs:
            train(config)
    except CannotStartError as error:
        _print_error(error)
        return EXIT_WRONG_USE
    except ValueError as error:
        # Raised during the run, so that the traceback matters.
        logging.getLogger(__name__).error("%s", error, exc_info=True)
        return EXIT_WRONG_USE
    except (NonFiniteLossError, UndecodableImagesError, CheckpointError) as error:
        _print_error(error)
        return EXIT_FAILED
    except InterruptedTrainingError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("train.py: Stopped by SIGINT outside of steps; checkpoints are as they were.", file=sys.stderr)
        return EXIT_ENDED_AT_ONCE
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _all_fields() -> str:
    """The fields of all sections, and of the section `loss` for each stage."""
    sections = [("Fields", TrainingConfig, ""), ("Section data", DataConfig, "data.")]
    sections += [("Section optimization", OptimizationConfig, "optimization.")]
    sections += [("Section logging", LoggingConfig, "logging.")]
    for kind in dict.fromkeys(LOSS_CONFIGS.values()):
        stages = " and ".join(stage for stage, its_kind in LOSS_CONFIGS.items() if its_kind is kind)
        sections.append((f"Section loss of {stages}", kind, "loss."))
    return "\n\n".join(f"{title}:\n{describe_fields(kind, prefix)}" for title, kind, prefix in sections)


def _print_error(error: Exception) -> None:
    """Prints one line to stderr."""
    print("train.py: error:", one_line(str(error)), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
