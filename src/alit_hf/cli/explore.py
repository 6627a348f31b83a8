"""`alit explore`: a figure of a picture at every length."""

import argparse
import os
from pathlib import Path

from alit_hf.codes.length_choice import add_threshold_argument
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.shown_text import shown

from .errors import FileError, UsageError, file_problem
from .jobs import check_no_input_is_overwritten, check_writable
from .options import add_model_arguments
from .printing import add_quiet_argument, print_line


FIGURE_SUFFIXES = (".png", ".jpg", ".webp", ".pdf", ".svg")
_PANELS_IN_A_ROW = 3


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "explore",
        help="a figure of a picture at every length",
        description="Draws a picture after every rollout, with its errors and bytes, and frames the length that the "
        "threshold picks. Prints the same numbers as a table.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FIGURE",
        required=True,
        help=f"the figure, ending in {', '.join(FIGURE_SUFFIXES)}; an existing file is replaced",
    )
    add_threshold_argument(parser)
    add_model_arguments(parser)
    add_quiet_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    image_path, figure_path = Path(arguments.image), Path(arguments.output)
    if not os.path.lexists(image_path):
        raise UsageError(f"{image_path} does not exist")
    if os.path.isdir(image_path):
        raise UsageError(f"{image_path} is a folder, it must be a picture")
    if figure_path.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"the output {figure_path} must end in {', '.join(FIGURE_SUFFIXES)}")
    if os.path.isdir(figure_path):
        raise UsageError(f"the output {figure_path} is a folder")
    check_writable(figure_path.parent)
    check_no_input_is_overwritten([figure_path], [image_path])

    from alit_hf.codes.figure import draw_panels, frame_caption, rollout_panels, save_figure
    from alit_hf.codes.rollout_pictures import pick_rollout, rollout_pictures
    from alit_hf.codes.rollout_progress import rollout_progress
    from alit_hf.model.image_io import open_image

    from .loading import load_model

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    try:
        pixel_values = processor(open_image(image_path), return_tensors="pt").pixel_values
        with (
            ProgressBar(total=1, desc="exploring", unit="picture") as progress,
            rollout_progress(model, progress, 1),
        ):
            rollouts = rollout_pictures(model, processor, pixel_values)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(file_problem(image_path, error)) from error
    picked = pick_rollout(rollouts, arguments.threshold)

    panels = rollout_panels(shown(image_path.name), processor.postprocess(pixel_values)[0], rollouts, picked)
    rows = [panels[start : start + _PANELS_IN_A_ROW] for start in range(0, len(panels), _PANELS_IN_A_ROW)]
    try:
        figure_path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(draw_panels(rows, frame_caption(arguments.threshold)), figure_path)
    except OSError as error:
        raise FileError(file_problem(figure_path, error)) from error

    print_line(f"{'tokens':>6}  {'bytes':>6}  {'L1':>7}  {'PSNR':>8}")
    for rollout in rollouts:
        size = "-" if rollout.payload_bytes is None else rollout.payload_bytes
        line = f"{rollout.num_tokens:6d}  {size:>6}  {rollout.l1:7.4f}  {rollout.psnr:5.2f} dB"
        print_line(line + ("  <- picked" if rollout is picked else ""))
    if picked.l1 >= arguments.threshold:
        print_line(f"no length has an L1 below {arguments.threshold:g}")
    print_line(str(figure_path))
    return 0
