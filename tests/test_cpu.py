"""What XLA and the C library are told on a CPU."""

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib import xla_client

from syscall_lm import cpu


@pytest.fixture(autouse=True)
def forgotten():
    """What one test found out about XLA is not told to the next."""
    cpu._knows.cache_clear()
    yield
    cpu._knows.cache_clear()


def product(times: int, a: jax.Array) -> jax.Array:
    return times * (a @ a)


def programs_of(matrix: jax.Array) -> list[str]:
    """The compiled text of a product, with XLA's own choice and with ours."""
    options = (None, cpu._known(cpu._EIGEN))
    return [str(jax.jit(lambda a: a @ a, compiler_options=one).lower(matrix).compile().as_text()) for one in options]


def test_arguments_of_jit_are_passed_on_and_values_are_the_same():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(70, 70)), jnp.float32)
    compiled = cpu.jit(product, static_argnums=0)
    np.testing.assert_allclose(compiled(3, matrix), 3 * np.asarray(matrix) @ np.asarray(matrix), rtol=1e-4, atol=1e-4)
    assert compiled.__name__ == "product"
    with pytest.raises(ValueError, match="hashable"):
        compiled(matrix, matrix)  # the first argument is static


def test_products_are_not_handed_to_a_library():
    theirs, ours = programs_of(jnp.ones((256, 256)))
    assert cpu._known(cpu._EIGEN) == cpu._EIGEN
    if "ynn" not in theirs:
        pytest.skip("this XLA hands no products to YNNPACK")
    assert "ynn" not in ours


def test_an_xla_that_knows_no_such_option_makes_its_own_choice(monkeypatch):
    monkeypatch.setattr(cpu, "_EIGEN", {"xla_cpu_no_such_option": "1"})
    assert cpu._known(cpu._EIGEN | cpu._WIDTH) == cpu._WIDTH
    np.testing.assert_array_equal(cpu.jit(product, static_argnums=0)(2, jnp.eye(3)), 2 * np.eye(3))


STEPS_OF_TRAINING = """
import resource
import syscall_lm.experiments  # as every command begins
import pyarrow.parquet  # starts a thread
import jax
jax.config.update("jax_num_cpu_devices", 2)
from syscall_lm.experiments.benchmarking import cases
from syscall_lm.models import lstm
step = cases.our_training(lstm.Shape(342, 400, 2))
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(10):
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(after - before for before, after in zip(faults[4:], faults[5:])))
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="only glibc is told to keep what is freed")
def test_training_steps_ask_the_kernel_for_hardly_any_memory():
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", STEPS_OF_TRAINING]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) < 30_000  # pages, of the best step; 60,000 of each if the rest were given back


ONE_THREAD_EACH = """
import os, pathlib, sys
os.environ["NPROC"] = "4"
import jax
jax.config.update("jax_num_cpu_devices", 2)
from syscall_lm import cpu

def name(task):
    try:
        return task.joinpath("comm").read_text()
    except OSError:  # it has ended
        return ""

def threads():
    return sum("XLAEigen" in name(task) for task in pathlib.Path("/proc/self/task").iterdir())

jax.devices()
before = threads()
devices = cpu.single_cores(3)
print(before, threads() - before, len({device.client for device in devices}), os.environ["NPROC"])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="only Linux lists threads so")
def test_devices_of_one_thread_are_of_one_thread():
    done = subprocess.run([sys.executable, "-c", ONE_THREAD_EACH], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "3", "3", "4"], done


def test_an_xla_that_makes_no_such_devices_offers_none(monkeypatch):
    monkeypatch.setattr(xla_client, "make_cpu_client", lambda: None)  # takes no number of devices
    monkeypatch.delenv("NPROC", raising=False)
    assert cpu.single_cores.__wrapped__(2) == () and "NPROC" not in os.environ


@pytest.mark.parametrize("on_disk", [False, True])
def test_cores_share_what_was_compiled_once(monkeypatch, tmp_path, on_disk):
    def power(x, start, exponents):
        return jax.lax.scan(lambda y, _: (y @ x, None), start, exponents)[0]

    lowered = []
    jit = jax.jit

    def counting(function, **options):
        lowered.append(function)
        return jit(function, **options)

    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path) if on_disk else None)
    try:
        cores = cpu.single_cores(3)
        program = cpu.OneForCores(power, donate_argnums=1)
        random = np.random.default_rng(0)
        for core in (*cores, cores[0]):
            for size, times in ((5, 3), (9, 2), (9, 4)):
                x, start = random.normal(size=(2, size, size)).astype(np.float32)
                given = jax.device_put(start, core)
                with monkeypatch.context() as context:
                    context.setattr(jax, "jit", counting)
                    found = program(core, x, given, np.ones(times))
                assert found.devices() == {core} and given.is_deleted()
                np.testing.assert_allclose(found, start @ np.linalg.matrix_power(x, times), rtol=1e-4, atol=1e-4)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert lowered.count(power) == (9 if on_disk else 3)
