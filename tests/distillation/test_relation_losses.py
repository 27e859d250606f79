"""Losses on relations against loops over samples, finite differences, and their promises."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import (
    CorrelationCongruence,
    Distiller,
    ProbabilisticKnowledgeTransfer,
    RelationalKD,
    SimilarityPreserving,
)
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.errors import TfcompError

Pair = tuple[np.ndarray, np.ndarray]
Oracle = Callable[[np.ndarray, np.ndarray], float]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def similarity_oracle(teacher: np.ndarray, student: np.ndarray) -> float:
    count = len(teacher)
    grams = []
    for features in (teacher, student):
        flat = features.reshape(count, -1)
        gram = np.array([[sum(a * b) for b in flat] for a in flat])
        grams.append(np.array([row / math.sqrt(sum(row**2)) for row in gram]))
    gap = grams[0] - grams[1]
    return sum(gap[i, j] ** 2 for i in range(count) for j in range(count)) / count**2


def congruence_oracle(
    gamma: float, order: int, weight: float, teacher: np.ndarray, student: np.ndarray
) -> float:
    count = len(teacher)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        terms = [(2 * gamma) ** p / math.factorial(p) * cosine(a, b) ** p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    relation = instances = 0.0
    for i in range(count):
        unit_t = teacher[i] / math.sqrt(sum(teacher[i] ** 2))
        unit_s = student[i] / math.sqrt(sum(student[i] ** 2))
        instances += sum((unit_t - unit_s) ** 2)
        for j in range(count):
            gap = kernel(teacher[i], teacher[j]) - kernel(student[i], student[j])
            relation += gap**2
    return relation / count**2 + weight * instances / count


def huber(gap: float) -> float:
    return 0.5 * gap**2 if abs(gap) <= 1 else abs(gap) - 0.5


def relational_oracle(
    distance_weight: float,
    angle_weight: float,
    variant: str,
    teacher: np.ndarray,
    student: np.ndarray,
) -> float:
    count = len(teacher)
    both = [features.reshape(count, -1) for features in (teacher, student)]

    def distance(x: np.ndarray, i: int, j: int) -> float:
        return math.sqrt(sum((x[i] - x[j]) ** 2))

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        return 0.0 if j in (i, k) else cosine(x[i] - x[j], x[k] - x[j])

    indices = range(count)
    means = [np.mean([distance(x, i, j) for i in indices for j in indices if i != j]) for x in both]
    distances = [
        huber(distance(both[0], i, j) / means[0] - distance(both[1], i, j) / means[1])
        for i in indices
        for j in indices
        if variant == "code" or i != j
    ]
    angles = [
        huber(angle(both[0], i, j, k) - angle(both[1], i, j, k))
        for i in indices
        for j in indices
        for k in indices
        if variant == "code" or len({i, j, k}) == 3
    ]
    return distance_weight * float(np.mean(distances)) + angle_weight * float(np.mean(angles))


def transfer_oracle(variant: str, teacher: np.ndarray, student: np.ndarray) -> float:
    count = len(teacher)
    total = 0.0
    for i in range(count):
        others = [j for j in range(count) if variant == "code" or j != i]
        p, q = (
            np.array([max((1 + cosine(x[i], x[j])) / 2, 1e-7) for j in others])
            for x in (teacher, student)
        )
        p, q = p / sum(p), q / sum(q)
        total += sum(p * np.log(p / q))
    return total / count**2 if variant == "code" else total / count


def flat(oracle: Oracle) -> Oracle:
    return lambda t, s: oracle(t.reshape(len(t), -1), s.reshape(len(s), -1))


def partial(oracle: Callable[..., float], *given_: Any) -> Oracle:
    return flat(lambda t, s: oracle(*given_, t, s))


# Name: the loss, its oracle, whether widths may differ without a regressor.
CASES: dict[str, tuple[Callable[[], FeatureLoss], Oracle, bool]] = {
    "similarity": (SimilarityPreserving, similarity_oracle, True),
    "congruence": (CorrelationCongruence, partial(congruence_oracle, 0.4, 2, 1.0), False),
    "congruence of order 3": (
        lambda: CorrelationCongruence(gamma=0.8, order=3, instance_weight=0.0),
        partial(congruence_oracle, 0.8, 3, 0.0),
        False,
    ),
    "relational": (RelationalKD, partial(relational_oracle, 25, 50, "code"), True),
    "relational of the paper": (
        lambda: RelationalKD(2.0, 3.0, variant="paper"),
        partial(relational_oracle, 2, 3, "paper"),
        True,
    ),
    "distances alone": (
        lambda: RelationalKD(angle_weight=0.0),
        partial(relational_oracle, 25, 0, "code"),
        True,
    ),
    "transfer": (ProbabilisticKnowledgeTransfer, partial(transfer_oracle, "code"), True),
    "transfer of the paper": (
        lambda: ProbabilisticKnowledgeTransfer(variant="paper"),
        partial(transfer_oracle, "paper"),
        True,
    ),
}
EVERY = pytest.mark.parametrize("case", list(CASES))
COUNTS = st.integers(3, 6)
WIDTHS = st.sampled_from([(1,), (2,), (5,), (2, 3, 2)])


@st.composite
def pairs(draw: Any) -> Pair:
    """Features of the same samples, of one shape and of another; generic, thus smooth."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, scale = draw(COUNTS), draw(st.sampled_from([0.05, 1.0, 20.0]))
    shapes = draw(WIDTHS), draw(WIDTHS)
    teacher, student = (rng.standard_normal((count, *shape)) for shape in shapes)
    return teacher, scale * student


def value_of(loss: FeatureLoss, pair: Pair, dtype: str = "float64") -> Any:
    teacher, student = (tf.convert_to_tensor(features, dtype) for features in pair)
    if loss.several:
        return loss.compute_loss([teacher], [student])
    return loss.compute_loss(teacher, student)


def fitting(case: str, pair: Pair) -> Pair:
    """The pair with students of the teacher's shape where a regressor would be needed."""
    teacher, student = pair
    return pair if CASES[case][2] else (teacher, np.resize(student, teacher.shape))


@EVERY
@settings(deadline=None, max_examples=12)
@given(pair=pairs())
def test_value_is_the_papers(case: str, pair: Pair) -> None:
    make, oracle, _ = CASES[case]
    pair = fitting(case, pair)
    expected = oracle(*pair)
    assert float(value_of(make(), pair)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    single = value_of(make(), pair, "float32")
    assert single.dtype == tf.float32
    assert float(single) == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert value_of(make(), pair, "float16").dtype == tf.float32


@EVERY
@settings(deadline=None, max_examples=6)
@given(pair=pairs(), seed=st.integers(0, 999))
def test_gradient_is_that_of_finite_differences(case: str, pair: Pair, seed: int) -> None:
    make, oracle, _ = CASES[case]
    teacher, student = fitting(case, pair)
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = value_of(make(), (teacher, variable))
    gradient = tape.gradient(value, variable).numpy()
    direction = np.random.default_rng(seed).standard_normal(student.shape)
    step = 1e-6 * np.abs(student).max()
    ahead, behind = (oracle(teacher, student + sign * step * direction) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    found, size = (gradient * direction).sum(), np.abs(gradient * direction).sum()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * size + 1e-6)


@EVERY
@settings(deadline=None, max_examples=10)
@given(pair=pairs(), scale=st.sampled_from([0.01, 3.0, 100.0]))
def test_never_negative_and_zero_when_equal(case: str, pair: Pair, scale: float) -> None:
    make, (teacher, student) = CASES[case][0], fitting(case, pair)
    assert float(value_of(make(), (teacher, student), "float32")) >= 0
    nearly = teacher + 1e-6 * np.resize(student, teacher.shape)
    assert float(value_of(make(), (teacher, nearly), "float32")) >= 0
    assert float(value_of(make(), (teacher, teacher), "float32")) == 0
    # Every one of them looks at directions or ratios alone.
    scaled = value_of(make(), (teacher, scale * teacher))
    assert float(scaled) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("case", ["relational", "relational of the paper"])
@settings(deadline=None, max_examples=10)
@given(pair=pairs(), seed=st.integers(0, 999))
def test_relational_is_blind_to_turns_shifts_and_scale(case: str, pair: Pair, seed: int) -> None:
    teacher, student = (features.reshape(len(features), -1) for features in pair)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((student.shape[1], student.shape[1])))[0]
    moved = 7.0 * student @ turn + rng.standard_normal(student.shape[1])
    loss = CASES[case][0]()
    expected = float(value_of(loss, (teacher, student)))
    assert float(value_of(loss, (teacher, moved))) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", ["transfer", "transfer of the paper", "similarity"])
@settings(deadline=None, max_examples=10)
@given(pair=pairs(), factor=st.floats(0.01, 100))
def test_neighbours_do_not_depend_on_scale(case: str, pair: Pair, factor: float) -> None:
    loss, (teacher, student) = CASES[case][0](), pair
    expected = float(value_of(loss, (teacher, student)))
    scaled = float(value_of(loss, (teacher, factor * student)))
    assert scaled == pytest.approx(expected, rel=1e-6, abs=1e-9)


@EVERY
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["zeros", "same", "one pair"])
def test_gradients_are_finite_where_points_coincide(case: str, count: int, kind: str) -> None:
    rng = np.random.default_rng(2)
    teacher = rng.standard_normal((count, 3))
    student = {
        "zeros": np.zeros((count, 3)),
        "same": np.ones((count, 3)),
        "one pair": np.concatenate([teacher[:1], teacher[:1], teacher])[:count],
    }[kind]
    for pair in [(teacher, student), (student, teacher), (student, student)]:
        variable = tf.Variable(pair[1], dtype="float32")
        with tf.GradientTape() as tape:
            value = value_of(CASES[case][0](), (pair[0], variable), "float32")
        assert np.isfinite(float(value))
        assert np.isfinite(tape.gradient(value, variable).numpy()).all()


def test_points_that_coincide_have_the_distance_zero_and_no_angle() -> None:
    teacher = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    student = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    # Divided by the means 10/3 and 4/3: 0, 3/2, 3/2 against 3/4, 3/2, 3/4.
    distances = RelationalKD(1.0, 0.0, variant="paper")
    assert float(value_of(distances, (teacher, student))) == pytest.approx(
        (huber(0.75) + huber(0.0) + huber(0.75)) / 3
    )
    # At 0: 0 against 1; at 1: 0 against −1; at 2: 1 against 1. Each triple from both sides.
    angles = RelationalKD(0.0, 1.0, variant="paper")
    assert float(value_of(angles, (teacher, student))) == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_several_layers_are_summed() -> None:
    rng = np.random.default_rng(0)
    teachers = [rng.standard_normal(shape) for shape in [(4, 2, 2, 3), (4, 5)]]
    students = [rng.standard_normal(shape) for shape in [(4, 3), (4, 4, 4, 2)]]
    expected = sum(map(similarity_oracle, teachers, students))
    value = SimilarityPreserving(["a", "b"], ["c", "d"]).compute_loss(
        list(map(tf.constant, teachers)), list(map(tf.constant, students))
    )
    assert float(value) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shapes", [((5, 6), (5, 3)), ((5, 2, 2, 6), (5, 2, 2, 3))])
def test_congruence_leads_the_student_to_the_teachers_shape(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    rng = np.random.default_rng(1)
    teacher, student = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    loss = CorrelationCongruence()
    loss.validate_outputs(tf.constant(teacher), tf.constant(student))
    (regressor,) = loss.layers
    kernel, bias = (weight.numpy() for weight in regressor.weights)
    led = student @ kernel.reshape(3, 6) + bias
    expected = flat(lambda t, s: congruence_oracle(0.4, 2, 1.0, t, s))(teacher, led)
    assert float(value_of(loss, (teacher, student), "float32")) == pytest.approx(expected, rel=1e-4)


def test_repdistillers_congruence_multiplies_neighbours() -> None:
    rng = np.random.default_rng(1)
    teacher = rng.standard_normal((5, 2, 3)).astype("float32")
    student = rng.standard_normal((5, 4)).astype("float32")
    loss = CorrelationCongruence(variant="repdistiller")
    loss.validate_outputs(tf.constant(teacher), tf.constant(student))
    embed = [[weight.numpy() for weight in layer.weights] for layer in loss.layers]
    assert [weights[0].shape for weights in embed] == [(6, 128), (4, 128)]
    gap = np.abs(teacher.reshape(5, 6) @ embed[0][0] - student @ embed[1][0])
    expected = np.mean([sum(gap[i] * gap[i + 1]) for i in range(4)])
    assert float(value_of(loss, (teacher, student), "float32")) == pytest.approx(expected, rel=1e-4)
    alone = value_of(loss, (teacher[:1], student[:1]), "float32")
    assert float(alone) == 0


@settings(deadline=None, max_examples=8, derandomize=True)
@given(pair=pairs(), seed=st.integers(0, 999))
def test_repdistillers_congruence_and_its_gradient_agree(pair: Pair, seed: int) -> None:
    teacher, student = pair
    keras.utils.set_random_seed(seed)
    loss = CorrelationCongruence(variant="repdistiller")
    loss.validate_outputs(tf.constant(teacher), tf.constant(student))
    (kernel_t, bias_t), (kernel_s, bias_s) = (
        [weight.numpy().astype("float64") for weight in layer.weights] for layer in loss.layers
    )
    count = len(teacher)

    def oracle() -> float:
        gaps = [
            np.abs(t.ravel() @ kernel_t + bias_t - (s.ravel() @ kernel_s + bias_s))
            for t, s in zip(teacher, student, strict=True)
        ]
        return sum(a @ b for a, b in itertools.pairwise(gaps)) / (count - 1)

    variable = tf.Variable(student, dtype="float32")
    trained = [weight.value for layer in loss.layers for weight in layer.weights]
    with tf.GradientTape() as tape:
        tape.watch(trained)
        value = value_of(loss, (teacher.astype("float32"), variable), "float32")
    assert float(value) == pytest.approx(oracle(), rel=1e-4)
    rng = np.random.default_rng(seed)
    places = [student, kernel_t, bias_t, kernel_s, bias_s]
    for gradient, place in zip(tape.gradient(value, [variable, *trained]), places, strict=True):
        direction, step = rng.standard_normal(place.shape), 1e-7
        kept, sides = place.copy(), []
        for sign in (1, -1):
            place[...] = kept + sign * step * direction
            sides.append(oracle())
        place[...] = kept
        found = gradient.numpy() * direction
        expected = (sides[0] - sides[1]) / (2 * step)
        assert found.sum() == pytest.approx(expected, rel=1e-3, abs=1e-4 * np.abs(found).sum())


@pytest.mark.parametrize(
    "loss",
    [
        SimilarityPreserving(["a", 3], ["b", -2], name="similar"),
        CorrelationCongruence(0.2, 3, 0.5, teacher_layer=1, student_layer="x"),
        CorrelationCongruence(variant="repdistiller"),
        RelationalKD(1.0, 2.0, variant="paper", name="rkd"),
        ProbabilisticKnowledgeTransfer("paper", "a", "b"),
    ],
)
def test_configuration_round_trip(loss: FeatureLoss) -> None:
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: CorrelationCongruence(gamma=0), "`gamma` must be a number above 0. Received: 0"),
        (lambda: CorrelationCongruence(order=0), "`order`"),
        (lambda: CorrelationCongruence(order=2.0), "`order`"),
        (lambda: CorrelationCongruence(instance_weight=-1), "`instance_weight`"),
        (lambda: CorrelationCongruence(variant="code"), "'paper' or 'repdistiller'"),
        (lambda: RelationalKD(distance_weight=float("nan")), "`distance_weight`"),
        (lambda: RelationalKD(angle_weight=True), "`angle_weight`"),
        (lambda: RelationalKD(variant="x"), "'code' or 'paper'"),
        (lambda: ProbabilisticKnowledgeTransfer(variant=None), "`variant`"),
    ],
)
def test_bad_arguments_are_told_in_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TfcompError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_features_of_unknown_size_are_refused() -> None:
    unknown = keras.KerasTensor((None, None, 3))
    with pytest.raises(TfcompError, match="known sizes"):
        SimilarityPreserving().compute_loss([unknown], [unknown])


def test_all_of_them_train_a_narrower_student(
    make_net: Callable[..., keras.Model], data: tuple[np.ndarray, np.ndarray]
) -> None:
    losses = [
        SimilarityPreserving(),
        SimilarityPreserving(["conv", "pool"], ["conv", "pool"], name="maps"),
        CorrelationCongruence(),
        CorrelationCongruence(variant="repdistiller", name="neighbours"),
        RelationalKD(),
        ProbabilisticKnowledgeTransfer(),
        ProbabilisticKnowledgeTransfer(teacher_layer="head", student_layer="head", name="logits"),
    ]
    teacher, student = make_net(8), make_net(3)
    distiller = Distiller(teacher, student, losses, student_loss_weight=0.0)
    assert [loss.teacher_layer_name for loss in losses[:3]] == [["pool"], ["conv", "pool"], "pool"]
    distiller.compile(keras.optimizers.Adam(0.01))
    before = teacher.get_weights()
    history = distiller.fit(data[0], batch_size=8, epochs=12, verbose=0).history
    for name in (
        "similarity_preserving",
        "maps",
        "correlation_congruence",
        "neighbours",
        "relational_kd",
        "logits",
    ):
        assert history[name][-1] < history[name][0], name
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    with pytest.raises(TfcompError, match="weights"):
        distiller.fit(*data, sample_weight=np.ones(16), verbose=0)
