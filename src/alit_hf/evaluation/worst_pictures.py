"""A page of the pictures that a model reconstructs worst."""

from matplotlib.figure import Figure

from alit_hf.codes.figure import draw_panels, rollout_panels
from alit_hf.codes.rollout_pictures import rollout_pictures
from alit_hf.data.images import Images
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.progress import ProgressBar


_PICTURES_IN_A_ROW = 2


def draw_worst_pictures(results: dict, model: ALITModel, processor: ALITImageProcessor, images: Images) -> Figure:
    """
    Draws the pictures that `results["worst"]` lists, worst first: each original with its shortest, a middle and its
    longest code.

    Args:
        results: from `evaluate_model`.
        model ([`ALITModel`]), processor ([`ALITImageProcessor`]), images ([`Images`]): the same as in that call.
    """
    strips = []
    for worst in ProgressBar(results["worst"], desc="drawing the worst"):
        picture = images.read(worst["index"])
        pixel_values = processor(picture, return_tensors="pt").pixel_values
        rollouts = rollout_pictures(model, processor, pixel_values)
        shown = list(dict.fromkeys([0, (len(rollouts) - 1) // 2, len(rollouts) - 1]))
        strips.append(
            rollout_panels(
                worst["image"].rsplit("/", 1)[-1],
                processor.postprocess(pixel_values)[0],
                [rollouts[index] for index in shown],
                picked=None,
            )
        )
    rows = [
        [panel for strip in strips[start : start + _PICTURES_IN_A_ROW] for panel in strip]
        for start in range(0, len(strips), _PICTURES_IN_A_ROW)
    ]
    measure = "LPIPS (AlexNet)" if "lpips_alex" in results["worst"][0] else "L1"
    num_images = results["data"]["num_images"]
    return draw_panels(rows, f"The {len(strips)} worst of {num_images} pictures by {measure} at the longest length.")


__all__ = ["draw_worst_pictures"]
