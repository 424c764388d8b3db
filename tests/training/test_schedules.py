import pytest

from thumbnet.config import ScheduleConfig
from thumbnet.training.schedules import Phase, phases_of, rate_factor


def test_the_tutorials_first_stair_falls_at_its_step() -> None:
    config = ScheduleConfig(name="staircase", every_epochs=350, factor=0.1)
    steps_per_epoch = 50_000 / 128
    # 350 epochs of 390.625 steps are 136,718.75: the first step past them has the lower rate.
    assert rate_factor(config, progress=0.1, epoch=136_718 / steps_per_epoch) == 1
    assert rate_factor(config, progress=0.1, epoch=136_719 / steps_per_epoch) == pytest.approx(0.1)
    assert rate_factor(config, progress=0.1, epoch=2 * 136_719 / steps_per_epoch) == pytest.approx(0.01)


def test_a_stair_on_a_step_is_not_missed_by_rounding() -> None:
    config = ScheduleConfig(name="staircase", every_epochs=3, factor=0.5)
    steps_per_epoch = 1000 / 3
    assert rate_factor(config, progress=0, epoch=1000 / steps_per_epoch) == 0.5


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.2), (0.115, 0.6), (0.23, 1), (0.615, 0.535), (1, 0.07)])
def test_piecewise_is_linear_between_its_points(progress: float, expected: float) -> None:
    config = ScheduleConfig(name="piecewise", points=((0, 0.2), (0.23, 1), (1, 0.07)))
    assert rate_factor(config, progress=progress, epoch=99) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 1), (119.99, 1), (120, 0.1), (129.9, 0.1), (130, 0.01), (500, 0.01)]
)
def test_stairs_are_where_they_are_named(epoch: float, expected: float) -> None:
    config = ScheduleConfig(name="stairs", at_epochs=(120, 130), factor=0.1)
    assert rate_factor(config, progress=0, epoch=epoch) == pytest.approx(expected)


def test_pictures_have_one_size_unless_they_are_resized() -> None:
    assert phases_of(ScheduleConfig(), 24) == [Phase(start=0.0, end=1.0, side=24)]


def test_pictures_grow_in_phases() -> None:
    phases = phases_of(ScheduleConfig(resize=((0.25, 0.5), (0.75, 0.76))), 32)
    assert [(phase.start, phase.end, phase.side) for phase in phases] == [
        (0, 0.25, 16),
        (0.25, 0.75, 24),
        (0.75, 1, 32),
    ]
    assert [phase.share for phase in phases] == [0.25, 0.5, 0.25]


def test_a_picture_keeps_a_pixel() -> None:
    assert phases_of(ScheduleConfig(resize=((0.5, 0.1),)), 4)[0].side == 1
