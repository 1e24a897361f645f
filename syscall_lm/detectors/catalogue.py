"""Every detector by name. One line here adds one to kim2017's baselines, figure 3 and mimicry, unless it is `NEURAL`.

`detect` (if it is in `ALONE`), `evaluate`, kim2017.study and kim2017.portability run it where `--detectors` names it.
Those in `TAUGHT` need labelled traces and run in `detect` and kim2017.taught only.
"""

from collections.abc import Callable, Iterable, Sequence

from syscall_lm.detectors.agreement import Agreement
from syscall_lm.detectors.autoencoder import AutoencoderDetector
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.call_sets import CallSets
from syscall_lm.detectors.clusters import Clusters
from syscall_lm.detectors.encoder_decoder import EncoderDecoderDetector
from syscall_lm.detectors.evidence import Evidence, sets_and_mixture
from syscall_lm.detectors.extreme_learning import ExtremeLearning
from syscall_lm.detectors.features import FinalState, Frequency, TfIdf
from syscall_lm.detectors.hmm import HiddenMarkov
from syscall_lm.detectors.language_model import Ensemble, TrainedMember
from syscall_lm.detectors.mixture import ContextMixture
from syscall_lm.detectors.nearest import Nearest, WithinRadius
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import LongestSection, Stretch
from syscall_lm.detectors.stide import FRAME, RARE, Stide
from syscall_lm.detectors.taught import Examples, Taught
from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.models.store import Member

# Detectors that learn from traces alone, made from V and a seed.
ALONE: dict[str, Callable[[int, int], Detector]] = {
    "stide": lambda v, seed: Stide(),
    "t-stide": lambda v, seed: Stide(rare=RARE),
    "stide-lfc": lambda v, seed: Stide(frame=FRAME),
    "t-stide-lfc": lambda v, seed: Stide(rare=RARE, frame=FRAME),
    "frequency-knn": lambda v, seed: Nearest(Frequency(v)),
    "tfidf-knn": lambda v, seed: Nearest(TfIdf(v)),
    "tfidf-cosine": lambda v, seed: Nearest(TfIdf(v), neighbours=10, metric="cosine", average=True),
    "hmm": lambda v, seed: HiddenMarkov(v, seed=seed),
    "elm": lambda v, seed: ExtremeLearning(seed=seed),
    "markov": lambda v, seed: NGram(v, order=2),
    "ngram": lambda v, seed: NGram(v),
    "ngram-calmest": lambda v, seed: Stretch(NGram(v), "calmest"),
    "ngram-highest": lambda v, seed: Stretch(NGram(v), "highest"),
    "ngram-longest": lambda v, seed: LongestSection(NGram(v)),
    "mixture": lambda v, seed: ContextMixture(v),
    "encoder-decoder": lambda v, seed: EncoderDecoderDetector(v, seed=seed),
    "autoencoder": lambda v, seed: AutoencoderDetector(v, seed=seed),
    "call-sets": lambda v, seed: CallSets(v),
    "sets-and-calmest": lambda v, seed: Agreement(
        [lambda: CallSets(v), lambda: Stretch(NGram(v), "calmest", 150)],
    ),
    "sets-and-mixture": lambda v, seed: sets_and_mixture(v),
}

# Detectors that are taught by labelled traces as well, made from V, those and a seed.
TAUGHT: dict[str, Callable[[int, Examples, int], Detector]] = {
    "taught": lambda v, examples, seed: Taught(Evidence(v), examples, seed),
}

# Detectors that look into one trained language model, made from it and a seed.
ON_MEMBER: dict[str, Callable[[TrainedMember, int], Detector]] = {
    "lstm": lambda member, seed: member,
    "state-knn": lambda member, seed: Nearest(FinalState(member)),
    "state-radius": lambda member, seed: WithinRadius(FinalState(member)),
    "state-kmeans": lambda member, seed: Clusters(FinalState(member), seed=seed),
    "lstm-calmest": lambda member, seed: Stretch(member, "calmest"),
    "lstm-highest": lambda member, seed: Stretch(member, "highest"),
    "lstm-longest": lambda member, seed: LongestSection(member),
}

# Detectors around models of windows, by the model's name.
OF_WINDOWS: dict[str, type[WindowDetector]] = {
    detector.model: detector for detector in (EncoderDecoderDetector, AutoencoderDetector)
}

NEURAL = frozenset(OF_WINDOWS)  # these take minutes to learn
RANDOM = (
    frozenset({"hmm", "elm", "ngram-longest", *TAUGHT}) | NEURAL
)  # these depend on the seed, without a trained model

# Detectors that look into all trained language models together.
ON_MEMBERS: dict[str, Callable[[Sequence[TrainedMember]], Detector]] = {
    "leaky_relu": lambda members: Ensemble(members, "leaky_relu"),
    "average": lambda members: Ensemble(members, "average"),
    "vote": lambda members: Ensemble(members, "vote"),
}

# What shaped a detector, besides training traces and publications: nothing, unless it stands here.
DEVELOPMENT = "development half of the attacks"  # as results/kim2017/STUDY.md declares it
KNOWN = "known beforehand"  # order 8 and stretches of 75 calls: their figures on all attacks were known
CHOSEN_ON = {
    **dict.fromkeys(("ngram", "ngram-calmest", "ngram-highest", "ngram-longest"), KNOWN),
    **dict.fromkeys(("lstm-calmest", "lstm-highest"), KNOWN),
    **dict.fromkeys(("mixture", "call-sets", "sets-and-calmest", "sets-and-mixture", *TAUGHT), DEVELOPMENT),
}

NAMES = (*ALONE, *ON_MEMBER, *ON_MEMBERS)  # of those that learn from normal traces only
QUICK = tuple(name for name in NAMES if name not in NEURAL)  # what a comparison runs unless it is told otherwise


def chosen_on(name: str) -> str:
    """What a detector was chosen on, by its name in `NAMES` or as `build` calls it."""
    return CHOSEN_ON.get(name.partition(" ")[0], "nothing")


def build(
    names: Iterable[str],
    vocabulary_size: int,
    members: Iterable[Member] = (),
    seed: int = 0,
    examples: Examples | None = None,
) -> dict[str, Detector]:
    """Makes detectors by name.

    Args:
      names: of `NAMES` or `TAUGHT`; one of `ON_MEMBER` is made for every member and called "NAME MEMBER".
      vocabulary_size: V.
      members: trained language models.
      seed: of everything random.
      examples: labelled traces, ids below V.

    Raises:
      SyscallLMError: an unknown name, or one that needs a member or examples, but there are none.
    """
    trained = [TrainedMember(member) for member in members]
    made: dict[str, Detector] = {}
    for name in names:
        require_known(name, (*NAMES, *TAUGHT))
        if name in ALONE:
            made[name] = ALONE[name](vocabulary_size, seed)
        elif name in TAUGHT:
            if examples is None:
                raise SyscallLMError(f"detector {name!r} is taught by labelled traces, but none were given")
            made[name] = TAUGHT[name](vocabulary_size, examples, seed)
        elif not trained:
            raise SyscallLMError(f"detector {name!r} looks into a trained language model, but none was given")
        elif name in ON_MEMBERS:
            made[name] = ON_MEMBERS[name](trained)
        else:
            made |= {f"{name} {member.name}": ON_MEMBER[name](member, seed) for member in trained}
    return made


def require_known(name: str, known: Sequence[str]) -> None:
    """Refuses a name that no detector has, or none of those that can be run here.

    Raises:
      SyscallLMError: the name is not among the known ones.
    """
    if name in TAUGHT and name not in known:
        raise SyscallLMError(f"detector {name!r} is taught by labelled traces, for which `detect` has --examples")
    if name not in known:
        raise SyscallLMError(f"no detector is called {name!r}; there are {', '.join(known)}")
