"""
`.alit` files: the code of one image, with what is needed to decode it and to detect that it cannot be decoded.

All numbers are little-endian and unsigned. A file with k tokens has 33 + ceil(k · bits / 8) bytes, where bits is the
smallest number that holds every id of the codebook: 81 bytes for 32 tokens at 4096 codes, 48 of them ids.

| bytes | field |
|---|---|
| 4 | magic, `ALIT` |
| 1 | version, 1 |
| 4, 4 | width and height of the original image in pixels |
| 2, 2 | rows and columns of the base tokenizer's grid |
| 2 | largest id, codebook size − 1 |
| 2 | number of tokens k |
| 8 | fingerprint of the model's weights |
| ceil(k · bits / 8) | ids, each with its most significant bit first, then zero bits up to a whole byte |
| 4 | CRC-32 of everything before |
"""

import hashlib
import json
import os
import reprlib
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from alit_hf.model.configuration_alit import MAX_POSITIONS, MAX_TOKENS
from alit_hf.model.image_io import open_file
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.whole_file import whole_file


MAGIC = b"ALIT"
VERSION = 1
FINGERPRINT_SIZE = 8

MAX_CODEBOOK_SIZE = 2**16
# The sizes that a file declares determine how much memory decoding takes, so even with a valid checksum not every size
# is acceptable. Pillow refuses larger originals as decompression bombs.
MAX_PIXELS = 2**28
MAX_GRID_GROWTH = 16

_HEADER = struct.Struct(f"<{len(MAGIC)}sBIIHHHH{FINGERPRINT_SIZE}s")
_CHECKSUM = struct.Struct("<I")
# Ids of any codebook fit into 16 bits.
_MAX_FILE_SIZE = _HEADER.size + 2 * MAX_TOKENS + _CHECKSUM.size
_HALF_FINGERPRINT = FINGERPRINT_SIZE // 2
_VALUES_UNKNOWN = bytes(_HALF_FINGERPRINT)


@dataclass(frozen=True, eq=False)
class TokenFile:
    """
    The contents of an `.alit` file. Two are equal if their bytes are.

    Args:
        token_ids (`np.ndarray`, `torch.Tensor` or sequence of integers, of shape `(k,)`):
            Ids in [0, codebook_size), without padding, 1 to 65535 of them. Kept as a read-only int64 array. Ids mean
            something only together with their number, since a later rollout may rewrite any of them (paper,
            section 2).
        original_size (`tuple[int, int]`):
            Width and height in pixels of the image that was encoded, at most 2^28 pixels.
        grid_size (`tuple[int, int]`):
            Rows and columns of the base tokenizer's grid, at most 2^16 positions.
        codebook_size (`int`):
            Entries of the latent codebook, 2 to 65536.
        fingerprint (`bytes`):
            What [`model_fingerprint`] gives for the model that made the ids.

    Raises:
        `ValueError`: if a field is not as above.
    """

    token_ids: np.ndarray
    original_size: tuple[int, int]
    grid_size: tuple[int, int]
    codebook_size: int
    fingerprint: bytes

    def __post_init__(self):
        codebook_size = checked_codebook_size(self.codebook_size)
        checked = {
            "codebook_size": codebook_size,
            "token_ids": _checked_ids(self.token_ids, codebook_size),
            "original_size": _checked_area("original_size", self.original_size, 2**32 - 1, MAX_PIXELS, "pixels"),
            "grid_size": checked_grid_size(self.grid_size),
            "fingerprint": _checked_fingerprint(self.fingerprint),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, TokenFile) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def num_tokens(self) -> int:
        """Number of tokens k."""
        return len(self.token_ids)

    def to_bytes(self) -> bytes:
        """The bytes of the file; the same contents always give the same bytes."""
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            *self.original_size,
            *self.grid_size,
            self.codebook_size - 1,
            self.num_tokens,
            self.fingerprint,
        )
        body = header + _pack_ids(self.token_ids, _bits_per_token(self.codebook_size))
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> "TokenFile":
        """
        Reads what [`~TokenFile.to_bytes`] wrote. Memory is allocated for the bytes that are there, never for the sizes
        that they declare.

        Raises:
            `ValueError`: if the bytes are not an `.alit` file, or are of a later version, truncated, altered or
                followed by others.
        """
        if data[: len(MAGIC)] != MAGIC:
            what = "does not begin with the letters ALIT" if data else "is empty"
            raise ValueError(f"this is no .alit file, it {what}")
        if len(data) < _HEADER.size:
            raise ValueError(f"the .alit file is truncated, it ends within its header after {len(data)} bytes")
        _, version, width, height, rows, columns, largest_id, num_tokens, fingerprint = _HEADER.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"the .alit file has version {version}, this release of alit_hf reads version {VERSION}")
        codebook_size = largest_id + 1
        bits = _bits_per_token(codebook_size)
        end = _HEADER.size + (num_tokens * bits + 7) // 8
        if len(data) != end + _CHECKSUM.size:
            raise ValueError(
                f"the .alit file declares {num_tokens} tokens of {bits} bits but does not have the "
                f"{end + _CHECKSUM.size} bytes that these take: it is truncated, altered or followed by something else"
            )
        if zlib.crc32(data[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
            raise ValueError("the .alit file has been altered, its checksum does not fit its contents")
        return cls(
            token_ids=_unpack_ids(data[_HEADER.size : end], num_tokens, bits),
            original_size=(width, height),
            grid_size=(rows, columns),
            codebook_size=codebook_size,
            fingerprint=bytes(fingerprint),
        )

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the file. Even if the process is killed, `path` holds the whole file or what it held before.

        Raises:
            `OSError`: if it cannot be written.
        """
        with whole_file(Path(path)) as unfinished:
            unfinished.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike | IO[bytes]) -> "TokenFile":
        """
        Reads a file, but never more bytes than the longest `.alit` file has (128 KiB).

        Args:
            path (`str`, `Path` or binary file object): an open file is read from where it stands, and left open.

        Raises:
            `ValueError`: naming the file, if it is not a whole and unaltered `.alit` file, or no file at all.
            `OSError`: if it cannot be read (`FileNotFoundError` if there is none).
        """
        is_open = hasattr(path, "read")
        name = getattr(path, "name", f"<{type(path).__name__}>") if is_open else os.fspath(path)
        with nullcontext(path) if is_open else open_file(path) as file:
            # One extra byte shows whether a file continues past its end.
            data = file.read(_MAX_FILE_SIZE + 1)
        try:
            return cls.from_bytes(data)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def check_model(self, model: ALITModel | bytes) -> None:
        """
        Raises unless this model made the ids and can reasonably decode their grid. Its dtype and device may differ
        from those at encoding.

        Args:
            model (`ALITModel` or `bytes`):
                The model that will decode the ids, or its [`model_fingerprint`] if many files are checked.

        Raises:
            `ValueError`: if another model made the ids, or if `model` is bytes but not a fingerprint. If the model
                itself is given, also as `check_sizes`.
        """
        fingerprint = _checked_fingerprint(model if isinstance(model, bytes) else model_fingerprint(model))
        check_fingerprints(self.fingerprint, fingerprint)
        if not isinstance(model, bytes):
            self.check_sizes(model)

    def check_sizes(self, model: ALITModel) -> None:
        """
        Raises `ValueError` if the grid has more than 16 times the positions that the model was trained on, or if the
        codebook's size is not the model's.
        """
        check_sizes(self.grid_size, self.codebook_size, model)


@torch.no_grad()
def model_fingerprint(model: ALITModel) -> bytes:
    """
    Eight bytes that identify a model's weights and the part of its configuration that decides how ids are decoded.

    They do not depend on the device, and hardly on the dtype in which a checkpoint was loaded, so that one machine can
    decode in float32 what another encoded in bfloat16. The first four hash the sign of every weight, which rounding
    keeps and every training step changes somewhere. The last four hash the weights rounded to bfloat16: they are equal
    whether a checkpoint is loaded in float32 or bfloat16. Rounding to float16 loses the values that this needs, so a
    model with float16 weights has zeros there, and [`TokenFile.check_model`] then compares only the signs.

    Args:
        model (`ALITModel`):
            Any model, on any device. Takes about a second for each 100 M parameters on a CPU.
    """
    config = model.config
    # What changes the meaning of ids without changing a name or shape in the state dict.
    invisible = {
        "grid_size": config.grid_size,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "base_tokenizer_config": config.base_tokenizer_config,
        "unscale_base_latents": config.unscale_base_latents,
    }
    description = json.dumps(invisible, sort_keys=True).encode()
    signs, values = hashlib.sha256(description), hashlib.sha256(description)
    values_known = True
    for name, tensor in ProgressBar(sorted(model.state_dict().items()), desc="fingerprint", unit="weight"):
        if name.startswith("length_predictor."):
            # Says nothing about what ids mean.
            continue
        label = f"{name} {tuple(tensor.shape)}".encode()
        # The bits of a bfloat16 number, the topmost being the sign.
        bits = tensor.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().astype("<i2", copy=False)
        signs.update(label)
        signs.update(np.packbits(bits < 0).tobytes())
        values.update(label)
        values.update(bits.tobytes())
        values_known = values_known and tensor.dtype != torch.float16
    return signs.digest()[:_HALF_FINGERPRINT] + (
        values.digest()[:_HALF_FINGERPRINT] if values_known else _VALUES_UNKNOWN
    )


def length_predictor_fingerprint(model: ALITModel) -> bytes:
    """Eight bytes that identify a model's length predictor and its calibration, which decide lengths but not codes."""
    hashed = hashlib.sha256(json.dumps([model.config.length_criterion, model.config.length_shortfalls]).encode())
    for name, tensor in sorted(model.length_predictor.state_dict().items()):
        hashed.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return hashed.digest()[:FINGERPRINT_SIZE]


def check_fingerprints(of_tokens: bytes, of_model: bytes) -> None:
    """Raises `ValueError` if the [`model_fingerprint`] stored with tokens is not this model's."""
    same_signs = of_tokens[:_HALF_FINGERPRINT] == of_model[:_HALF_FINGERPRINT]
    values = {of_tokens[_HALF_FINGERPRINT:], of_model[_HALF_FINGERPRINT:]}
    if not same_signs or (len(values) > 1 and _VALUES_UNKNOWN not in values):
        raise ValueError(
            f"the tokens were made by another model: their fingerprint is {of_tokens.hex()}, this model's is "
            f"{of_model.hex()}"
        )


def check_sizes(grid_size: tuple[int, int], codebook_size: int, model: ALITModel) -> None:
    """Raises `ValueError` unless the model decodes codes of this grid and codebook, see [`TokenFile.check_sizes`]."""
    rows, columns = grid_size
    most = MAX_GRID_GROWTH * model.config.num_positions
    if rows * columns > most:
        raise ValueError(f"the tokens have a grid of {rows} × {columns} positions, this model decodes at most {most}")
    if codebook_size != model.config.codebook_size:
        raise ValueError(
            f"the tokens have a codebook of {codebook_size} entries, this model's has {model.config.codebook_size}"
        )


def checked_grid_size(grid_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the base tokenizer's grid, or `ValueError` for what cannot be any."""
    return _checked_area("grid_size", grid_size, 2**16 - 1, MAX_POSITIONS, "positions")


def checked_codebook_size(codebook_size: int) -> int:
    """Entries of a latent codebook, or `ValueError` for what cannot be any."""
    return whole_number("codebook_size", codebook_size, 2, MAX_CODEBOOK_SIZE)


def whole_number(name: str, value: int, smallest: int, largest: int) -> int:
    """The value, or `ValueError` with its name if it is no whole number of this range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not smallest <= value <= largest:
        raise ValueError(f"`{name}` is {reprlib.repr(value)}, it must be a whole number from {smallest} to {largest}")
    return int(value)


def _bits_per_token(codebook_size: int) -> int:
    return (codebook_size - 1).bit_length()


def _pack_ids(token_ids: np.ndarray, bits: int) -> bytes:
    rows = np.unpackbits(token_ids.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return np.packbits(rows[:, 16 - bits :]).tobytes()


def _unpack_ids(payload: bytes, num_tokens: int, bits: int) -> np.ndarray:
    stream = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
    if stream[num_tokens * bits :].any():
        raise ValueError("the .alit file has been altered, the bits behind its last token are not zero")
    rows = np.zeros((num_tokens, 16), dtype=np.uint8)
    rows[:, 16 - bits :] = stream[: num_tokens * bits].reshape(num_tokens, bits)
    return np.packbits(rows, axis=1).view(">u2")[:, 0].astype(np.int64)


def _checked_area(name: str, size: tuple[int, int], max_side: int, max_area: int, unit: str) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"`{name}` is {reprlib.repr(size)}, it must be two whole numbers")
    first, second = (whole_number(name, side, 1, max_side) for side in size)
    if first * second > max_area:
        raise ValueError(f"`{name}` is {first}x{second}, it must be at most {max_area} {unit}")
    return first, second


def _checked_fingerprint(fingerprint: bytes) -> bytes:
    if not isinstance(fingerprint, bytes) or len(fingerprint) != FINGERPRINT_SIZE:
        raise ValueError(f"`fingerprint` is {fingerprint!r}, it must be {FINGERPRINT_SIZE} bytes")
    return fingerprint


def _checked_ids(token_ids: np.ndarray, codebook_size: int) -> np.ndarray:
    if isinstance(token_ids, torch.Tensor):
        token_ids = token_ids.detach().cpu()
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or not 1 <= len(ids) <= MAX_TOKENS:
        raise ValueError(f"`token_ids` has shape {ids.shape}, it must be (k,) with k from 1 to {MAX_TOKENS}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"`token_ids` has dtype {ids.dtype}, it must be an integer one")
    if ids.min() < 0 or ids.max() >= codebook_size:
        raise ValueError(
            f"`token_ids` has ids from {ids.min()} to {ids.max()}, they must be in [0, {codebook_size}), "
            "without padding"
        )
    ids = ids.astype(np.int64)
    ids.setflags(write=False)
    return ids
