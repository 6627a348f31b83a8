"""What transformers needs to know about every ALIT model: its features, initial weights and names of weights."""

import re

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder

from .configuration_alit import ALITConfig
from .layers import ALITAttention, ALITEmbeddingTables, ALITLayer
from .quantizer import ALITCodebook


# What `torch.compile` and data-parallel training put before the names of weights.
_WRAPPER_NAMES = re.compile(r"(?<![^.])(_orig_mod|module)\.")


def _remove_wrapper_names(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *unused) -> None:
    for name in list(state_dict):
        bare = prefix + _WRAPPER_NAMES.sub("", name[len(prefix) :])
        if name.startswith(prefix) and bare != name:
            state_dict[bare] = state_dict.pop(name)


# As many as there are layers in all rollouts. Set afterwards, as older versions of transformers do not know the field.
_HIDDEN_STATES = OutputRecorder(ALITLayer, layer_name="encoder")
_HIDDEN_STATES.num_hidden_layers_key = "num_layer_runs"


class ALITPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every ALIT model."""

    config: ALITConfig
    base_model_prefix = "alit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"
    _no_split_modules = ["ALITBaseTokenizer", "ALITEmbeddings", "ALITLayer", "ALITDecoder"]
    # Where codes are chosen: rounding there changes ids beyond what rounding before it does.
    _keep_in_fp32_modules_strict = ["quantizer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": _HIDDEN_STATES,
        "attentions": OutputRecorder(ALITAttention, index=1, layer_name="encoder"),
        "decoder_hidden_states": OutputRecorder(ALITLayer, layer_name="decoder"),
        "decoder_attentions": OutputRecorder(ALITAttention, index=1, layer_name="decoder"),
    }

    def __init__(self, config: ALITConfig):
        super().__init__(config)
        if not config.quantize:
            self._keep_in_fp32_modules_strict = []
        self.register_load_state_dict_pre_hook(_remove_wrapper_names)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        As in every model.

        Raises:
            `ValueError`: for weights that were saved from inside the wrapper of `torch.compile` or of data-parallel
            training, whose names match nothing.
        """
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        wrapped = sorted(name for name in report["unexpected_keys"] if _WRAPPER_NAMES.search(name))
        if wrapped:
            raise ValueError(
                f"The checkpoint has {len(wrapped)} weights with names such as {wrapped[0]!r}: it was saved from "
                "inside the wrapper of `torch.compile` or of data-parallel training. Give its weights to "
                "`load_state_dict` of a model with the same configuration, which takes these names, and save that by "
                "`save_pretrained`."
            )
        return (model, report) if output_loading_info else model

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also while the weights are offloaded."""
        device = super().device
        if device.type == "meta":
            for module in self.modules():
                execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
                if execution_device is not None:
                    return torch.device(execution_device)
        return device

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ALITCodebook):
            # Directions are all that counts; a normal distribution spreads them evenly over the sphere.
            init.normal_(module.weight)
            return
        super()._init_weights(module)
        # The published scale, at which tokens differ enough for attention to tell them apart.
        std = self.config.hidden_size**-0.5
        if isinstance(module, ALITEmbeddingTables):
            for table in module.parameters(recurse=False):
                init.normal_(table, std=std)


__all__ = ["ALITPreTrainedModel"]
