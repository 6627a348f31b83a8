# Stand-in: not in the sdist. The checks of transformers' test of that name that need no network.
from transformers.pipelines import ImageFeatureExtractionPipeline

from .test_pipelines_image_classification import pictures


class ImageFeatureExtractionPipelineTests:
    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ):
        pipe = ImageFeatureExtractionPipeline(
            model=model,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            image_processor=image_processor,
            processor=processor,
            dtype=dtype,
        )
        return pipe, [pictures()[0], pictures()[1]]

    def get_shape(self, value):
        return (len(value), *self.get_shape(value[0])) if isinstance(value, list) else ()

    def run_pipeline_test(self, feature_extractor, examples):
        outputs = feature_extractor(examples[0])
        assert self.get_shape(outputs)[0] == 1
        outputs = feature_extractor(examples)
        assert len(outputs) == 2
