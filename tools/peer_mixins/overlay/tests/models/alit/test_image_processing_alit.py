"""Testing suite for ALIT's image processor, in the style of transformers' own."""

import unittest

from transformers.testing_utils import require_torch, require_vision

from alit_hf import ALITImageProcessor

from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class ALITImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # As alit_hf registers it: one class for both backends.
        return {"pil": ALITImageProcessor, "torchvision": ALITImageProcessor}


@require_torch
@require_vision
class ALITImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ALITImageProcessingTester
