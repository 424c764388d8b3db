import itertools

import numpy as np
import pytest
import torch

from thumbnet.config import DistortConfig
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.errors import UsageError
from thumbnet.input.distort import prepare
from thumbnet.input.mosaic import TILE, caption, displayable, draw_mosaic, sample


def dataset_of(labels: list[int], classes: int, side: int = 32, channels: int = 3) -> ImageDataset:
    layout = RecordFormat(image_shape=(side, side, channels))
    images = np.random.default_rng(3).integers(0, 256, (len(labels), side, side, channels), dtype=np.uint8)
    part = RecordPart(name="memory", where="memory", records=layout.pack(images, np.array(labels)))
    return ImageDataset("memory", [f"class_{label}" for label in range(classes)], layout, [part])


def test_samples_take_the_classes_in_turn():
    dataset = dataset_of([0] * 50 + [1] * 3 + [2] * 50, 3)
    chosen = sample(dataset, 10, seed=0)
    assert len(set(chosen.tolist())) == 10
    assert np.bincount(dataset.labels[chosen]).tolist() in ([4, 3, 3], [3, 3, 4])
    assert dataset.labels[chosen].tolist() == sorted(dataset.labels[chosen].tolist())
    assert np.array_equal(chosen, sample(dataset, 10, seed=0))
    assert not np.array_equal(chosen, sample(dataset, 10, seed=1))


def test_samples_are_no_more_than_there_are_and_need_not_show_every_class():
    assert len(sample(dataset_of([0, 2, 1], 3), 10, seed=0)) == 3
    assert len(set(sample(dataset_of(list(range(50)), 100), 5, seed=0).tolist())) == 5


def test_a_standardized_picture_becomes_visible_again():
    images = dataset_of([0, 0], 1, side=24).gather(np.arange(2))[0]
    shown = displayable(prepare(images, DistortConfig(crop=24)))
    assert shown.dtype == np.uint8
    assert shown.shape == (2, 24, 24, 3)
    for image, seen in zip(images, shown, strict=True):
        values = (image - image.mean()) / image.std()
        exact = np.clip(127.5 + 51 * values, 0, 255)
        assert np.abs(seen - exact).max() <= 1


def test_a_flat_picture_is_shown_grey():
    assert (displayable(torch.zeros(1, 3, 4, 4)) == 128).all()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (10, 1), (11, 2), (20, 2)])
def test_the_mosaic_holds_the_pictures_themselves(count: int, columns: int):
    dataset = dataset_of([index % 4 for index in range(40)], 4)
    chosen = sample(dataset, count, seed=0)
    page = np.asarray(draw_mosaic(dataset, DistortConfig(crop=24), chosen, seed=0, title="title"))
    assert page.shape[1] > columns * 7 * TILE
    assert page.shape[0] > -(-count // columns) * TILE
    for image in dataset.gather(chosen)[0]:
        enlarged = np.repeat(np.repeat(image, 3, axis=0), 3, axis=1)
        corner = (page[:, :, None, :] == enlarged[0, 0]).all(axis=(2, 3))
        assert any(
            np.array_equal(page[top : top + 96, left : left + 96], enlarged)
            for top, left in zip(*np.nonzero(corner), strict=True)
        )


@pytest.mark.parametrize(("side", "channels", "crop"), [(8, 3, 8), (32, 1, 24), (28, 3, 28)])
def test_pictures_of_other_sizes_are_drawn(side: int, channels: int, crop: int):
    dataset = dataset_of([0, 1], 2, side=side, channels=channels)
    page = draw_mosaic(dataset, DistortConfig(crop=crop), np.array([0, 1]), seed=0, title="title")
    assert len(np.unique(np.asarray(page)[112:208, 204:300])) > 100


def test_larger_pictures_are_shrunk_into_their_tiles():
    large, small = (
        np.asarray(
            draw_mosaic(dataset_of([0], 1, side=side), DistortConfig(crop=crop), np.array([0]), seed=0, title="t")
        )
        for side, crop in ((200, 150), (32, 24))
    )
    assert large.shape == small.shape
    outside = np.ones(large.shape[:2], np.bool_)
    for tile in range(7):
        left = 28 + 176 + (tile > 0) * (TILE + 3 * 8) + max(tile - 1, 0) * (TILE + 8)
        outside[112 : 112 + TILE, left : left + TILE] = False
        assert len(np.unique(large[112 : 112 + TILE, left : left + TILE])) > 100
    outside[:112] = False  # the heading names the size of the crop
    assert np.array_equal(large[outside], small[outside])


def test_a_crop_that_does_not_fit_is_refused():
    dataset = dataset_of([0], 1, side=8)
    with pytest.raises(UsageError, match="crop"):
        draw_mosaic(dataset, DistortConfig(crop=24), np.array([0]), seed=0, title="title")


def test_the_caption_tells_every_distortion_and_no_other():
    plain = caption(DistortConfig(crop=24, flip="none"), 6)
    assert "24x24 crops; " in plain.replace("\n", " ")
    full = caption(DistortConfig(crop=32, pad=2, flip="alternate", brightness=63, contrast=(0.2, 1.8), cutout=8), 6)
    for part in ("border of 2", "alternating flips", "brightness ±63", "contrast 0.2 to 1.8", "8x8 cut-outs"):
        assert part in full
        assert part not in plain


def test_letters_of_other_languages_are_drawn():
    dataset = dataset_of([0], 1)
    drawn = [
        np.asarray(draw_mosaic(dataset, DistortConfig(crop=24), np.array([0]), seed=0, title=title)) for title in "üñж"
    ]
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(drawn))  # no boxes
