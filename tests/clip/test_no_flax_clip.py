"""The reference text tower where transformers has no FlaxCLIP, as from version 5 on."""

import pytest

from pomp_jax.clip import text, text_tower
from pomp_jax.config import Settings, checks, validate
from pomp_jax.config.declare import ConfigError
from pomp_jax.errors import InputError
from pomp_jax.jobs import benchmark
from tests.support.flax_clip import HAS_FLAX_CLIP


def test_the_modules_are_found_where_they_are():
  assert text.has_flax_clip() == HAS_FLAX_CLIP


def test_the_reference_is_refused_without_them(monkeypatch, small):
  for module in (text, checks):
    monkeypatch.setattr(module, "has_flax_clip", lambda: False)
  settings = Settings().replace({"clip.text_tower": "reference"})
  with pytest.raises(ConfigError, match=r"^config\.clip\.text_tower: .*'transformers<5'"):
    validate(settings)
  validate(settings.replace({"clip.text_tower": "shared"}))
  with pytest.raises(InputError, match=r"^text_tower: .*'transformers<5'"):
    text_tower("reference", small.clip.config.text_config)


def test_the_benchmark_skips_it_with_a_line(monkeypatch, capsys):
  monkeypatch.setattr(benchmark, "has_flax_clip", lambda: False)
  assert benchmark._available(["shared", "reference"]) == ["shared"]
  assert "reference: skipped" in capsys.readouterr().out
