"""The section `loss` of a run: the fields of each stage. Imports no libraries, so that help is quick."""

from dataclasses import dataclass, field
from typing import Literal

from ..configuration import changeable, require


@dataclass(kw_only=True)
class PixelLossConfig:
    """
    Args:
        perceptual_weight (`float`): weight of LPIPS relative to L1's, which is 1. At 0 its network is not needed.
        perceptual_net (`"vgg"` or `"alex"`): LPIPS network; AlexNet is cheap enough for CPUs.
        perceptual_start (`int`): first step with LPIPS.
    """

    perceptual_weight: float = 1.0
    perceptual_net: Literal["vgg", "alex"] = "vgg"
    perceptual_start: int = 0

    def validate(self) -> None:
        require(self.perceptual_weight >= 0, "loss.perceptual_weight", self.perceptual_weight, "at least 0")
        require(self.perceptual_start >= 0, "loss.perceptual_start", self.perceptual_start, "at least 0")


@dataclass(kw_only=True)
class AdversaryConfig:
    """
    Args:
        adversarial_weight (`float`): weight of the adversarial loss relative to the reconstruction loss, multiplied by
            the adaptive weight that makes their gradients equal. 0: no discriminator.
        adversarial_start (`int`): first step with it, for both discriminator and stage.
        discriminator_size (`int`): channels of the discriminator's first layer.
        discriminator_layers (`int`): number of its layers that halve the resolution.
        discriminator_learning_rate (`float`): its learning rate as a share of the stage's.
        regularizer (`"none"`, `"r1"` or `"lecam"`): regularizer of the discriminator.
        regularizer_weight (`float`): weight of the regularizer.
    """

    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    discriminator_size: int = 64
    discriminator_layers: int = 3
    discriminator_learning_rate: float = changeable(default=1.0)
    regularizer: Literal["none", "r1", "lecam"] = "lecam"
    regularizer_weight: float = changeable(default=0.001)

    def validate(self) -> None:
        for name in ("adversarial_weight", "adversarial_start", "regularizer_weight"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")
        require(
            self.discriminator_learning_rate > 0,
            "loss.discriminator_learning_rate",
            self.discriminator_learning_rate,
            "above 0",
        )
        size, layers = self.discriminator_size, self.discriminator_layers
        require(size >= 16 and size % 16 == 0, "loss.discriminator_size", size, "a multiple of 16")
        require(layers >= 1, "loss.discriminator_layers", layers, "at least 1")


@dataclass(kw_only=True)
class ALITLossConfig:
    """
    Args:
        revive_every (`int`): interval in steps at which unused latent codes are replaced by latents of the batch; 0
            for never.
    """

    revive_every: int = 0

    def validate(self) -> None:
        require(self.revive_every >= 0, "loss.revive_every", self.revive_every, "at least 0")


@dataclass(kw_only=True)
class BaseLossConfig(PixelLossConfig, AdversaryConfig):
    """
    Args:
        codebook_start (`int`): first step that quantises. Above 0, k-means initialises the codebook from the latents
            of the steps before.
        revive_every (`int`): interval in steps at which unused codes are replaced by latents of the batch; 0 for
            never.
    """

    codebook_start: int = 0
    revive_every: int = 100

    def validate(self) -> None:
        PixelLossConfig.validate(self)
        AdversaryConfig.validate(self)
        require(self.codebook_start >= 0, "loss.codebook_start", self.codebook_start, "at least 0")
        require(self.revive_every >= 0, "loss.revive_every", self.revive_every, "at least 0")


@dataclass(kw_only=True)
class DistillLossConfig(ALITLossConfig):
    """
    Args:
        rollouts (`"all"` or `"drawn"`): `"all"` is the published form: every step runs all rollouts, each with a loss.
            `"drawn"` is the cheaper one: a step draws its number of rollouts and has a loss on the last of them.
        rollout_growth (`list[float]`): shares of the run between which the largest number to draw grows from 1 to
            `model.max_rollouts`.
        rollout_dropout (`float` in [0, 1]): share of the drawn steps in which the decoder sees the tokens of only a
            random half of the rollouts. Without it the first rollout's tokens carry everything, and later ones are the
            same for every picture. After `rollout_growth` it fades to 0 at the end of the run.
        quantize_from (`int`): first step that quantises latents. Before it they are unit vectors with noise; k-means
            then initialises the codebook. If latents are quantised before they carry information, all pictures get the
            same few ids.
        latent_noise (`float`): standard deviation of that noise in each dimension.
        label_smoothing (`float` in [0, 1)): label smoothing of the cross-entropy (VQGAN base).
        halting (`bool`): dynamic halting (only with `"all"` rollouts).
        halting_threshold (`float`): probability (VQGAN base) or mean absolute latent error (KL base) from which a
            position counts as explained. 0: the paper's, 0.55 or 0.025.
        last_rollout_only (`bool`): loss only on the longest code, the paper's ablation.
    """

    rollouts: Literal["all", "drawn"] = "all"
    rollout_growth: list[float] = field(default_factory=lambda: [0.0, 0.5])
    rollout_dropout: float = 0.0
    quantize_from: int = 0
    latent_noise: float = 0.0
    label_smoothing: float = 0.1
    halting: bool = True
    halting_threshold: float = 0.0
    last_rollout_only: bool = False
    revive_every: int = 100

    def validate(self) -> None:
        ALITLossConfig.validate(self)
        growth = self.rollout_growth
        require(
            len(growth) == 2 and 0 <= growth[0] <= growth[1] <= 1,
            "loss.rollout_growth",
            growth,
            "two shares of the run in [0, 1], the smaller one first",
        )
        require(0 <= self.rollout_dropout <= 1, "loss.rollout_dropout", self.rollout_dropout, "in [0, 1]")
        if self.rollouts == "all":
            require(self.rollout_dropout == 0, "loss.rollout_dropout", self.rollout_dropout, "0 with all rollouts")
        else:
            require(not self.halting, "loss.halting", self.halting, "false if `loss.rollouts` is drawn")
            last = self.last_rollout_only
            require(not last, "loss.last_rollout_only", last, "false if `loss.rollouts` is drawn")
        require(self.quantize_from >= 0, "loss.quantize_from", self.quantize_from, "at least 0")
        require(self.latent_noise >= 0, "loss.latent_noise", self.latent_noise, "at least 0")
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "in [0, 1)")
        require(self.halting_threshold >= 0, "loss.halting_threshold", self.halting_threshold, "at least 0")


@dataclass(kw_only=True)
class FinetuneLossConfig(ALITLossConfig, PixelLossConfig, AdversaryConfig):
    """
    Args:
        quantizer_weight (`float`): weight of the latent codebook and commitment losses.
    """

    quantizer_weight: float = 1.0

    def validate(self) -> None:
        ALITLossConfig.validate(self)
        PixelLossConfig.validate(self)
        AdversaryConfig.validate(self)
        require(self.quantizer_weight >= 0, "loss.quantizer_weight", self.quantizer_weight, "at least 0")


@dataclass(kw_only=True)
class LengthsLossConfig:
    """
    Args:
        criterion (`str`): token selection criterion to predict, a name that `ALITModel.encode` knows.
    """

    criterion: str = "l1"

    def validate(self) -> None:
        """The stage checks the name, which takes libraries."""


LOSS_CONFIGS = {
    "base": BaseLossConfig,
    "distill": DistillLossConfig,
    "finetune": FinetuneLossConfig,
    "fixed": DistillLossConfig,
    "lengths": LengthsLossConfig,
}
"""The section's fields for each stage."""
