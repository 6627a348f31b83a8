"""
The main use on real photos: each in as many tokens as it needs, stored in an `.alit` file, read back and decoded.

    python examples/demo.py                     # scikit-image's astronaut, cat and coffee
    python examples/demo.py a.jpg b.png         # photos of your own

Writes a figure of every photo at every length (demo.png), the `.alit` files and the pictures decoded from them
(demo/), and prints a table.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.codes.figure import draw_panels, frame_caption, rollout_panels, save_figure
from alit_hf.codes.length_choice import DEFAULT_THRESHOLD
from alit_hf.codes.rollout_pictures import pick_rollout, rollout_pictures
from alit_hf.codes.token_file import TokenFile, model_fingerprint
from alit_hf.demo.example_photos import example_photo
from alit_hf.model.image_io import open_image


PHOTOS = ("astronaut", "cat", "coffee")


def decode_file(path: Path, model: ALITModel, processor: ALITImageProcessor) -> Image.Image:
    tokens = TokenFile.load(path)
    tokens.check_model(model)
    token_ids = torch.tensor(tokens.token_ids).unsqueeze(0)
    with torch.inference_mode():
        return processor.postprocess(model.decode(token_ids=token_ids, grid_size=tokens.grid_size).pixel_values)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="PHOTO", nargs="*", type=Path)
    parser.add_argument("--model", default=pretrained_path(), help="a folder or a Hub id")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="L1 that is good enough")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()

    try:
        photos = {path.name: open_image(path) for path in arguments.photos} or {
            name: example_photo(name) for name in PHOTOS
        }
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if arguments.photos and len(photos) < len(arguments.photos):
        parser.error("two photos have the same name")

    transformers.logging.disable_progress_bar()
    processor = ALITImageProcessor.from_pretrained(arguments.model)
    model = ALITModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    folder = arguments.output / "demo"
    folder.mkdir(parents=True, exist_ok=True)

    name_width = max(len("photo"), *map(len, photos))
    print(f"{'photo':{name_width}}  tokens  bytes  file      L1      PSNR")
    rows = []
    for name, photo in photos.items():
        pixel_values = processor(photo, return_tensors="pt").pixel_values
        rollouts = rollout_pictures(model, processor, pixel_values)
        picked = pick_rollout(rollouts, arguments.threshold)

        token_file = folder / f"{name}.alit"
        TokenFile(
            token_ids=picked.token_ids,
            original_size=photo.size,
            grid_size=model.config.grid_size,
            codebook_size=model.config.codebook_size,
            fingerprint=model_fingerprint(model),
        ).save(token_file)
        decoded = decode_file(token_file, model, processor)
        decoded.save(folder / f"{name}.png")
        # Two ways to compute the same picture may differ by one level of 255.
        if np.abs(np.subtract(decoded, picked.picture, dtype=np.int16)).max() > 1:
            raise SystemExit(f"{token_file} does not decode to the picture that was encoded")

        print(
            f"{name:{name_width}}  {picked.num_tokens:6}  {picked.payload_bytes:5}  {token_file.stat().st_size:4}  "
            f"{picked.l1:.4f}  {picked.psnr:5.2f} dB"
        )
        rows.append(rollout_panels(name, processor.postprocess(pixel_values)[0], rollouts, picked))

    figure = arguments.output / "demo.png"
    save_figure(draw_panels(rows, frame_caption(arguments.threshold)), figure)
    print(
        f"\nbytes: the bit-packed ids; file: bytes of the .alit file, with its header and checksum.\n"
        f"{figure}: every photo at every length. {frame_caption(arguments.threshold)}\n"
        f"{folder}/: the .alit files, read back, checked and decoded."
    )


if __name__ == "__main__":
    main()
