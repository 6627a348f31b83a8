"""Which images and which size each step has: of one size, all images equally often, from the step's number alone."""

from collections import Counter

import numpy as np
import pytest

from training.images.buckets import Buckets


SQUARE, WIDE, TALL = (32, 32), (24, 48), (48, 24)
# Nearest by the logarithm: 0.7 is nearer to 0.5 than to 1 and 1.45 nearer to 2, by the difference it is not so.
RATIOS = np.array([1.0, 0.5, 0.4, 0.8, 0.7, 1.9, 1.45, 1.3, 3.0, 1.05, 0.1])
SQUARES, WIDES, TALLS = [0, 3, 7, 9], [1, 2, 4, 10], [5, 6, 8]


def make(sizes=(SQUARE, WIDE, TALL), ratios=RATIOS, batch_size=4, seed=0) -> Buckets:
    return Buckets(list(sizes), np.asarray(ratios, dtype=float), batch_size, seed)


def drawn(buckets: Buckets, position: int) -> tuple[int, tuple[int, int]]:
    """The number of the image at a position and its size."""
    bucket, number, size = buckets.place(position)
    epoch, place = divmod(number, len(buckets.images[bucket]))
    return int(buckets.order(bucket, epoch)[place]), size


def test_an_image_belongs_to_the_aspect_ratio_nearest_to_its_own():
    found = make()
    assert found.sizes == [[SQUARE], [WIDE], [TALL]]
    assert [images.tolist() for images in found.images] == [SQUARES, WIDES, TALLS]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 32])
def test_each_step_has_images_of_one_bucket_and_its_size(batch_size):
    buckets = make(batch_size=batch_size)
    sizes = set()
    for step in range(30):
        draws = [drawn(buckets, step * batch_size + row) for row in range(batch_size)]
        (size,) = {size for _, size in draws}
        assert {image for image, _ in draws} <= {SQUARE: set(SQUARES), WIDE: set(WIDES), TALL: set(TALLS)}[size]
        sizes.add(size)
    assert sizes == {SQUARE, WIDE, TALL}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("num_tall", [1, 3, 40])
def test_all_images_come_equally_often(batch_size, num_tall):
    """Also those of a bucket that fills a step once in many epochs, or with the same image several times."""
    ratios = [1.0] * 20 + [0.5] * 7 + [2.0] * num_tall
    buckets = make(ratios=ratios, batch_size=batch_size)
    epochs = 32
    counts = Counter(drawn(buckets, position)[0] for position in range(epochs * len(ratios)))
    # What waits for a step to be full comes later, and of what comes more than once in a step a whole step waits.
    waiting = 1 + batch_size / min(7, num_tall)
    assert all(abs(counts[image] - epochs) <= 1 + waiting for image in range(len(ratios)))


def test_every_image_of_a_bucket_comes_before_any_comes_again():
    buckets = make(batch_size=3)
    seen = {}
    for position in range(3 * 44):
        image, size = drawn(buckets, position)
        seen.setdefault(size, []).append(image)
    for size, images in ((SQUARE, SQUARES), (WIDE, WIDES), (TALL, TALLS)):
        epochs = [seen[size][start : start + len(images)] for start in range(0, 2 * len(images), len(images))]
        assert [sorted(epoch) for epoch in epochs] == [images, images]


def test_buckets_take_turns_at_random():
    turns = [make(seed=seed).place(4 * step)[0] for seed in range(2) for step in range(40)]
    assert turns[:40] != turns[40:]
    assert turns[:40] not in (sorted(turns[:40]), sorted(turns[:40])[::-1])


def test_a_place_depends_on_the_position_alone():
    in_order = make()
    places = [drawn(in_order, position) for position in range(200)]
    backwards = make()
    assert [drawn(backwards, position) for position in reversed(range(200))] == places[::-1]
    assert [drawn(make(), position) for position in (0, 73, 199)] == [places[0], places[73], places[199]]


def test_one_size_keeps_the_order_that_runs_without_buckets_have_always_had():
    buckets = make(sizes=[WIDE], ratios=[np.nan] * 5, batch_size=4, seed=7)
    expected = np.concatenate([np.random.default_rng((7, 0, epoch)).permutation(5) for epoch in range(3)])
    assert [drawn(buckets, position) for position in range(15)] == [(image, WIDE) for image in expected.tolist()]


def test_sizes_of_one_aspect_ratio_share_their_images():
    buckets = make(sizes=[SQUARE, WIDE, (48, 48)], batch_size=2)
    assert buckets.sizes == [[SQUARE, (48, 48)], [WIDE]]
    sizes = Counter()
    for step in range(400):
        draws = [drawn(buckets, 2 * step + row) for row in range(2)]
        assert len({size for _, size in draws}) == 1
        sizes[draws[0][1]] += 1
    assert 0.4 < sizes[SQUARE] / (sizes[SQUARE] + sizes[(48, 48)]) < 0.6


def test_images_of_unknown_size_join_the_largest_bucket():
    ratios = [np.nan, 2.0, 0.5, 0.5, np.nan]
    assert [images.tolist() for images in make(ratios=ratios).images] == [[], [0, 2, 3, 4], [1]]
    assert {drawn(make(ratios=ratios), position)[1] for position in range(80)} == {WIDE, TALL}
