"""The ideas that the study tried, one function each: from the data to a score for every trace to judge."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.covariance import EmpiricalCovariance
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.mixture import GaussianMixture
from sklearn.svm import OneClassSVM

from syscall_lm import scoring, training
from syscall_lm.detectors import catalogue
from syscall_lm.detectors.agreement import FLOOR, Agreement, pseudo_programs
from syscall_lm.detectors.call_sets import CallSets
from syscall_lm.detectors.evidence import quantiles
from syscall_lm.detectors.features import Frequency
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.detectors.mixture import ContextMixture
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import Stretch, stretch_means
from syscall_lm.experiments import data
from syscall_lm.experiments.data import Benchmark
from syscall_lm.traces.trace import Sequences

ORDER = 8
FOLDS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What an attempt may look at: a benchmark, its development half (bool `[N]`), V."""

    benchmark: Benchmark
    development: np.ndarray
    vocabulary_size: int

    @functools.cached_property
    def traces(self) -> Sequences:
        """All N traces to judge."""
        return self.benchmark.traces

    @functools.lru_cache(maxsize=8)  # noqa: B019  (a context lives as long as the program)
    def surprisal(self, order: int = ORDER) -> np.ndarray:
        """Of an n-gram model of the training traces, `[total]`."""
        return NGram(self.vocabulary_size, order).learn(self.benchmark.train).surprisal(self.traces)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """A mean a trace, `[N]`."""
        return scoring.means(values, self.traces)

    def calmest(self, length: int = 150) -> np.ndarray:
        """Of the order-8 surprisal, `[N]`."""
        return stretch_means(self.surprisal(), self.traces, "calmest", length)

    @functools.cached_property
    def unseen(self) -> dict[str, np.ndarray]:
        """Scores of the training traces, `[n]` each, by models that saw no trace of their pseudo-program."""
        train, size = self.benchmark.train, self.vocabulary_size
        fold = pseudo_programs(train) % FOLDS
        found = {name: np.zeros(len(train)) for name in ("mean", "calmest", "sets")}
        for k in np.unique(fold):
            known, unseen = train.take(fold != k), train.take(fold == k)
            surprisal = NGram(size, ORDER).learn(known).surprisal(unseen)
            found["mean"][fold == k] = scoring.means(surprisal, unseen)
            found["calmest"][fold == k] = stretch_means(surprisal, unseen, "calmest", 150)
            found["sets"][fold == k] = CallSets(size).learn(known).decision_function(unseen)
        return found

    @functools.cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """The same three scores of the traces to judge, `[N]` each."""
        return {"mean": self.mean(self.surprisal()), "calmest": self.calmest(), "sets": self.sets}

    @functools.cached_property
    def sets(self) -> np.ndarray:
        """The score of `CallSets`, `[N]`."""
        return CallSets(self.vocabulary_size).learn(self.benchmark.train).decision_function(self.traces)


def adaptive(traces: Sequences, order: int, start: np.ndarray) -> np.ndarray:
    """Surprisal under a Witten-Bell model that learns from each trace alone, as it reads it, `[total]`.

    Args:
      traces: read one by one.
      order: calls in an n-gram.
      start: P_0 of each call, `[total]`: 1 / V for a universal code, a trained model's probability for a cache on it.
    """
    calls = traces.calls.astype(np.int64)
    trace = np.repeat(np.arange(len(traces)), traces.lengths)
    place = np.arange(len(calls)) - traces.offsets[:-1][trace]
    symbols = int(calls.max(initial=0)) + 2
    context, probability = trace, start
    for length in range(1, order + 1):
        if length > 1:
            before = np.where(place >= length - 1, np.roll(calls, length - 1), symbols - 1)
            context = _number(context * symbols + before)
        same = _earlier(_number(context * symbols + calls))
        seen, kinds = _earlier(context), _earlier(context, same == 0)
        known = seen > 0
        estimate = (same + kinds * probability) / np.where(known, seen + kinds, 1)
        probability = np.where(known, estimate, probability)
    return -np.log(probability)


def _number(keys: np.ndarray) -> np.ndarray:
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _earlier(keys: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """How many earlier places (of those `counted`) hold the same key, `[total]`."""
    order = np.argsort(keys, kind="stable")
    ones = np.ones(len(keys), np.int64) if counted is None else counted[order].astype(np.int64)
    before = np.cumsum(ones) - ones
    first = np.concatenate([[True], np.diff(keys[order]) != 0])
    result = np.empty(len(keys), np.int64)
    result[order] = before - before[np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))]
    return result


def thinned(traces: Sequences, keep: float, rng: np.random.Generator) -> Sequences:
    """Traces as a lossy recording would hold them: each call is kept with probability `keep`, the first one always."""
    kept = rng.random(len(traces.calls)) < keep
    kept[traces.offsets[:-1]] = True
    lengths = np.add.reduceat(kept.astype(np.int64), traces.offsets[:-1])
    return Sequences(traces.calls[kept], np.concatenate([[0], np.cumsum(lengths)]))


def _thinned(context: Context, seed: int) -> np.ndarray:
    rng, train = np.random.default_rng(seed), context.benchmark.train
    joined = Sequences.from_list([*train, *thinned(train, 0.5, rng), *thinned(train, 0.3, rng)])
    return NGram(context.vocabulary_size, ORDER).learn(joined).decision_function(context.traces)


def _one_class(context: Context, fit: Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]], seed: int):
    """A one-class model on logarithms of calmest stretch and call sets, and the number of distinct calls.

    It is fitted to training traces whose features come from models that saw no trace of their pseudo-program.
    """

    def features(scores: dict[str, np.ndarray], traces: Sequences) -> np.ndarray:
        distinct = [len(np.unique(calls)) for calls in traces]
        return np.column_stack([np.log(scores["calmest"] + FLOOR), np.log(scores["sets"] + FLOOR), np.log(distinct)])

    normal = features(context.unseen, context.benchmark.train)
    centre, scale = normal.mean(axis=0), normal.std(axis=0)
    score = fit((normal - centre) / scale, seed)
    return score((features(context.scores, context.traces) - centre) / scale)


def standardised(context: Context, name: str, by_length: bool) -> np.ndarray:
    """The logarithm of a score, in deviations above unseen normal programs (of the same length, by a line), `[N]`."""
    unseen, judged = np.log(context.unseen[name] + FLOOR), np.log(context.scores[name] + FLOOR)
    if not by_length:
        return (judged - unseen.mean()) / unseen.std()
    slope, start = np.polyfit(np.log(context.benchmark.train.lengths), unseen, 1)
    residual = unseen - start - slope * np.log(context.benchmark.train.lengths)
    return (judged - start - slope * np.log(context.traces.lengths)) / residual.std()


def agreed(context: Context, sets_by_length: bool, calmest_by_length: bool) -> np.ndarray:
    """As `sets-and-calmest`, calibrated by length."""
    return np.minimum(
        standardised(context, "sets", sets_by_length), standardised(context, "calmest", calmest_by_length)
    )


def with_language_model(
    context: Context, source: TrainedMember, seed: int, share: float = 1.0, length: int = 150
) -> np.ndarray:
    """As `sets-and-calmest`, with a language model in place of the n-gram, or mixed with it call by call.

    It is standardised by the traces that it held out: for pseudo-programs it would have to be trained ten times more.

    Args:
      context: what to judge.
      source: the language model.
      seed: it was trained with.
      share: of its probability; the rest is the n-gram's.
      length: of the calmest stretch.
    """

    def calmest(traces: Sequences, ngram: np.ndarray) -> np.ndarray:
        mixed = -np.log(share * np.exp(-source.surprisal(traces)) + (1 - share) * np.exp(-ngram))
        return np.log(stretch_means(mixed, traces, "calmest", length) + FLOOR)

    learned, held_out = training.with_held_out(context.benchmark.train, None, seed, data.HELD_OUT)
    unseen = calmest(held_out, NGram(context.vocabulary_size, ORDER).learn(learned).surprisal(held_out))
    judged = calmest(context.traces, context.surprisal())
    return np.minimum(standardised(context, "sets", False), (judged - unseen.mean()) / unseen.std())


# What was chosen for `with_language_model` on the development half, by what stands after the member's name.
ON_MODELS = {
    "in place of the n-gram": {"share": 1.0, "length": 150},
    "and n-gram mixed per call (1:3), calmest 75 calls": {"share": 0.25, "length": 75},
}


def _mahalanobis(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    del seed
    return EmpiricalCovariance().fit(x).mahalanobis


def _gaussians(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    model = GaussianMixture(5, random_state=seed, reg_covar=0.05).fit(x)
    return lambda y: -model.score_samples(y)


def _forest(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    model = IsolationForest(n_estimators=300, random_state=seed).fit(x)
    return lambda y: -model.score_samples(y)


def _support(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    del seed
    model = OneClassSVM(nu=0.1, gamma=0.3).fit(x)  # pyright: ignore[reportArgumentType] - a number is documented
    return lambda y: -model.decision_function(y)


def _self_training(context: Context, seed: int) -> np.ndarray:
    """Twice: the calmest half of the archive joins the training traces; each half of it is scored by the other's."""
    traces, size = context.traces, context.vocabulary_size
    _, content = traces.distinct()
    scores = context.calmest()
    for step in range(2):
        half = np.random.default_rng([seed, step]).integers(0, 2, content.max() + 1)[content]
        calm = scores <= np.median(scores)
        renewed = np.empty(len(traces))
        for k in (0, 1):
            known = Sequences.from_list([*context.benchmark.train, *traces.take(calm & (half == k))])
            judged = traces.take(half != k)
            surprisal = NGram(size, ORDER).learn(known).surprisal(judged)
            renewed[half != k] = stretch_means(surprisal, judged, "calmest", 150)
        scores = renewed
    return scores


def _supervised(context: Context, seed: int) -> np.ndarray:
    """A random forest on frequencies of calls, fitted to the labels of the development half (which it then knows)."""
    x = Frequency(context.vocabulary_size).transform(context.traces)
    forest = RandomForestClassifier(300, min_samples_leaf=2, class_weight="balanced", random_state=seed)
    forest.fit(x[context.development], context.benchmark.is_attack[context.development])
    return np.asarray(forest.predict_proba(x))[:, 1]


# What the boosted trees look at: every way of scoring that the catalogue has without a neural network.
SCORES = ("stide", "t-stide", "frequency-knn", "tfidf-knn", "tfidf-cosine", "hmm", "elm")
SCORES += ("ngram", "ngram-calmest", "ngram-highest", "mixture", "call-sets", "sets-and-mixture")


def _boosted(context: Context, seed: int) -> np.ndarray:
    """Boosted trees on detectors' scores, fitted to the labels of the development half (which they then know)."""
    detectors = catalogue.build(SCORES, context.vocabulary_size, (), seed).values()
    fitted = [context.benchmark.fit(detector, seed) for detector in detectors]
    x = np.column_stack([detector.decision_function(context.traces) for detector in fitted])
    trees = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=150, max_depth=3, l2_regularization=1, class_weight="balanced", random_state=seed
    )
    trees.fit(x[context.development], context.benchmark.is_attack[context.development])
    return np.asarray(trees.predict_proba(x))[:, 1]


def mixture(context: Context, sets: bool, **settings: Any) -> np.ndarray:
    """The calmest 150 calls of a context mixture with some settings, alone or as `sets-and-mixture` has it."""

    def calmest() -> Stretch:
        return Stretch(ContextMixture(context.vocabulary_size, **settings), "calmest", 150)

    detector = Agreement([lambda: CallSets(context.vocabulary_size), calmest]) if sets else calmest()
    return detector.learn(context.benchmark.train).decision_function(context.traces)


def _universal(context: Context) -> np.ndarray:
    return np.full(len(context.traces.calls), 1 / context.vocabulary_size)


Attempt = Callable[[Context, int], np.ndarray]

ATTEMPTS: dict[str, Attempt] = {
    **{f"n-gram of order {k}": lambda c, s, k=k: c.mean(c.surprisal(k)) for k in (1, 2, 3, 5, 8)},
    "surprisal cut off at 2 nats": lambda c, s: c.mean(np.minimum(c.surprisal(), 2)),
    "share of calls above 3 nats": lambda c, s: c.mean(c.surprisal() > 3),
    "median surprisal": lambda c, s: quantiles(c.surprisal(), c.traces, 0.5),
    "80 % quantile of surprisal": lambda c, s: quantiles(c.surprisal(), c.traces, 0.8),
    **{f"calmest {k} calls": lambda c, s, k=k: c.calmest(k) for k in (10, 30, 75, 100, 150, 200, 500)},
    "n-gram trained on thinned copies too": _thinned,
    "n-gram with a cache of the trace": lambda c, s: c.mean(adaptive(c.traces, 3, np.exp(-c.surprisal()))),
    "n-gram minus universal code, order 1": lambda c, s: c.mean(c.surprisal() - adaptive(c.traces, 1, _universal(c))),
    "n-gram minus universal code, order 3": lambda c, s: c.mean(c.surprisal() - adaptive(c.traces, 3, _universal(c))),
    "Mahalanobis": lambda c, s: _one_class(c, _mahalanobis, s),
    "Gaussian mixture": lambda c, s: _one_class(c, _gaussians, s),
    "isolation forest": lambda c, s: _one_class(c, _forest, s),
    "one-class SVM": lambda c, s: _one_class(c, _support, s),
    "call sets, extra calls cost as much (weighted Jaccard)": lambda c, s: (
        CallSets(c.vocabulary_size, extra=1.0).learn(c.benchmark.train).decision_function(c.traces)
    ),
    "call sets": lambda c, s: c.sets,
    "call sets times mean surprisal": lambda c, s: c.sets * c.mean(c.surprisal()),
    "call sets times calmest 150 calls": lambda c, s: c.sets * c.calmest(),
    "mean surprisal, calibrated by trace length": lambda c, s: standardised(c, "mean", True),
    "calmest 150 calls, calibrated by trace length": lambda c, s: standardised(c, "calmest", True),
    "sets-and-calmest, call sets calibrated by trace length": lambda c, s: agreed(c, True, False),
    "sets-and-calmest, both calibrated by trace length": lambda c, s: agreed(c, True, True),
    "mixture of n-grams without lags, calmest 150 calls": lambda c, s: mixture(c, sets=False, lags=()),
    "mixture, calmest 150 calls": lambda c, s: mixture(c, sets=False),
    "sets-and-mixture without lags": lambda c, s: mixture(c, sets=True, lags=()),
    "calmest 150 calls after self-training": _self_training,
    "random forest on labels": _supervised,
    "boosted trees on detectors' scores and labels": _boosted,
}

RANDOM = {
    "n-gram trained on thinned copies too",
    "Gaussian mixture",
    "isolation forest",
    "calmest 150 calls after self-training",
    "random forest on labels",
    "boosted trees on detectors' scores and labels",
}


def kind(name: str) -> str:
    """inductive, transductive, or labels."""
    if name.endswith("labels"):
        return "labels"
    return "transductive" if "self-training" in name else "inductive"
