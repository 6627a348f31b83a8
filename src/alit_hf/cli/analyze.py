"""`alit analyze`: the paper's experiments, each on any model and images."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alit_hf.analysis.registry import ANALYSES, load_analysis
from alit_hf.evaluation.settings import SettingsError
from alit_hf.utils.error_reason import reason
from alit_hf.utils.option_types import positive_integer, whole_number
from alit_hf.utils.processes import Processes
from alit_hf.utils.whole_file import whole_file, write_json

from .errors import FAILED, FileError, UsageError, file_problem, named
from .jobs import check_no_input_is_overwritten, check_outside_data, check_writable
from .options import (
    SOURCES,
    OneLineParser,
    add_batch_size_argument,
    add_model_arguments,
    add_source_arguments,
    open_source,
)
from .printing import add_quiet_argument, print_error, print_line, print_note
from .shared_work import run_shared


if TYPE_CHECKING:
    from alit_hf.analysis.analysis import Analysis
    from alit_hf.data.images import Images


_DOTS_PER_INCH = 200


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "analyze",
        help="an experiment of the paper on any model and images",
        description="Runs an experiment of the paper: writes results.json and figure.png, and prints the finding. "
        "The measurements of each image are stored and not repeated.",
        epilog="Analyses: " + "; ".join(f"{name}: {question}" for name, question in ANALYSES.items()) + ".",
    )
    parser.add_argument("name", metavar="NAME", choices=tuple(ANALYSES), help=", ".join(ANALYSES))
    parser.add_argument(
        "options",
        metavar="OPTIONS",
        nargs=argparse.REMAINDER,
        action=_KeepOptions,
        help="options of the analysis, see `alit analyze NAME --help`",
    )
    parser.set_defaults(run=run)


class _KeepOptions(argparse.Action):
    """
    Keeps the options of the analysis for `options_parser`. Of these, `--quiet` counts at once: finding out what others
    there are loads libraries.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        quiet = OneLineParser(prog=parser.prog, add_help=False)
        add_quiet_argument(quiet)
        namespace.options = values
        namespace.quiet = quiet.parse_known_args(values)[0].quiet


def run(arguments: argparse.Namespace) -> int:
    name = arguments.name
    try:
        analysis_class = load_analysis(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"alit analyze {name} needs {error.name}: `pip install 'alit-hf[eval]'`") from error
    options = options_parser(analysis_class).parse_args(arguments.options)
    return run_shared(partial(_analyze, analysis_class), options)


def options_parser(analysis_class: "type[Analysis]") -> OneLineParser:
    """For the options of an analysis, which follow its name."""
    name = analysis_class.name
    parser = OneLineParser(prog=f"alit analyze {name}", description=f"Finds out {ANALYSES[name]}.")
    for option, what in analysis_class.data_options.items():
        parser.add_argument(
            _flag(option),
            metavar="DATA",
            nargs="+",
            required=option not in analysis_class.optional_data,
            help=f"{what}: {SOURCES}",
        )
        add_source_arguments(parser, _prefix(option))
    parser.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="folder for results.json and figure.png; an interrupted run continues from what is there",
    )
    analysis_class.add_arguments(parser)
    parser.add_argument(
        "--limit",
        metavar="N",
        type=positive_integer,
        default=analysis_class.default_limit,
        help="number of images from each data set, drawn at random (default: %(default)s)",
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="draw from the first images of each data set, as many as --limit says, and fetch no others: for data "
        "sets that are in random order and too large to copy",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=whole_number,
        default=0,
        help="seed of every random draw (default: %(default)s)",
    )
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    add_quiet_argument(parser)
    return parser


def _analyze(analysis_class: "type[Analysis]", options: argparse.Namespace, processes: Processes) -> int:
    """With several processes, the first one sums up, writes and prints."""
    folder = Path(options.output)
    given = [option for option in analysis_class.data_options if getattr(options, option) is not None]
    for option in given:
        check_outside_data(folder, getattr(options, option))
    check_writable(folder)

    import datasets

    from alit_hf.analysis.analysis import Context, RunSettings
    from alit_hf.analysis.run import run_analysis
    from alit_hf.codes.figure import save_figure

    from .loading import load_model

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    data = {option: _open(option, options) for option in given}
    results_path, figure_path = folder / "results.json", folder / "figure.png"
    for images in data.values():
        check_no_input_is_overwritten([results_path, figure_path], images.files)
        for note in images.passed_over if processes.rank == 0 else ():
            print_note(note)
    model, processor = load_model(options.model, options.device, options.dtype, processes)
    settings = RunSettings(limit=options.limit, seed=options.seed, batch_size=options.batch_size)
    try:
        analysis = analysis_class.from_arguments(options)
        outcome = run_analysis(analysis, Context(model, processor, data, settings), folder, processes)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise FileError(file_problem(folder, error)) from error
    except (ValueError, RuntimeError) as error:
        raise FileError(f"the analysis failed: {reason(error)}") from error
    if outcome is None:
        return 0

    results, figure = outcome
    try:
        write_json(results_path, results)
        with whole_file(figure_path) as unfinished:
            save_figure(figure, unfinished, _DOTS_PER_INCH)
    except OSError as error:
        raise FileError(file_problem(folder, error)) from error
    undecodable = [image for described in results["data"].values() for image in described["undecodable"]]
    for image in undecodable:
        print_error(named(image["image"], image["reason"]))
    damage = [file for images in data.values() for file in images.damage]
    for file in damage:
        print_error(file)
    print_line(f"{analysis.name}: {results['finding']}")
    print_line(f"{results_path}; {figure_path}")
    return FAILED if undecodable or damage else 0


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _prefix(option: str) -> str:
    return option.removesuffix("data").replace("_", "-")


def _open(option: str, options: argparse.Namespace) -> "Images":
    from alit_hf.data.images import Images

    try:
        rows = open_source(getattr(options, option), options, _prefix(option))
        return Images(rows, options.limit if options.streaming else None)
    except ValueError as error:
        raise UsageError(f"{_flag(option)}: {reason(error)}") from error


__all__ = ["add_parser", "options_parser", "run"]
