"""Results as a table for the terminal."""

from collections.abc import Iterator

from .yardsticks import CODECS


_SCORES = {
    "l1": ("L1", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips_alex": ("LPIPS alex", "{:.3f}"),
    "lpips_vgg": ("LPIPS vgg", "{:.3f}"),
    "rfid": ("rFID", "{:.2f}"),
    "frechet_efficientnet_lite0": ("Fréchet eff.lite0", "{:.2f}"),
    "codebook_usage": ("usage", "{:.1%}"),
    "codebook_perplexity": ("perplexity", "{:.1f}"),
    "encode_images_per_second": ("encode/s", "{:.1f}"),
    "decode_images_per_second": ("decode/s", "{:.1f}"),
}


def results_table(results: dict) -> str:
    """
    The results of `evaluate_model` as a table with a line for each length, threshold and yardstick. `bytes` counts the
    packed ids; a dash stands for a missing value.
    """
    rows = list(_rows(results))
    columns = [name for name in _SCORES if any(name in numbers for _, _, numbers in rows)]
    lines = [["", "tokens", "bytes", *(_SCORES[name][0] for name in columns)]]
    for label, tokens, numbers in rows:
        cells = [label, tokens, _cell("{:.1f}", numbers["bytes"]).removesuffix(".0")]
        lines.append(cells + [_cell(_SCORES[name][1], numbers.get(name)) for name in columns])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _rows(results: dict) -> Iterator[tuple[str, str, dict]]:
    """Label, tokens and numbers of each line."""
    for length, numbers in results["lengths"].items():
        yield "fixed length", length, numbers
    for numbers in results["adaptive"]:
        label = f"L1 below {numbers['threshold']:g} ({numbers['satisfied']:.0%})"
        yield label, f"{numbers['mean_tokens']:.1f}", numbers
    yield "base tokenizer", "-", results["base"]
    for length, numbers in results["thumbnail"].items():
        yield f"thumbnail {numbers['width']}x{numbers['height']}", f"as {length}", numbers
    for name, codec in CODECS.items():
        if results[name] is None:
            yield f"{codec.label}: not in this Pillow", "-", {"bytes": None}
            continue
        yield f"{codec.label} at its smallest", "-", results[name]
        for length, numbers in results["fitting"][name].items():
            yield f"{codec.label}, reduced", f"as {length}", numbers


def _cell(pattern: str, value: float | None) -> str:
    return "-" if value is None else pattern.format(value)


__all__ = ["results_table"]
