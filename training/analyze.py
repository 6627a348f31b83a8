"""
`alit analyze` over many processes: `accelerate launch training/analyze.py NAME --model M --data … --output DIR`, or
`torchrun --nproc_per_node N training/analyze.py NAME …`.

The options are those of `alit analyze NAME`, and so are the numbers, up to rounding. All processes must share DIR.
Exit codes: 0 done, 1 an image could not be decoded or the analysis failed, 2 wrong use.
"""

import argparse
import sys
from pathlib import Path


# Run as a file, Python puts this folder on the path, where `data.py` and others would hide other modules.
sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    from alit_hf.cli import analyze
    from alit_hf.cli.errors import FAILED, WRONG_USE, FileError, UsageError, print_error

    analyze.add_arguments(parser)
    parsed = parser.parse_args(arguments)

    from accelerate import Accelerator
    from accelerate.utils import gather_object

    from alit_hf.evaluation.run import Processes

    try:
        analysis_class = analyze.load_class(parsed.name)
        options = analyze.parse_options(analysis_class, parsed.options)
    except UsageError as error:
        print_error(str(error))
        return WRONG_USE
    accelerator = Accelerator(cpu=options.device == "cpu")
    if options.device is None:
        options.device = str(accelerator.device)
    processes = Processes(accelerator.process_index, accelerator.num_processes, gather_object)
    try:
        code = analyze.analyze(analysis_class, options, processes)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
