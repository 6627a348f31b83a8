"""Plain torch versions of what published ALIT checkpoints hold, in their key names and layouts.

They are written from the equations of the design and from the architecture of latent diffusion's autoencoders, share
no code with `alit_hf`, and give the conversion tests something independent to agree with.
"""

import torch
import torch.nn.functional as F
from torch import nn


def randomise(module, generator):
    """Draws weights that keep activations of order one through every layer, so that no term is negligible."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_weight = name.endswith("weight") and ("norm" in name or "ln_" in name)
        if is_norm_weight:
            noise = 1 + 0.2 * noise
        elif parameter.dim() > 1 and "embed" not in name and "token" not in name.replace("base_tokenizer", ""):
            noise = noise / parameter[0].numel() ** 0.5
        else:
            noise = 0.3 * noise
        parameter.data.copy_(noise)
    return module


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """
    Residual block of a latent diffusion autoencoder; `mage` is the block of the MAGE VQGAN, which has no convolution
    biases and whose shortcut reads the block's own output.
    """

    def __init__(self, in_channels, out_channels, mage):
        super().__init__()
        self.mage = mage
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not mage)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=not mage)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels if mage else in_channels, out_channels, 1, bias=not mage)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if not hasattr(self, "nin_shortcut"):
            return x + h
        return h + self.nin_shortcut(h if self.mage else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map, with 1×1 convolutions as projections."""

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (projection(h).flatten(2) for projection in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / x.shape[1] ** 0.5, dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Resample(nn.Module):
    """Holds the convolution of a down- or upsampling step under the published name `conv`."""

    def __init__(self, channels, stride, padding):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=padding)


class Level(nn.Module):
    """Residual blocks, and attention blocks where the level has them, of one resolution."""

    def __init__(self, in_channels, out_channels, num_blocks, attention, mage):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if j == 0 else out_channels, out_channels, mage) for j in range(num_blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(num_blocks if attention else 0))

    def forward(self, x):
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[j](x)
        return x


class Middle(nn.Module):
    def __init__(self, channels, mage):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, mage)
        if not mage:
            self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, mage)

    def forward(self, x):
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class BaseEncoder(nn.Module):
    def __init__(self, channels, num_res_blocks, out_channels, mage):
        super().__init__()
        self.mage = mage
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1, bias=not mage)
        self.down = nn.ModuleList()
        for i, width in enumerate(channels):
            last = i == len(channels) - 1
            level = Level(channels[max(i - 1, 0)], width, num_res_blocks, attention=last and not mage, mage=mage)
            if not last and not mage:
                level.downsample = Resample(width, stride=2, padding=0)
            self.down.append(level)
        self.mid = Middle(channels[-1], mage)
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 1 if mage else 3, padding=0 if mage else 1)

    def forward(self, x):
        h = self.conv_in(x)
        for i, level in enumerate(self.down):
            h = level(h)
            if i < len(self.down) - 1:
                h = F.avg_pool2d(h, 2) if self.mage else level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class BaseDecoder(nn.Module):
    """`attention_levels` are the levels, counted from the finest, that have attention."""

    def __init__(self, channels, num_res_blocks, in_channels, mage, attention_levels=()):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], mage)
        levels = []
        for i in reversed(range(len(channels))):
            width_before = channels[min(i + 1, len(channels) - 1)]
            level = Level(width_before, channels[i], num_res_blocks + (not mage), i in attention_levels, mage)
            if i > 0:
                level.upsample = Resample(channels[i], stride=1, padding=1)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for i, level in reversed(list(enumerate(self.up))):
            h = level(h)
            if i > 0:
                h = level.upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class Codebook(nn.Module):
    def __init__(self, num_codes, width):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)


class MageVQGAN(nn.Module):
    def __init__(self, channels, num_res_blocks, embed_dim, num_codes):
        super().__init__()
        self.encoder = BaseEncoder(channels, num_res_blocks, embed_dim, mage=True)
        self.decoder = BaseDecoder(channels, num_res_blocks, embed_dim, mage=True)
        self.quantize = Codebook(num_codes, embed_dim)

    def encode(self, pixels):
        return self.encoder(pixels)

    def indices(self, latents):
        distances = torch.cdist(latents.flatten(2).transpose(1, 2), self.quantize.embedding.weight[None])
        return distances.argmin(-1)

    def decode(self, decoder_output, grid):
        soft_codes = decoder_output.softmax(-1) @ self.quantize.embedding.weight
        return self.decoder(soft_codes.transpose(1, 2).unflatten(2, grid))


class AutoencoderKL(nn.Module):
    """Latents are the posterior's mode times 0.2325, and are decoded as they are."""

    def __init__(self, channels, num_res_blocks, embed_dim, attention_levels=()):
        super().__init__()
        self.encoder = BaseEncoder(channels, num_res_blocks, 2 * embed_dim, mage=False)
        self.decoder = BaseDecoder(channels, num_res_blocks, embed_dim, mage=False, attention_levels=attention_levels)
        self.quant_conv = nn.Conv2d(2 * embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, embed_dim, 1)

    def encode(self, pixels):
        mean, _ = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return 0.2325 * mean

    def decode(self, decoder_output, grid):
        return self.decoder(self.post_quant_conv(decoder_output.transpose(1, 2).unflatten(2, grid)))


class TamingVQGAN(nn.Module):
    """taming-transformers: attention at the coarsest resolution, pixels in [-1, 1], the nearest code by distance."""

    def __init__(self, channels, num_res_blocks, z_channels, embed_dim, num_codes):
        super().__init__()
        coarsest = len(channels) - 1
        self.encoder = BaseEncoder(channels, num_res_blocks, z_channels, mage=False)
        self.decoder = BaseDecoder(channels, num_res_blocks, z_channels, mage=False, attention_levels=(coarsest,))
        self.quantize = Codebook(num_codes, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def encode(self, pixels):
        return self.quant_conv(self.encoder(pixels))

    def codes(self, latents):
        """The codes of latents `(B, E, rows, columns)`, as such, and their ids `(B, rows, columns)`."""
        vectors, codebook = latents.movedim(1, -1), self.quantize.embedding.weight
        ids = (vectors[..., None, :] - codebook).square().sum(-1).argmin(-1)
        return codebook[ids].movedim(-1, 1), ids

    def decode(self, codes):
        return self.decoder(self.post_quant_conv(codes))


class NamedLevel(nn.Module):
    """A level of `Level` in LlamaGen's names: `res` and `attn`."""

    def __init__(self, in_channels, out_channels, num_blocks, attention):
        super().__init__()
        level = Level(in_channels, out_channels, num_blocks, attention, mage=False)
        self.res, self.attn = level.block, level.attn

    def forward(self, x):
        for j, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[j](x)
        return x


class LlamaGenHalf(nn.Module):
    """Encoder or decoder of LlamaGen; its levels are in the order of computation on both sides."""

    def __init__(self, channels, num_blocks, in_channels, out_channels, step):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        first, last = channels[0], channels[-1]
        coarsest = 0 if step == "upsample" else len(channels) - 1
        for i, width in enumerate(channels):
            level = NamedLevel(channels[max(i - 1, 0)], width, num_blocks, attention=i == coarsest)
            if i < len(channels) - 1:
                resample = Resample(width, stride=1, padding=1) if step == "upsample" else Resample(width, 2, 0)
                setattr(level, step, resample)
            self.conv_blocks.append(level)
        width = first if step == "upsample" else last
        self.mid = nn.ModuleList(
            [ResnetBlock(width, width, mage=False), AttentionBlock(width), ResnetBlock(width, width, mage=False)]
        )
        self.norm_out = group_norm(last)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)
        self.step = step

    def middle(self, h):
        for module in self.mid:
            h = module(h)
        return h

    def forward(self, x):
        h = self.conv_in(x)
        if self.step == "upsample":
            h = self.middle(h)
        for level in self.conv_blocks:
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            elif hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        if self.step == "downsample":
            h = self.middle(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class LlamaGenVQ(TamingVQGAN):
    """LlamaGen: the same computation, except that latents and codes are compared, and decoded, as unit vectors."""

    def __init__(self, channels, num_res_blocks, z_channels, embed_dim, num_codes):
        super().__init__([32], 1, z_channels, embed_dim, num_codes)
        self.encoder = LlamaGenHalf(channels, num_res_blocks, 3, z_channels, "downsample")
        self.decoder = LlamaGenHalf(channels[::-1], num_res_blocks + 1, z_channels, 3, "upsample")
        self.quantize.register_buffer("codebook_used", torch.zeros(65536))

    def codes(self, latents):
        vectors = F.normalize(latents.movedim(1, -1), dim=-1)
        codebook = F.normalize(self.quantize.embedding.weight, dim=-1)
        ids = (vectors @ codebook.T).argmax(-1)
        return codebook[ids].movedim(-1, 1), ids


class TransformerLayer(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, h):
        normed = self.ln_1(h)
        h = h + self.attn(normed, normed, normed, need_weights=False)[0]
        return h + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(h))))


class DistillationEncoder(nn.Module):
    def __init__(self, width, num_layers, num_heads):
        super().__init__()
        self.transformer = nn.Sequential(*(TransformerLayer(width, num_heads) for _ in range(num_layers)))


class DistillationDecoder(DistillationEncoder):
    def __init__(self, width, num_layers, num_heads, max_tokens, latent_dim, out_dim):
        super().__init__(width, num_layers, num_heads)
        self.decoder_embed = nn.Linear(latent_dim, width)
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(max_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, out_dim))


class BaseTokenizerHolder(nn.Module):
    def __init__(self, base, name):
        super().__init__()
        setattr(self, name, base)


class PublishedALIT(nn.Module):
    """
    The whole model, halting off. `forward` gives, per rollout, a dict of `all_tokens` (without the class token),
    `latents`, `token_ids` (None when continuous) and `decoder_output`.
    """

    def __init__(
        self,
        base,
        base_name,
        base_dim,
        out_dim,
        width,
        num_encoder_layers,
        num_decoder_layers,
        num_heads,
        rollouts,
        tokens_per_rollout,
        latent_dim,
        num_codes=None,
        patch_size=16,
        grid=(16, 16),
    ):
        super().__init__()
        self.grid = grid
        self.base_name = base_name
        positions = 1 + grid[0] * grid[1]
        self.base_tokenizer = BaseTokenizerHolder(base, base_name)
        self.patch_embed = nn.Conv2d(3, width - base_dim, patch_size, stride=patch_size)
        for name, shape in {
            "encoder_class_embedding": (1, width),
            "encoder_mask_token": (1, 1, width),
            "encoder_positional_embedding": (positions, width),
            "decoder_class_embedding": (1, width),
            "decoder_mask_token": (1, 1, width),
            "decoder_positional_embedding": (positions, width),
            "latent_tokens": (tokens_per_rollout, width),
            "latent_token_positional_embedding": (tokens_per_rollout, width),
            "timestep_embedding": (rollouts, tokens_per_rollout, width),
        }.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.encoder_ln_pre = nn.LayerNorm(width)
        self.encoder_ln_recursive = nn.LayerNorm(width)
        self.encoder_ln_post = nn.LayerNorm(width)
        self.encoder = DistillationEncoder(width, num_encoder_layers, num_heads)
        self.pre_quantizer_mlp = nn.Linear(width, latent_dim)
        if num_codes is not None:
            self.quantize = Codebook(num_codes, latent_dim)
        self.decoder = DistillationDecoder(
            width, num_decoder_layers, num_heads, rollouts * tokens_per_rollout, latent_dim, out_dim
        )

    @property
    def base(self):
        return getattr(self.base_tokenizer, self.base_name)

    def latent_codes(self, h):
        factorised = self.pre_quantizer_mlp(self.encoder_ln_post(h))
        if not hasattr(self, "quantize"):
            return factorised, None
        codebook = F.normalize(self.quantize.embedding.weight, dim=-1)
        ids = (F.normalize(factorised, dim=-1) @ codebook.T).argmax(-1)
        return codebook[ids], ids

    def decode_latents(self, latents):
        batch, count, _ = latents.shape
        positions = self.grid[0] * self.grid[1]
        masks = self.decoder_mask_token.expand(batch, positions, -1)
        h = torch.cat([self.decoder_class_embedding.expand(batch, 1, -1), masks], dim=1)
        h = h + self.decoder_positional_embedding
        tokens = self.decoder.decoder_embed(latents) + self.decoder.latent_token_positional_embedding[:count]
        h = self.decoder.ln_pre(torch.cat([h, tokens], dim=1))
        h = self.decoder.ln_post(self.decoder.transformer(h))
        return self.decoder.ffn(h[:, 1 : 1 + positions])

    @torch.no_grad()
    def forward(self, pixels):
        batch, positions = len(pixels), self.grid[0] * self.grid[1]
        features = torch.cat([self.base.encode(pixels), self.patch_embed(pixels)], dim=1)
        features = F.normalize(features.flatten(2).transpose(1, 2), dim=-1)
        h = torch.cat([self.encoder_class_embedding.expand(batch, 1, -1), features], dim=1)
        h = h + self.encoder_positional_embedding
        fresh = (self.latent_tokens + self.latent_token_positional_embedding).expand(batch, -1, -1)
        rollouts = []
        for k, rollout_embedding in enumerate(self.timestep_embedding):
            norm = self.encoder_ln_pre if k == 0 else self.encoder_ln_recursive
            h = self.encoder.transformer(norm(torch.cat([h, fresh + rollout_embedding], dim=1)))
            latents, ids = self.latent_codes(h[:, 1 + positions :])
            rollouts.append(
                {
                    "all_tokens": h[:, 1:],
                    "latents": latents,
                    "token_ids": ids,
                    "decoder_output": self.decode_latents(latents),
                }
            )
        return rollouts
