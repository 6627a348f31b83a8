"""
Makes a run's model the checkpoint inside the package: `python tools/package_checkpoint.py runs/NAME/model`.

The weights are stored in half precision, but for the length predictor's, which its calibration is of, and load in
float32. The code that `save_pretrained` adds for remote use is left out, since the package is the code. Nothing stays
of the checkpoint before.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path


MAX_BYTES = 30_000_000


def package(source: str, target: Path) -> int:
    """Writes `source`'s model and processor to `target` and returns their size in bytes."""
    model = ALITModel.from_pretrained(source)
    for name, part in model.named_children():
        if name != "length_predictor":
            part.half()
    for path in target.iterdir():
        path.unlink()
    model.save_pretrained(str(target))
    ALITImageProcessor.for_config(model.config).save_pretrained(str(target))
    for path in target.glob("*.py"):
        path.unlink()
    for name in ("config.json", "preprocessor_config.json"):
        path = target / name
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("auto_map", None)
        if "dtype" in values:
            values["dtype"] = str(torch.float32).removeprefix("torch.")
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in target.iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder that ALITModel.from_pretrained loads")
    arguments = parser.parse_args()
    target = Path(pretrained_path())
    num_bytes = package(arguments.source, target)
    print(f"{target}: {num_bytes / 1e6:.1f} MB")
    return 0 if num_bytes <= MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
