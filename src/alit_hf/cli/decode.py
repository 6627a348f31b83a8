"""`alit decode`: `.alit` files to pictures."""

import argparse
import io
from pathlib import Path

from alit_hf.data.sources import FileKind
from alit_hf.utils.shown_text import shown
from alit_hf.utils.whole_file import whole_file

from .batches import print_jobs, run_jobs
from .errors import FAILED
from .jobs import add_job_arguments, make_output_folder, open_source, plan_jobs, target_name
from .options import add_batch_size_argument, add_model_arguments, add_num_workers_argument
from .printing import add_printing_arguments, print_bytes, print_line


# Folders get the first, and so does stdout; Pillow writes the others at its default quality.
OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

# In the PNG files, by which they are told from others' pictures.
_SOFTWARE = "alit decode"
_CODES = FileKind(".alit files", lambda: {".alit"})


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "decode",
        help=".alit files to pictures",
        description="Decodes .alit files with the model that encoded them. Pictures have the model's size and are "
        "cropped as they were encoded; `alit info` shows the original's size.",
    )
    add_job_arguments(
        parser,
        inputs_help=".alit files, or folders of them (with their subfolders)",
        output_help="a folder, which gets PNG files (only those of an earlier `alit decode` are replaced), or for one "
        "input the name of a picture file; an existing file is replaced",
    )
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    add_num_workers_argument(parser)
    add_printing_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    jobs = plan_jobs(arguments.inputs, arguments.output, _CODES, OUTPUT_SUFFIXES, _is_own)

    from alit_hf.codes.picture_codes import decode_pictures
    from alit_hf.codes.token_file import TokenFile, model_fingerprint

    from .loading import load_model

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    fingerprint = model_fingerprint(model)
    make_output_folder(jobs)

    def read(path: Path | None) -> TokenFile:
        tokens = TokenFile.load(open_source(path))
        tokens.check_model(fingerprint)
        tokens.check_sizes(model)
        return tokens

    def decode(files: list[TokenFile]) -> list:
        return decode_pictures(model, processor, files)

    done, failed = run_jobs(jobs, read, decode, _save_picture, arguments.batch_size, arguments.num_workers, "decoding")
    if len(done) == 1:
        job, (width, height) = done[0]
        print_line(f"{shown(target_name(job.target))}: {width}x{height}")
    elif done:
        print_line(f"{len(done)} files in {arguments.output}")
    print_jobs([(job, {"width": width, "height": height}) for job, (width, height) in done], failed)
    return FAILED if failed else 0


def _save_picture(picture, path: Path | None) -> tuple[int, int]:
    """Writes the picture whole or not at all, to stdout as PNG; returns its width and height."""
    from PIL.PngImagePlugin import PngInfo

    software = PngInfo()
    software.add_text("Software", _SOFTWARE)
    if path is None:
        contents = io.BytesIO()
        picture.save(contents, "PNG", pnginfo=software)
        print_bytes(contents.getvalue())
    else:
        with whole_file(path) as unfinished:
            # Other formats do not read it.
            picture.save(unfinished, pnginfo=software)
    return picture.size


def _is_own(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == _SOFTWARE
    except Exception:  # whatever Pillow raises for what is no picture
        return False


__all__ = ["OUTPUT_SUFFIXES", "add_parser", "run"]
