import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thumbnet.errors import DataError, DivergedError
from thumbnet.evaluation.metrics import CALIBRATION_BINS, calibrate, compute_metrics, expected_calibration_error


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {label}" for label in range(count))


def random_case(examples: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(examples, classes)).astype(np.float32)
    labels = rng.integers(0, classes, examples)
    logits[np.arange(examples), labels] += 1.5
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("examples", "classes"), [(1000, 10), (777, 100), (50, 2), (30, 6)])
def test_agrees_with_scikit_learn(examples, classes):
    logits, labels = random_case(examples, classes)
    metrics = compute_metrics(logits, labels, names(classes))
    predicted = logits.argmax(axis=1)
    every = list(range(classes))

    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    assert metrics.examples == examples
    assert metrics.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics.loss == pytest.approx(sklearn.metrics.log_loss(labels, softmax(logits), labels=every))
    np.testing.assert_array_equal(metrics.confusion, sklearn.metrics.confusion_matrix(labels, predicted, labels=every))
    np.testing.assert_allclose([c.precision for c in metrics.per_class], precision)
    np.testing.assert_allclose([c.recall for c in metrics.per_class], recall)
    np.testing.assert_allclose([c.f1 for c in metrics.per_class], f1)
    assert [c.support for c in metrics.per_class] == list(support)
    assert [c.name for c in metrics.per_class] == list(names(classes))
    if classes > 2:
        expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=every) if classes > 5 else 1.0
        assert metrics.top5 == pytest.approx(expected)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_top5_is_one_with_five_classes_or_fewer(classes):
    logits, labels = random_case(40, classes)
    assert compute_metrics(logits, labels, names(classes)).top5 == 1.0


def test_mistakes_are_told_the_surest_first():
    logits, labels = random_case(300, 7)
    metrics = compute_metrics(logits, labels, names(7))
    mistakes, probabilities = metrics.mistakes, softmax(logits)
    assert sorted(mistakes.examples) == np.flatnonzero(logits.argmax(axis=1) != labels).tolist()
    assert len(mistakes.examples) == 300 - np.trace(metrics.confusion)
    np.testing.assert_array_equal(mistakes.labels, labels[mistakes.examples])
    np.testing.assert_array_equal(mistakes.predicted, logits.argmax(axis=1)[mistakes.examples])
    np.testing.assert_allclose(mistakes.confidence, probabilities.max(axis=1)[mistakes.examples])
    assert (np.diff(mistakes.confidence) <= 0).all()


def test_ties_go_to_the_lower_label():
    logits = np.zeros((7, 7), np.float32)
    metrics = compute_metrics(logits, np.arange(7), names(7))
    assert metrics.accuracy == pytest.approx(1 / 7)  # only label 0 is predicted
    assert metrics.top5 == pytest.approx(5 / 7)  # labels 0 to 4 come first
    assert metrics.loss == pytest.approx(np.log(7))
    assert metrics.confusion[:, 0].tolist() == [1] * 7


def test_class_never_predicted_and_class_without_images_count_as_zero():
    logits = np.array([[5, 0, 0], [5, 0, 0]], np.float32)
    metrics = compute_metrics(logits, np.array([0, 1]), names(3))
    assert [(c.precision, c.recall, c.f1, c.support) for c in metrics.per_class] == [
        (0.5, 1.0, pytest.approx(2 / 3), 1),
        (0.0, 0.0, 0.0, 1),
        (0.0, 0.0, 0.0, 0),
    ]


def test_loss_of_extreme_logits_is_finite():
    logits = np.array([[3e38, -3e38], [0, 2000]], np.float32)
    metrics = compute_metrics(logits, np.array([0, 0]), names(2))
    assert metrics.loss == pytest.approx(1000)  # (0 + 2000) / 2
    assert metrics.accuracy == 0.5


def test_calibration_error_by_hand():
    # Bins of width 1/15: 0.62 and 0.65 fall into (0.6, 0.6667], 0.95 into (0.9333, 1].
    calibration = calibrate(np.array([0.62, 0.65, 0.95, 0.95]), np.array([True, False, True, True]))
    assert calibration.count.tolist() == [0] * 9 + [2] + [0] * 4 + [2]
    assert calibration.confidence[9] == pytest.approx(0.635)
    assert calibration.accuracy[9] == pytest.approx(0.5)
    assert expected_calibration_error(calibration) == pytest.approx((2 * 0.135 + 2 * 0.05) / 4)


def test_calibration_edges_belong_to_the_bin_below():
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:]
    calibration = calibrate(edges, np.ones(CALIBRATION_BINS, bool))
    assert calibration.count.tolist() == [1] * CALIBRATION_BINS


def test_calibration_error_of_logits_by_hand():
    # Probabilities 0.8 and 0.2, three of four right: |0.75 - 0.8|.
    logits = np.log(np.array([[0.8, 0.2]] * 4)).astype(np.float32)
    assert compute_metrics(logits, np.array([0, 0, 0, 1]), names(2)).ece == pytest.approx(0.05)


def brute_force_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Guo et al. 2017 as written: a loop over half-open bins."""
    total = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_agrees_with_the_definition():
    logits, labels = random_case(2000, 10, seed=3)
    probabilities = softmax(logits)
    expected = brute_force_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    assert compute_metrics(logits, labels, names(10)).ece == pytest.approx(expected)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-50, 50, width=32)),
    st.data(),
)
def test_figures_are_consistent(logits, data):
    examples, classes = logits.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=examples, max_size=examples)))
    metrics = compute_metrics(logits, labels, names(classes))
    assert metrics.confusion.sum() == metrics.calibration.count.sum() == examples
    assert 0 <= metrics.accuracy <= metrics.top5 <= 1
    assert 0 <= metrics.ece <= 1
    assert metrics.loss >= 0
    assert sum(c.recall * c.support for c in metrics.per_class) == pytest.approx(metrics.accuracy * examples)
    # Logits that differ by a constant per example are the same prediction.
    shifted = compute_metrics(logits.astype(np.float64) + 7, labels, names(classes))
    assert shifted.loss == pytest.approx(metrics.loss, abs=1e-9)


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range_is_named(label):
    logits, labels = random_case(20, 10)
    labels[13] = label
    with pytest.raises(DataError, match=f"example 13 has label {label}: it must be 0 to 9"):
        compute_metrics(logits, labels, names(10))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits, labels = random_case(20, 10)
    logits[4, 2] = logits[7, 0] = value
    with pytest.raises(DivergedError, match="2 of 20 examples, first for example 4"):
        compute_metrics(logits, labels, names(10))


def test_no_examples_and_wrong_shapes_are_refused():
    with pytest.raises(DataError, match="no examples"):
        compute_metrics(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), names(3))
    with pytest.raises(DataError, match=r"2 labels and 3 classes .* \(2, 4\)"):
        compute_metrics(np.zeros((2, 4), np.float32), np.zeros(2, np.int64), names(3))
