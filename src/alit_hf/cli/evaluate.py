"""`alit evaluate`: how good a model's pictures are at every length, compared with other uses of the same bytes."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from alit_hf.evaluation.settings import (
    DEFAULT_THRESHOLDS,
    FEATURE_NETWORK_NAMES,
    LPIPS_NETWORKS,
    EvaluationSettings,
    SettingsError,
)
from alit_hf.utils.error_reason import reason
from alit_hf.utils.option_types import distinct_integers, distinct_numbers, positive_integer
from alit_hf.utils.processes import Processes
from alit_hf.utils.whole_file import write_json

from .errors import FAILED, FileError, UsageError, file_problem, named
from .explore import FIGURE_SUFFIXES
from .jobs import check_no_input_is_overwritten, check_outside_data, check_writable
from .options import (
    SOURCES,
    add_batch_size_argument,
    add_model_arguments,
    add_num_workers_argument,
    add_source_arguments,
    open_source,
)
from .printing import add_printing_arguments, print_error, print_json, print_line, print_note
from .shared_work import run_shared


if TYPE_CHECKING:
    from alit_hf.evaluation.frechet import FeatureNetwork


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="a model's errors at every length, compared with thumbnails, JPEG, WebP and AVIF",
        description="Measures a model on images: at every length, at adaptive lengths, its base tokenizer alone, and, "
        "for comparison, thumbnails and files of JPEG, WebP and AVIF of the same bytes. Writes JSON, prints a table.",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        nargs="+",
        required=True,
        help=SOURCES,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--output", metavar="RESULTS", required=True, help="the results, ending in .json; an existing file is replaced"
    )
    parser.add_argument(
        "--figure", metavar="FIGURE", help=f"a rate-distortion figure, ending in {', '.join(FIGURE_SUFFIXES)}"
    )
    parser.add_argument("--worst-figure", metavar="FIGURE", help="a page of the worst pictures, with the same endings")
    parser.add_argument(
        "--thresholds",
        metavar="T,T",
        type=distinct_numbers,
        default=DEFAULT_THRESHOLDS,
        help="L1 below which a picture has enough tokens, for adaptive lengths "
        f"(default: {','.join(map(str, DEFAULT_THRESHOLDS))})",
    )
    parser.add_argument(
        "--lpips",
        metavar="N,N",
        type=_lpips_networks,
        default=LPIPS_NETWORKS,
        help="networks of LPIPS: alex, vgg (slow on a CPU), both or none (default: alex,vgg)",
    )
    frechet = parser.add_mutually_exclusive_group()
    frechet.add_argument(
        "--frechet",
        metavar="NETWORK",
        choices=FEATURE_NETWORK_NAMES,
        help="adds a Fréchet distance over the features of efficientnet-lite0, or of inception, which makes it an "
        "rFID and needs torch-fidelity and a network connection",
    )
    frechet.add_argument(
        "--fid", dest="frechet", action="store_const", const="inception", help="short for --frechet inception"
    )
    parser.add_argument(
        "--save-reconstructions",
        metavar="DIR",
        help="saves originals and reconstructions as PNG files of the same names, in DIR/originals and DIR/tokens-N "
        "for each length, as torch-fidelity, clean-fid and pytorch-fid read them; DIR must be new or empty",
    )
    parser.add_argument(
        "--num-tokens",
        metavar="N,N",
        type=distinct_integers,
        help="lengths of the reconstructions to save (default: all)",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive_integer, help="only the first N images; no others are fetched"
    )
    parser.add_argument(
        "--image-size",
        metavar="N",
        nargs="+",
        type=positive_integer,
        help="pixels: one number for squares, or height and width; position tables are interpolated where it is not "
        "the trained size (default: the trained size)",
    )
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    add_num_workers_argument(parser)
    add_printing_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return run_shared(_evaluate, arguments)


def _evaluate(arguments: argparse.Namespace, processes: Processes) -> int:
    """With several processes, the first one writes and prints."""
    output = Path(arguments.output)
    figures = [Path(path) for path in (arguments.figure, arguments.worst_figure) if path is not None]
    _check_file(output, (".json",))
    for figure in figures:
        _check_file(figure, FIGURE_SUFFIXES)
    if len(figures) > 1 and os.path.realpath(figures[0]) == os.path.realpath(figures[1]):
        raise UsageError(f"--figure and --worst-figure are both {figures[0]}, they must differ")
    saved = None if arguments.save_reconstructions is None else Path(arguments.save_reconstructions)
    if saved is not None:
        check_outside_data(saved, arguments.data)
        check_writable(saved)
    elif arguments.num_tokens is not None:
        raise UsageError("--num-tokens is the lengths that --save-reconstructions saves, which is not given")

    try:
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError("alit evaluate needs torchmetrics: `pip install 'alit-hf[eval]'`") from error

    import datasets

    from alit_hf.codes.figure import save_figure
    from alit_hf.data.images import Images
    from alit_hf.evaluation.rate_distortion import draw_rate_distortion
    from alit_hf.evaluation.report import results_table
    from alit_hf.evaluation.run import evaluate_model
    from alit_hf.evaluation.worst_pictures import draw_worst_pictures

    from .loading import load_model

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        images = Images(open_source(arguments.data, arguments), arguments.limit)
    except ValueError as error:
        raise UsageError(f"--data: {reason(error)}") from error
    check_no_input_is_overwritten([output, *figures], images.files)
    if processes.rank == 0:
        for note in images.passed_over:
            print_note(note)
    _check_frechet(arguments.frechet, len(images) if arguments.limit is None else min(len(images), arguments.limit))
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype, processes, arguments.image_size)
    _check_lpips(arguments.lpips)
    settings = EvaluationSettings(
        thresholds=arguments.thresholds,
        lpips_networks=arguments.lpips,
        feature_network=_load_feature_network(arguments.frechet),
        reconstructions=saved,
        reconstruction_lengths=arguments.num_tokens,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    try:
        results = evaluate_model(model, processor, images, settings, processes)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise FileError(f"the evaluation failed: {reason(error)}") from error
    if processes.rank > 0:
        return 0

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, results)
        for figure in figures:
            figure.parent.mkdir(parents=True, exist_ok=True)
        if arguments.figure is not None:
            save_figure(draw_rate_distortion(results), arguments.figure)
        if arguments.worst_figure is not None:
            save_figure(draw_worst_pictures(results, model, processor, images), arguments.worst_figure)
    except OSError as error:
        raise FileError(file_problem(output, error)) from error
    for line in results_table(results).splitlines():
        print_line(line)
    undecodable = results["data"]["undecodable"]
    for image in undecodable:
        print_error(named(image["image"], image["reason"]))
    for file in images.damage:
        print_error(file)
    counted = f"{results['data']['num_images']} images" + (f", {len(undecodable)} undecodable" if undecodable else "")
    print_line("; ".join([f"{output}: {counted}", *map(str, figures), *([] if saved is None else [str(saved)])]))
    print_json(results)
    return FAILED if undecodable or images.damage else 0


def _lpips_networks(text: str) -> tuple[str, ...]:
    """For argparse: names of networks, separated by commas."""
    if text == "none":
        return ()
    networks = tuple(text.split(","))
    if not set(networks) <= set(LPIPS_NETWORKS) or len(set(networks)) < len(networks):
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be {' or '.join(LPIPS_NETWORKS)}, both, or none")
    return networks


def _check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"the output {path} must end in {', '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"the output {path} is a folder")
    check_writable(path.parent)


def _check_lpips(networks: tuple[str, ...]) -> None:
    from alit_hf.networks.lpips import load_lpips_weights

    for network in networks:
        try:
            load_lpips_weights(network)
        except (OSError, ValueError) as error:
            raise UsageError(f"--lpips {network} cannot be used: {error}") from error


def _check_frechet(network: str | None, num_images: int) -> None:
    from alit_hf.evaluation.frechet import check_num_images

    if network is not None:
        try:
            check_num_images(num_images)
        except ValueError as error:
            raise UsageError(f"--frechet: {error}") from error


def _load_feature_network(name: str | None) -> "FeatureNetwork | None":
    from alit_hf.evaluation.frechet import FEATURE_NETWORKS

    if name is None:
        return None
    try:
        return FEATURE_NETWORKS[name]()
    except (OSError, ValueError) as error:
        raise UsageError(f"--frechet {name} cannot be used: {reason(error)}") from error


__all__ = ["add_parser", "run"]
