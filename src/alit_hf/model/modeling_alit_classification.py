"""A classifier on ALIT's features (arXiv 2411.02393, appendix A.4)."""

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_alit import ALITConfig
from .modeling_alit import ALITModel, ALITPreTrainedModel


class ALITForImageClassification(ALITPreTrainedModel):
    r"""
    [`ALITModel`] with a linear classifier on the mean of its processed image tokens and latent tokens (appendix A.4).

    Neither decoder runs. Gradients reach everything that the features come from, the base tokenizer's encoder
    included; nothing else requires one ([`ALITModel.freeze_for_features`]). For a linear probe freeze `model.alit`.
    Loading a checkpoint of an [`ALITModel`] gives a fresh head.

    Args:
        config ([`ALITConfig`]): `num_labels` (or `id2label`) is the number of classes.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from alit_hf import ALITForImageClassification, ALITImageProcessor, pretrained_path

    >>> processor = ALITImageProcessor.from_pretrained(pretrained_path())
    >>> model = ALITForImageClassification.from_pretrained(pretrained_path(), num_labels=10)
    >>> inputs = processor(Image.new("RGB", (640, 480), "orange"), return_tensors="pt")
    >>> output = model(**inputs, labels=torch.tensor([3]))
    >>> output.loss.backward()
    ```"""

    def __init__(self, config: ALITConfig):
        super().__init__(config)
        self.alit = ALITModel(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
        self.alit.freeze_for_features()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        # Loading makes new parameters, which require gradients.
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.alit.freeze_for_features()
        return loaded

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_tokens: int | None = None,
        interpolate_pos_encoding: bool = False,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`.
            labels (`torch.Tensor` of shape `(B,)`, *optional*):
                Classes, int64 in [0, num_labels), for a cross-entropy. `config.problem_type` may ask for a regression
                or for several classes an image, with float labels `(B, num_labels)`.
            num_tokens (`int`, *optional*):
                Latent tokens, a multiple of `tokens_per_rollout`; rollouts beyond it do not run. Defaults to the full
                length.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether other sizes than the trained one are accepted.
            generator (`torch.Generator`, *optional*):
                Source of randomness where the config turns dynamic halting on, as for `ALITModel.encode`.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `loss` where there are labels, `logits`
            `(B, num_labels)`, and where asked for `hidden_states` and `attentions` as in [`ALITOutput`].

        Raises:
            `ValueError`: as `ALITModel.encode`, and for labels that are not one an image.
        """
        if labels is not None and len(labels) != len(pixel_values):
            raise ValueError(f"`labels` has {len(labels)} entries, it must have one for each of {len(pixel_values)}.")
        outputs = self.alit(
            pixel_values,
            num_tokens=num_tokens,
            return_reconstruction=False,
            return_decoder_output=False,
            interpolate_pos_encoding=interpolate_pos_encoding,
            generator=generator,
            **kwargs,
        )
        # All but the class token.
        features = outputs.last_hidden_state[:, 1:].mean(dim=1)
        logits = self.classifier(self.layernorm(features))
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


ALITForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["ALITForImageClassification"]
