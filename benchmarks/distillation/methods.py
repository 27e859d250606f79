"""The methods that are compared, each with the weights that were published for it.

γ, α and β are the weights of the RepDistiller benchmark, γ·CE + α·KD + β·method, taken from its
published commands for CIFAR (Tian, Krishnan, Isola 2019, arXiv:1910.10699); where a method is not
in that benchmark, from its own paper. They were fixed before anything was run here. Our mixing
s·CE + (1−s)·Σ wᵢ·lossᵢ has the same minima with s = γ/(1+γ) and the weights as they are.

Each method runs alone (α = 0) and with Hinton's loss (α = 1, T = 4). Layers are those of the
benchmark: f1, f2, f3 the last maps of the three stages, f4 the pooled embedding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

from benchmarks.distillation.cifar import STUDENT, TEACHER, Network
from tfcomp import distillation

# The name under which step times are kept.
STEP_TIMES = "distillation_step_times"
TEMPERATURE = 4.0
NEGATIVES_PER_SAMPLE = 16_384 / 50_000
# Of 240 epochs the benchmark adds 30 of initialisation where a method has such a stage.
FIRST_STAGE = 30 / 270

Kind = Literal["plain", "losses", "initialise", "paraphrase", "mutual"]


def _maps(network: Network) -> list[str]:
    return [f"stage{stage}_block{network.blocks}_relu2" for stage in (1, 2, 3)]


STEM = "stem_relu"
POOL = "pool"
TEACHER_MAPS, STUDENT_MAPS = _maps(TEACHER), _maps(STUDENT)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        title: What a table calls it.
        year: Of the paper.
        kind: How it is trained: the student alone; with losses; initialised by the loss and then
            trained without it; with a paraphraser trained first; with a peer.
        published: Where the weights come from, in a few words.
        gamma: Weight of the labels.
        beta: Weight of the method's loss.
        loss: Makes the loss, given the labels of all samples in the order of their indices.
        reads: What the teacher's cache must hold: outputs with the embedding, or the maps too.
        with_kd: Weights of labels and method, where they differ when it is added to Hinton's loss.
    """

    title: str
    year: int
    kind: Kind
    published: str
    gamma: float = 1.0
    beta: float = 0.0
    loss: Callable[[Any], Any] | None = None
    reads: Literal["embedding", "maps"] = "embedding"
    with_kd: tuple[float, float] | None = None


def _class(name: str) -> Any:
    """A loss of the package by name; a method that the package lacks fails alone."""
    return getattr(distillation, name)


def _on_maps(name: str, **settings: Any) -> Callable[[Any], Any]:
    return lambda _: _class(name)(
        teacher_layer=TEACHER_MAPS, student_layer=STUDENT_MAPS, **settings
    )


def _on_embedding(name: str, **settings: Any) -> Callable[[Any], Any]:
    return lambda _: _class(name)(teacher_layer=POOL, student_layer=POOL, **settings)


def _one_map(name: str, stage: int, **settings: Any) -> Callable[[Any], Any]:
    return lambda _: _class(name)(
        teacher_layer=TEACHER_MAPS[stage - 1], student_layer=STUDENT_MAPS[stage - 1], **settings
    )


def _flow(_: Any) -> Any:
    teacher, student = [STEM, *TEACHER_MAPS], [STEM, *STUDENT_MAPS]
    return _class("FlowOfSolutionProcedure")(
        teacher_layer=[list(pair) for pair in itertools.pairwise(teacher)],
        student_layer=[list(pair) for pair in itertools.pairwise(student)],
    )


def _contrast(labels: Any) -> Any:
    return _class("ContrastiveRepresentationDistillation")(
        samples=len(labels),
        negatives=round(NEGATIVES_PER_SAMPLE * len(labels)),
        labels=labels,
        teacher_layer=POOL,
        student_layer=POOL,
        seed=0,
    )


# The benchmark's mean over the map's 8·8 positions and all channels, β = 100, as our ½·sum.
_HINT = 100 * 2 / (8 * 8 * TEACHER.widths[1])
_KD = "RepDistiller: γ 0.1, α 0.9, T 4"

METHODS: dict[str, Method] = {
    "alone": Method("student alone", 0, "plain", "labels only"),
    "kd": Method("KD", 2015, "losses", _KD, gamma=0.1),
    "hint": Method(
        "FitNets hint",
        2014,
        "losses",
        "RepDistiller: β 100, f2, beside the labels instead of a stage",
        beta=_HINT,
        loss=_one_map("FitNetsHint", 2),
        reads="maps",
    ),
    "at": Method(
        "AT",
        2016,
        "losses",
        "RepDistiller: β 1000, f1–f3",
        beta=1000.0,
        loss=_on_maps("AttentionTransfer"),
        reads="maps",
    ),
    "sp": Method(
        "SP",
        2019,
        "losses",
        "RepDistiller: β 3000, f3",
        beta=3000.0,
        loss=lambda _: _class("SimilarityPreserving")([TEACHER_MAPS[2]], [STUDENT_MAPS[2]]),
        reads="maps",
    ),
    "cc": Method(
        "CC",
        2019,
        "losses",
        "RepDistiller, its own form of CC: β 0.02, f4",
        beta=0.02,
        loss=_on_embedding("CorrelationCongruence", variant="repdistiller"),
    ),
    "vid": Method(
        "VID",
        2019,
        "losses",
        "RepDistiller: β 1, f1–f3",
        beta=1.0,
        loss=_on_maps("VariationalInformationDistillation"),
        reads="maps",
    ),
    "rkd": Method(
        "RKD",
        2019,
        "losses",
        "RepDistiller: β 1 with 25 and 50, f4",
        beta=1.0,
        loss=_on_embedding("RelationalKD"),
    ),
    "pkt": Method(
        "PKT",
        2018,
        "losses",
        "RepDistiller: β 30000, f4",
        beta=30_000.0,
        loss=_on_embedding("ProbabilisticKnowledgeTransfer"),
    ),
    "ab": Method(
        "AB",
        2018,
        "initialise",
        "RepDistiller: β 1 in the first stage, f1–f3 before activation",
        beta=1.0,
        loss=_on_maps("ActivationBoundaries"),
    ),
    "ft": Method(
        "FT",
        2018,
        "paraphrase",
        "RepDistiller: β 200, f3, rate 0.5",
        beta=200.0,
        loss=_one_map("FactorTransfer", 3),
        reads="maps",
    ),
    "fsp": Method(
        "FSP", 2017, "initialise", "RepDistiller: first stage alone, f0–f3", beta=1.0, loss=_flow
    ),
    "nst": Method(
        "NST",
        2017,
        "losses",
        "RepDistiller: β 50, f1–f3",
        beta=50.0,
        loss=_on_maps("NeuronSelectivityTransfer"),
        reads="maps",
    ),
    "crd": Method(
        "CRD",
        2019,
        "losses",
        "RepDistiller: β 0.8, τ 0.07, negatives 0.33 per sample, f4",
        beta=0.8,
        loss=_contrast,
    ),
    "logits": Method(
        "logit regression",
        2014,
        "losses",
        "its paper: no labels",
        gamma=0.0,
        beta=1.0,
        loss=lambda _: _class("LogitRegression")(),
        with_kd=(1.0, 1.0),
    ),
    "noisy": Method(
        "noisy teacher",
        2016,
        "losses",
        "no labels, as its paper, which tunes the noise: here σ 0.1, a 0.5, not tuned",
        gamma=0.0,
        beta=1.0,
        loss=lambda _: _class("NoisyTeacher")(stddev=0.1, probability=0.5),
        with_kd=(1.0, 1.0),
    ),
    "mutual": Method("mutual learning", 2017, "mutual", "its paper: two equal peers, weights 1"),
    "dkd": Method(
        "DKD",
        2022,
        "losses",
        "its paper: α 1, β 8, T 4",
        beta=1.0,
        loss=lambda _: _class("DecoupledKD")(alpha=1.0, beta=8.0, temperature=TEMPERATURE),
    ),
    "dist": Method(
        "DIST",
        2022,
        "losses",
        "its paper: β 2, γ 2, τ 4",
        beta=1.0,
        loss=lambda _: _class("DIST")(beta=2.0, gamma=2.0, temperature=4.0),
    ),
}

ALONE = "alone"
WITH_KD = "+kd"
# The student alone and Hinton's loss first; then the methods, each alone and with Hinton's loss.
RUNS: tuple[str, ...] = (
    ALONE,
    "kd",
    *(name + end for name in METHODS if name not in (ALONE, "kd") for end in ("", WITH_KD)),
)


def find(run: str) -> tuple[Method, bool]:
    """The method of a run, and whether Hinton's loss is added: `"at+kd"`."""
    return METHODS[run.removesuffix(WITH_KD)], run == "kd" or run.endswith(WITH_KD)


def asks_teacher(run: str) -> bool:
    """Whether a run needs the teacher at all."""
    method, kd = find(run)
    return kd or method.kind not in ("plain", "mutual")


def weights(run: str) -> tuple[float, float, float]:
    """γ, α and β of a run: the weights of labels, Hinton's loss and the method's own."""
    method, kd = find(run)
    if run == "kd":
        return method.gamma, 1.0 - method.gamma, 0.0
    gamma, beta = method.gamma, method.beta
    if kd and method.with_kd:
        gamma, beta = method.with_kd
    return gamma, float(kd), beta
