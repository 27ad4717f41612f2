"""What a command has compiled, the next one does not compile again."""

import jax
import pytest

from talora_jax import compiled

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def settings():
    """JAX's, as if nobody had set them; put back afterwards."""
    kept = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_of_the_user(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "talora_jax" / "compiled")
    assert (tmp_path / "talora_jax" / "compiled").is_dir()
    assert jax.config.jax_compilation_cache_max_size == 2**32


def test_a_folder_that_was_named_stays(settings, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compiled.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_a_place_that_cannot_be_written_is_no_failure(settings, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
