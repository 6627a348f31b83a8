"""A command of `alit` over the processes that Accelerate or torchrun has started."""

import argparse
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import ModuleType

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from alit_hf.cli.errors import FAILED, WRONG_USE, FileError, UsageError, print_error
from alit_hf.utils.processes import Processes


# Processes that are done wait for the others, which may have much more to do.
_LONGEST_WAIT = timedelta(days=1)


def run_command(command: ModuleType, description: str | None, arguments: Sequence[str]) -> int:
    """
    Runs a command that knows how to share its work.

    Args:
        command: a module of `alit_hf.cli` with `add_arguments(parser)` and `run(arguments, processes)`.
        description: of the script, for its help.
        arguments: without the script's name.

    Returns:
        the exit code: 0 done, 1 an image could not be decoded or the command failed, 2 wrong use.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_shared(lambda processes: command.run(parsed, processes), parsed)


def run_shared(run: Callable[[Processes], int], options: argparse.Namespace) -> int:
    """
    Runs what knows how to share its work, on `options.device`; where that is `None`, it is set to this process's.

    Returns:
        the exit code, as `run_command`.
    """
    accelerator = Accelerator(
        cpu=options.device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)]
    )
    if options.device is None:
        options.device = str(accelerator.device)
    processes = Processes(accelerator.process_index, accelerator.num_processes, gather_object)
    try:
        code = run(processes)
    except UsageError as error:
        # The same on every process.
        if accelerator.is_main_process:
            print_error(str(error))
        return WRONG_USE
    except FileError as error:
        print_error(str(error))
        return FAILED
    accelerator.free_memory()
    accelerator.end_training()
    return code
