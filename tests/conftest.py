"""What all tests share."""

import atexit
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest

from syscall_lm.detectors.ensemble import Calibration
from syscall_lm.models import lstm, shapes, store
from syscall_lm.traces.vocabulary import Vocabulary

# Most of the time goes into compiling the same small programs: in every worker, in commands that tests start and kill.
# One run shares what it compiled; workers inherit the setting from the process that made the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="syscall_lm-tests.")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": _cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", _cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Nearly all of that time is LLVM's. What is tested of programs that run for milliseconds is their logic; it is found as
# well without optimisations, in half the time. Set to 0, all tests are compiled as users' programs are.
_OPTIMISATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_AS_USERS = ("kernels", "test_scoring.py", "test_command.py")  # what is about numbers, and the main job
if _OPTIMISATIONS not in os.environ:
    os.environ[_OPTIMISATIONS] = "1"
    jax.config.update("jax_disable_most_optimizations", True)


hypothesis.settings.register_profile("untimed", deadline=None)  # a slow moment of a machine is no defect
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module", autouse=True)
def compiled_as_users(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has programs optimised where the folder or file is one of `_AS_USERS`."""
    if not set(_AS_USERS) & set(request.path.parts):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_OPTIMISATIONS, "0")
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
        yield
    jax.config.update("jax_disable_most_optimizations", os.environ[_OPTIMISATIONS] == "1")
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of data sets, which are not part of the repository; tests that need it are skipped without it."""
    folder = (pathlib.Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the data sets are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., pathlib.Path]:
    """Makes calibrated model directories of random parameters: `tiny_model(path, vocabulary, members, held_out, info)`.

    Its surprisals lie near log V; the calibration pretends that normal traces, and windows, score a little below that.
    """

    def make(
        path: pathlib.Path,
        vocabulary: Vocabulary,
        members: Sequence[str] = ("1x4",),
        held_out: int = 120,
        info: Mapping[str, Any] | None = None,
    ) -> pathlib.Path:
        sizes = [shapes.parse(member, vocabulary.size) for member in members]
        rng = np.random.default_rng(0)

        def drawn(shape: shapes.Shape) -> Any:  # as `initialise` does, without compiling it for every shape
            tree = jax.eval_shape(lambda key: shapes.initialise(key, shape), jax.random.key(0))
            return jax.tree.map(lambda leaf: rng.uniform(-0.1, 0.1, leaf.shape).astype(leaf.dtype), tree)

        names = [f"{member}.{number + 1}" for number, member in enumerate(members)]
        parameters = [drawn(shape) for shape in sizes]
        scores = np.log(vocabulary.size) + rng.normal(-0.05, 0.05, (len(members), held_out))
        windows = [np.zeros(0) if isinstance(size, lstm.Shape) else scores[0] for size in sizes]
        calibration = Calibration.from_scores(scores, scores, f"{held_out} made-up normal traces", windows)
        path.mkdir(parents=True, exist_ok=True)
        (path / store.CALIBRATION).write_text(json.dumps(calibration.to_json(names)))
        made = tuple(store.Member(*parts) for parts in zip(names, sizes, parameters, strict=True))
        store.save(path, vocabulary, made, info or {})
        return path

    return make
