"""Which images, and which size, each step has where a run trains on several sizes."""

import math
from fractions import Fraction

import numpy as np

from ..configuration import size_name


class Buckets:
    """
    Divides images among aspect ratios, and their order among steps, each of one size.

    An image belongs to the aspect ratio that is nearest to its own, by the logarithm. Of sizes with the same ratio,
    each step draws one. Every bucket shows all of its images, in an order of their own, before any comes twice, and
    buckets take turns at random, as often as their number of images asks for: so all images come equally often. A
    bucket with fewer images than a step has some of them more than once in it.

    Everything depends on the arguments and the number of the step alone. With one size, the images of a step are those
    that one order of all images gives.

    Args:
        sizes: (height, width) of the crops, without repetition.
        aspect_ratios: height / width of each image, NaN where it is not known: such images join the largest bucket.
        batch_size: images per step, over all ranks.
        seed: of the run.
    """

    def __init__(self, sizes: list[tuple[int, int]], aspect_ratios: np.ndarray, batch_size: int, seed: int):
        by_ratio: dict[Fraction, list[tuple[int, int]]] = {}
        for height, width in sizes:
            by_ratio.setdefault(Fraction(height, width), []).append((height, width))
        self.sizes = list(by_ratio.values())
        """The sizes of each bucket."""
        logs = np.array([math.log(ratio) for ratio in by_ratio])
        nearest = np.abs(np.log(aspect_ratios)[:, None] - logs).argmin(axis=1)
        is_known = np.isfinite(aspect_ratios)
        nearest[~is_known] = np.bincount(nearest[is_known], minlength=len(logs)).argmax()
        self.images = [np.flatnonzero(nearest == bucket) for bucket in range(len(logs))]
        """The numbers of each bucket's images."""
        self.batch_size = batch_size
        self.seed = seed
        self._counts = np.array([len(images) for images in self.images])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._turns = (-1, np.empty(0, dtype=np.int64))

    def __str__(self) -> str:
        found = zip(self.sizes, self.images, strict=True)
        return ", ".join(f"{' and '.join(map(size_name, sizes))} has {len(images)} images" for sizes, images in found)

    def place(self, position: int) -> tuple[int, int, tuple[int, int]]:
        """
        Args:
            position: how many images the run draws before this one, over all epochs and ranks.

        Returns:
            the bucket, how many of its images come before this one, over all epochs, and the size of the crop as
            (height, width).
        """
        step, row = divmod(position, self.batch_size)
        # An epoch's last images may wait for a step of the next one.
        epoch = step * self.batch_size // int(self._counts.sum())
        while step >= self._batches_before(epoch + 1).sum():
            epoch += 1
        before = self._batches_before(epoch)
        turns = self._turns_of(epoch)
        turn = step - int(before.sum())
        bucket = int(turns[turn])
        batch = int(before[bucket]) + int(np.count_nonzero(turns[:turn] == bucket))
        sizes = self.sizes[bucket]
        size = sizes[np.random.default_rng((self.seed, 5, step)).integers(len(sizes))]
        return bucket, batch * self.batch_size + row, size

    def order(self, bucket: int, epoch: int) -> np.ndarray:
        """The numbers of a bucket's images in one of its epochs."""
        # The first bucket has the order of a run without buckets: zeros at the end do not change a seed.
        if self._orders.get(bucket, (-1,))[0] != epoch:
            random = np.random.default_rng((self.seed, 0, epoch, bucket))
            self._orders[bucket] = (epoch, random.permutation(self.images[bucket]))
        return self._orders[bucket][1]

    def _batches_before(self, epoch: int) -> np.ndarray:
        """How many batches each bucket fills before an epoch."""
        return epoch * self._counts // self.batch_size

    def _turns_of(self, epoch: int) -> np.ndarray:
        """The bucket of each step of an epoch."""
        if self._turns[0] != epoch:
            batches = self._batches_before(epoch + 1) - self._batches_before(epoch)
            turns = np.repeat(np.arange(len(batches)), batches)
            self._turns = (epoch, np.random.default_rng((self.seed, 4, epoch)).permutation(turns))
        return self._turns[1]
