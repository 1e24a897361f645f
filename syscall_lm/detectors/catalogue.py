"""Every detector by name: one line here adds one to every comparison."""

from collections.abc import Callable, Iterable

from syscall_lm.detectors.autoencoder import AutoencoderDetector
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.clusters import Clusters
from syscall_lm.detectors.encoder_decoder import EncoderDecoderDetector
from syscall_lm.detectors.extreme_learning import ExtremeLearning
from syscall_lm.detectors.features import FinalState, Frequency, TfIdf
from syscall_lm.detectors.hmm import HiddenMarkov
from syscall_lm.detectors.language_model import TrainedMember
from syscall_lm.detectors.nearest import Nearest, WithinRadius
from syscall_lm.detectors.ngram import NGram
from syscall_lm.detectors.sections import Stretch
from syscall_lm.detectors.stide import FRAME, RARE, Stide
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
    "encoder-decoder": lambda v, seed: EncoderDecoderDetector(v, seed=seed),
    "autoencoder": lambda v, seed: AutoencoderDetector(v, seed=seed),
}

# Detectors that look into one trained language model, made from it and a seed.
ON_MEMBER: dict[str, Callable[[Member, int], Detector]] = {
    "state-knn": lambda member, seed: Nearest(FinalState(member)),
    "state-radius": lambda member, seed: WithinRadius(FinalState(member)),
    "state-kmeans": lambda member, seed: Clusters(FinalState(member), seed=seed),
    "lstm-calmest": lambda member, seed: Stretch(TrainedMember(member), "calmest"),
    "lstm-highest": lambda member, seed: Stretch(TrainedMember(member), "highest"),
}

NEURAL = frozenset({"encoder-decoder", "autoencoder"})  # these take minutes to learn
RANDOM = frozenset({"hmm", "elm"}) | NEURAL  # these depend on the seed


def build(
    names: Iterable[str], vocabulary_size: int, members: Iterable[Member] = (), seed: int = 0
) -> dict[str, Detector]:
    """Makes detectors by name.

    Args:
      names: of `ALONE` and `ON_MEMBER`; one of the latter is made for every member and called "NAME MEMBER".
      vocabulary_size: V.
      members: trained language models.
      seed: of everything random.

    Raises:
      SyscallLMError: an unknown name, or one that needs a member, but there is none.
    """
    members = tuple(members)
    made: dict[str, Detector] = {}
    for name in names:
        if name in ALONE:
            made[name] = ALONE[name](vocabulary_size, seed)
        elif name not in ON_MEMBER:
            raise SyscallLMError(f"no detector is called {name!r}; there are {', '.join([*ALONE, *ON_MEMBER])}")
        elif not members:
            raise SyscallLMError(f"detector {name!r} looks into a trained language model, but none was given")
        else:
            for member in members:
                made[f"{name} {member.name}"] = ON_MEMBER[name](member, seed)
    return made
