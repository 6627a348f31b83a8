# Stand-in: not in the sdist. The checks of transformers' test of that name that need no network.
from transformers.pipelines import ImageClassificationPipeline
from transformers.testing_utils import nested_simplify  # noqa: F401


def pictures():
    from PIL import Image
    from skimage import data
    from utils.fetch_hub_objects_for_ci import url_to_local_path

    return [
        Image.fromarray(data.astronaut()),
        Image.fromarray(data.coffee()),
        Image.fromarray(data.camera()),
        url_to_local_path("cat"),
    ]


class ImageClassificationPipelineTests:
    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ):
        pipe = ImageClassificationPipeline(
            model=model,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            image_processor=image_processor,
            processor=processor,
            dtype=dtype,
            top_k=2,
        )
        return pipe, pictures()[:2]

    def run_pipeline_test(self, image_classifier, examples):
        def ok(rows):
            assert rows
            assert all(isinstance(row["label"], str) and isinstance(row["score"], float) for row in rows)

        ok(image_classifier(pictures()[3]))
        outputs = image_classifier(pictures())
        assert len(outputs) == 4
        for rows in outputs:
            ok(rows)
        for size in (1, 2, 3):
            outputs = image_classifier(pictures(), batch_size=size)
            assert len(outputs) == 4
