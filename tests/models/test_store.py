"""A model directory comes back as it was written, or is refused in one sentence."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from syscall_lm.errors import SyscallLMError
from syscall_lm.models import language_model, lstm, store
from syscall_lm.traces.vocabulary import Vocabulary

# When files are damaged, Orbax leaves coroutines behind that nobody waits for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

VOCABULARY = Vocabulary(("read", "write", "<b>"), "names of a test")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "model"
    shapes = {"1x3": lstm.Shape(VOCABULARY.size, 3), "2x2.1": lstm.Shape(VOCABULARY.size, 2, 2)}
    members = tuple(
        store.Member(name, shape, language_model.initialise(jax.random.key(i), shape))
        for i, (name, shape) in enumerate(shapes.items())
    )
    store.save(path, VOCABULARY, members, {"note": "é"})
    return path, members


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved[0], tmp_path / "model"))


def test_comes_back_as_it_was_written(saved):
    path, members = saved
    model = store.load(path)
    assert model.vocabulary == VOCABULARY and model.info == {"note": "é"}
    assert [(m.name, m.shape) for m in model.members] == [(m.name, m.shape) for m in members]
    for a, b in zip(model.members, members, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_other_weights_are_told_by_the_files_that_score(copy, saved):
    (copy / store.CALIBRATION).write_text("{}")
    before = [path.read_bytes() for path in store.files_that_score(copy)]
    assert before == [path.read_bytes() for path in store.files_that_score(copy)]
    first, *others = saved[1]
    other = store.Member(first.name, first.shape, jax.tree.map(lambda leaf: leaf + 1, first.params))
    (copy / "model.json").unlink()
    store.save(copy, VOCABULARY, (other, *others), {"note": "é"})
    after = [path.read_bytes() for path in store.files_that_score(copy)]
    assert after[:2] == before[:2] and after[2:] != before[2:]


def edit(path, change):
    file = path / "model.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.update(version=99), "model version 99"),
        (lambda v: v.pop("vocabulary"), "damaged"),
        (lambda v: v["vocabulary"]["names"].pop(), "hash"),
        (lambda v: v["vocabulary"].update(names=5), "damaged"),
        (lambda v: v["vocabulary"].update(names=[[]]), "damaged"),
        (lambda v: v.update(members=["1x3"]), "damaged"),
        (lambda v: v["members"].update({"1x3": "1x-3"}), "LAYERSxCELLS"),
        (lambda v: v["members"].update({"1x3": "1x4"}), "parameters: missing or damaged"),
        (lambda v: v["members"].update({"9x9": "9x9"}), "parameters: missing or damaged"),
        (lambda v: v.update(info=None), "damaged"),
    ],
)
def test_an_edited_configuration_is_refused(copy, change, expected):
    edit(copy, change)
    with pytest.raises(SyscallLMError, match=expected) as error:
        store.load(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_damaged_configuration_is_refused(copy, content):
    (copy / "model.json").write_bytes(content)
    with pytest.raises(SyscallLMError, match="damaged"):
        store.load(copy)


@pytest.mark.parametrize("damage", ["remove", "truncate", "zero"])
def test_damaged_parameters_are_refused(copy, damage):
    for file in (copy / "parameters").rglob("*"):
        if file.is_file() and damage == "remove":
            file.unlink()
        elif file.is_file():
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2] if damage == "truncate" else bytes(len(data)))
    with pytest.raises(SyscallLMError, match="parameters"):
        store.load(copy)


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    shape = lstm.Shape(VOCABULARY.size, 2)
    params = language_model.initialise(jax.random.key(0), shape)
    params["w_out"] = params["w_out"].at[0, 0].set(jnp.nan)
    store.save(tmp_path / "model", VOCABULARY, (store.Member("1x2", shape, params),), {})
    with pytest.raises(SyscallLMError, match="not finite"):
        store.load(tmp_path / "model")


def test_what_is_no_model_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(SyscallLMError, match="not a model directory.*make one with `train`"):
            store.load(path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SyscallLMError, match="its training has not ended: run the same `train` again"):
        store.load(tmp_path)
