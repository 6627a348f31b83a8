"""Testing suite for the PyTorch ALIT model, in the style of transformers' own."""

import unittest

import torch
from transformers.testing_utils import require_torch, torch_device

import tests.test_modeling_common as common
from alit_hf import ALITConfig, ALITForImageClassification, ALITModel

from ...test_configuration_common import ConfigTester
from ...test_fsdp_mixin import FSDPTesterMixin
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from ...test_tensor_parallel_mixin import TensorParallelTesterMixin
from ...test_training_mixin import TrainingTesterMixin


# What the auto mappings would hold if ALIT were in the library. In this module's copy only: the real ones are lazy.
for name, value in {
    "MODEL_MAPPING_NAMES": "ALITModel",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "ALITForImageClassification",
}.items():
    setattr(common, name, {**getattr(common, name), "alit": value})

LEVELS = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
BASES = {
    "vqgan": {"_class_name": "VQModel", "latent_channels": 4, "vq_embed_dim": 6, "num_vq_embeddings": 24, **LEVELS},
    "kl": {"_class_name": "AutoencoderKL", "latent_channels": 5, "scaling_factor": 0.25, **LEVELS},
}


class ALITModelTester:
    base = "vqgan"
    quantize = True
    num_encoder_layers = 2
    max_rollouts = 1
    halting_threshold = None

    def __init__(self, parent, batch_size=3, is_training=True):
        self.parent = parent
        self.batch_size = batch_size
        self.image_size = 16
        self.patch_size = 4
        self.num_channels = 3
        self.hidden_size = 32
        self.num_attention_heads = 4
        # One entry for every layer of every rollout.
        self.num_hidden_layers = self.num_encoder_layers * self.max_rollouts
        self.tokens_per_rollout = 3
        self.num_labels = 3
        self.type_sequence_label_size = 3
        self.is_training = is_training
        self.seq_length = 1 + (self.image_size // self.patch_size) ** 2 + self.tokens_per_rollout
        self.encoder_seq_length = self.seq_length

    def get_config(self):
        return ALITConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_encoder_layers=self.num_encoder_layers,
            num_decoder_layers=1,
            num_attention_heads=self.num_attention_heads,
            mlp_ratio=2,
            tokens_per_rollout=self.tokens_per_rollout,
            max_rollouts=self.max_rollouts,
            codebook_size=64,
            codebook_dim=5,
            quantize=self.quantize,
            halting_threshold=self.halting_threshold,
            base_tokenizer_config=BASES[self.base],
        )

    def prepare_config_and_inputs(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        labels = ids_tensor([self.batch_size], self.type_sequence_label_size)
        return self.get_config(), pixel_values, labels

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _labels = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}

    def create_and_check_model(self, config, pixel_values, labels):
        model = ALITModel(config=config).to(torch_device).eval()
        result = model(pixel_values)
        length = 1 + config.num_positions + config.max_tokens
        assert result.last_hidden_state.shape == (self.batch_size, length, self.hidden_size)
        assert result.reconstruction.shape == pixel_values.shape

    def create_and_check_for_image_classification(self, config, pixel_values, labels):
        config.num_labels = self.type_sequence_label_size
        model = ALITForImageClassification(config).to(torch_device).eval()
        result = model(pixel_values, labels=labels)
        assert result.logits.shape == (self.batch_size, self.type_sequence_label_size)


class ALITTests(ModelTesterMixin, FSDPTesterMixin, TensorParallelTesterMixin):
    all_model_classes = (ALITModel, ALITForImageClassification)
    pipeline_model_mapping = {
        "image-feature-extraction": ALITModel,
        "image-classification": ALITForImageClassification,
    }
    test_resize_embeddings = False
    model_tester_class = ALITModelTester
    model_tester = None

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self,
            config_class=ALITConfig,
            has_text_modality=False,
            hidden_size=36,
            num_attention_heads=4,
            patch_size=16,
            base_tokenizer_config=CONFIG_BASE,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        # As in transformers' tests of vision models: the mixin's own asks for an nn.Embedding.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            x = model.get_output_embeddings()
            assert x is None or isinstance(x, torch.nn.Linear)

    def test_model(self):
        self.model_tester.create_and_check_model(*self.model_tester.prepare_config_and_inputs())

    def test_for_image_classification(self):
        self.model_tester.create_and_check_for_image_classification(*self.model_tester.prepare_config_and_inputs())

    def test_model_from_pretrained_packaged(self):
        from alit_hf import pretrained_path

        assert ALITModel.from_pretrained(pretrained_path()) is not None


CONFIG_BASE = {
    **BASES["vqgan"],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "block_out_channels": [8, 8, 8, 8, 16],
}


@require_torch
class ALITModelTest(ALITTests, unittest.TestCase):
    """VQGAN base, quantised, one rollout of two layers: what the mixin assumes."""


class Eager(ALITModelTester):
    def get_config(self):
        config = super().get_config()
        config._attn_implementation = "eager"
        return config


@require_torch
class ALITModelEagerTest(ALITTests, unittest.TestCase):
    """One rollout, eager attention: only what needs attention weights."""

    model_tester_class = Eager


class TwoRollouts(ALITModelTester):
    num_encoder_layers, max_rollouts = 1, 2


class TwoRolloutsKL(TwoRollouts):
    base, quantize = "kl", False


class Halting(TwoRollouts):
    halting_threshold = 0.02


@require_torch
class ALITModelTwoRolloutsTest(ALITTests, unittest.TestCase):
    """The recurrence: one layer that runs in two rollouts."""

    model_tester_class = TwoRollouts


@require_torch
class ALITModelKLTest(ALITTests, unittest.TestCase):
    """KL base, continuous latents, two rollouts."""

    model_tester_class = TwoRolloutsKL


@require_torch
class ALITModelTrainingTest(TrainingTesterMixin, unittest.TestCase):
    """The overfitting test; it takes text only, so its batch is made here."""

    all_model_classes = (ALITForImageClassification,)
    model_tester = None

    def setUp(self):
        self.model_tester = ALITModelTester(self)
