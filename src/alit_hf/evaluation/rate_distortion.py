"""The figure of an evaluation: distortion against bytes."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .yardsticks import CODECS


_PANELS = {
    "l1": "L1 (pixels in [0, 1])",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_vgg": "LPIPS (VGG16)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
}
_PANELS_IN_A_ROW = 3


def draw_rate_distortion(results: dict) -> Figure:
    """
    Draws each score of `evaluate_model`'s results against the bytes of an image (or its tokens, if latents are
    continuous and have no size in bytes): fixed and adaptive lengths, thumbnails of the same bytes, JPEG, WebP and
    AVIF reduced to these bytes and at their smallest, and the base tokenizer.
    """
    lengths = results["lengths"]
    names = [name for name in _PANELS if name in next(iter(lengths.values()))]
    num_rows = -(-len(names) // _PANELS_IN_A_ROW)
    figure = Figure(figsize=(4.4 * _PANELS_IN_A_ROW, 3.8 * num_rows), dpi=128, layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(num_rows, _PANELS_IN_A_ROW, place)
        _draw_panel(axes, results, name)
    figure.axes[0].legend(fontsize=8)
    data = results["data"]
    figure.suptitle(f"{results['model']['name']} on {data['num_images']} images", fontsize=11, parse_math=False)
    return figure


def _draw_panel(axes: Axes, results: dict, name: str) -> None:
    lengths, adaptive = results["lengths"], results["adaptive"]
    in_bytes = results["model"]["quantize"]

    def line(numbers: list[dict], places: list[float], style: str, label: str) -> None:
        axes.plot(places, [number[name] for number in numbers], style, label=label, markersize=5)

    def sizes(numbers: list[dict]) -> list[float]:
        return [number["bytes"] for number in numbers]

    fixed = list(lengths.values())
    ordered = sorted(adaptive, key=lambda numbers: numbers["mean_tokens"])
    if in_bytes:
        line(fixed, sizes(fixed), "o-", "fixed length")
        line(ordered, sizes(ordered), "s--", "adaptive length")
        thumbnails = list(results["thumbnail"].values())
        line(thumbnails, sizes(thumbnails), "v:", "thumbnail")
        for (codec_name, codec), marker in zip(CODECS.items(), "PXD", strict=True):
            if results[codec_name] is not None:
                # The smallest file of the whole picture is the last of the reduced ones.
                files = [*results["fitting"][codec_name].values(), results[codec_name]]
                line(files, sizes(files), f"{marker}-.", codec.label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("bytes per image")
    else:
        line(fixed, [int(length) for length in lengths], "o-", "fixed length")
        line(ordered, [numbers["mean_tokens"] for numbers in ordered], "s--", "adaptive length")
        axes.set_xlabel("latent tokens per image")
    axes.axhline(results["base"][name], color="grey", linewidth=1, label="base tokenizer")
    axes.set_ylabel(_PANELS[name])
    axes.grid(alpha=0.3)


__all__ = ["draw_rate_distortion"]
