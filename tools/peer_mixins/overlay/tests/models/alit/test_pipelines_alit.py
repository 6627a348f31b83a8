"""The pipeline mixin on tiny models that are made here: the real one loads them from the Hub."""

import json
import os
import tempfile
import unittest
from pathlib import Path

import torch

from alit_hf import ALITForImageClassification, ALITImageProcessor, ALITModel

from .test_modeling_alit import ALITModelTester


FOLDER = Path(tempfile.mkdtemp(prefix="peer_mixins_"))
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(FOLDER)
summary = {}
for model_class in (ALITModel, ALITForImageClassification):
    torch.manual_seed(0)
    config = ALITModelTester(None).get_config()
    config.num_labels = 3
    folder = FOLDER / "alit" / model_class.__name__
    model_class(config).save_pretrained(folder)
    ALITImageProcessor.for_config(config).save_pretrained(folder)
    summary[model_class.__name__] = {
        "tokenizer_classes": [],
        "processor_classes": ["ALITImageProcessor"],
        "model_classes": [model_class.__name__],
    }
(FOLDER / "reports").mkdir(exist_ok=True)
(FOLDER / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))

from ... import test_pipeline_mixin as mixin  # noqa: E402


# What the library would export if ALIT were in it.
mixin.transformers_module.ALITImageProcessor = ALITImageProcessor


class ALITPipelineTest(mixin.PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (ALITModel, ALITForImageClassification)
    pipeline_model_mapping = {
        "image-feature-extraction": ALITModel,
        "image-classification": ALITForImageClassification,
    }

    def is_pipeline_test_to_skip(self, *args):
        return False

    def is_pipeline_test_to_skip_more(self, *args, **kwargs):
        return False

    # The mixin's own are skipped without timm, which this model does not need.
    def test_image_feature_extraction_without_timm(self):
        self.run_task_tests(task="image-feature-extraction")

    def test_image_feature_extraction_fp16_without_timm(self):
        self.run_task_tests(task="image-feature-extraction", dtype="float16")
