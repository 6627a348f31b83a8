"""What the demo keeps for a session: everything about its picture, so that nothing is encoded twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from alit_hf.codes.rollout_pictures import RolloutPicture, pick_rollout
from alit_hf.codes.token_file import TokenFile


# All of these are compared by identity, as `==` of arrays is not a single truth value.
@dataclass(frozen=True, eq=False)
class ChosenCode:
    """
    One code, as it is shown.

    Args:
        position (`int`): its place in the strip of all lengths, from 1; 0 without a strip.
        picture (`PIL.Image.Image`): what it decodes to.
        num_tokens (`int`): its length.
        maps (`np.ndarray` of shape `(num_tokens, rows, columns)`): where each token is read, each summing to 1.
        payload_bytes (`int`): bytes of its bit-packed ids; `None` if latents are continuous.
        token_file (`TokenFile`): the code to download; `None` if latents are continuous.
        rollout (`RolloutPicture`): with its errors; `None` if the original is not known.
        is_satisfied (`bool`): whether the error, if known, is below the threshold.
    """

    position: int
    picture: Image.Image
    num_tokens: int
    maps: np.ndarray
    payload_bytes: int | None
    token_file: TokenFile | None
    rollout: RolloutPicture | None = None
    is_satisfied: bool = True


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """
    A picture at every length.

    Args:
        name (`str`): name of its file.
        original (`PIL.Image.Image`): the picture as the model saw it.
        rollouts (`Sequence[RolloutPicture]`): shortest first.
        maps (`Sequence[np.ndarray]`): one of shape `(num_tokens, rows, columns)` for each rollout.
        token_files (`Sequence[TokenFile | None]`): one for each rollout; `None` if latents are continuous.
    """

    name: str
    original: Image.Image
    rollouts: Sequence[RolloutPicture]
    maps: Sequence[np.ndarray]
    token_files: Sequence[TokenFile | None]

    def choose(self, threshold: float, is_predicted: bool = False) -> ChosenCode:
        """The code that `ALITModel.encode(threshold=threshold)` returns, or that of the predicted length."""
        rollout = pick_rollout(self.rollouts, threshold, is_predicted)
        index = self.rollouts.index(rollout)
        return ChosenCode(
            position=1 + index,
            picture=rollout.picture,
            num_tokens=rollout.num_tokens,
            maps=self.maps[index],
            payload_bytes=rollout.payload_bytes,
            token_file=self.token_files[index],
            rollout=rollout,
            is_satisfied=rollout.l1 < threshold,
        )


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """
    A dropped `.alit` file.

    Args:
        name (`str`): name of the file.
        picture (`PIL.Image.Image`): what it decodes to.
        maps (`np.ndarray` of shape `(num_tokens, rows, columns)`)
        payload_bytes (`int`): bytes of its bit-packed ids.
        token_file (`TokenFile`): its contents.
    """

    name: str
    picture: Image.Image
    maps: np.ndarray
    payload_bytes: int
    token_file: TokenFile

    def choose(self, threshold: float, is_predicted: bool = False) -> ChosenCode:
        """The file's code, whatever the threshold: the original is not known."""
        return ChosenCode(
            position=0,
            picture=self.picture,
            num_tokens=self.token_file.num_tokens,
            maps=self.maps,
            payload_bytes=self.payload_bytes,
            token_file=self.token_file,
        )


Kept = EncodedPicture | DecodedFile


__all__ = ["ChosenCode", "DecodedFile", "EncodedPicture", "Kept"]
