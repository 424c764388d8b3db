import numpy as np
import pytest

from thumbnet.data.dataset import ImageDataset
from thumbnet.data.shapes import CLASS_NAMES, draw_shapes


@pytest.fixture(scope="module")
def drawn() -> tuple[ImageDataset, ImageDataset]:
    return draw_shapes()


def test_shapes_are_ten_balanced_classes_of_small_colour_pictures(drawn: tuple[ImageDataset, ImageDataset]):
    train, test = drawn
    assert (len(train), len(test)) == (5000, 1000)
    assert train.class_names == test.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 10
    assert train.image_shape == (32, 32, 3)
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.key(3) == "shapes_train:3"


def test_shapes_are_the_same_every_time_and_no_two_are_alike(drawn: tuple[ImageDataset, ImageDataset]):
    seen = set()
    for once, again in zip(drawn, draw_shapes(), strict=True):
        images, labels = once.gather(np.arange(len(once)))
        images_again, labels_again = again.gather(np.arange(len(again)))
        assert np.array_equal(images, images_again)
        assert np.array_equal(labels, labels_again)
        seen |= {image.tobytes() for image in images}
    assert len(seen) == 6000


def test_every_picture_shows_something(drawn: tuple[ImageDataset, ImageDataset]):
    images = drawn[1].gather(np.arange(1000))[0].astype(np.float32)
    central = images[:, 4:28, 4:28]  # what is left of a picture in evaluation at 24x24
    assert (central.std(axis=(1, 2)).max(axis=1) > 15).all()
