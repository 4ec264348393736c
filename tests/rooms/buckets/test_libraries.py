"""The libraries of buckets: releases that are too old, and their lower bounds."""

import types

import pytest

from pomp_jax.errors import InputError
from pomp_jax.files import paths
from pomp_jax.rooms.buckets import base_store, libraries
from pomp_jax.rooms.buckets.libraries import LIBRARIES
from tests.launch.test_scripts import extras, lower_bounds


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_or_old_library_is_named(scheme, library, monkeypatch):
  installed = {}
  monkeypatch.setattr(libraries, "release_of", installed.get)
  for release in (None, "2025.12.0", "2026.1.0.post1"):
    installed[library] = release
    with pytest.raises(InputError, match=f"pip install '{library}>=") as caught:
      paths.to_path(f"{scheme}://bucket/run")
    assert "\n" not in str(caught.value) and (release or "not installed") in str(
      caught.value
    )
  for release in ("2026.2.0", "2026.10.1", "2027.1"):
    installed[library] = release
    assert paths.problem_of(f"{scheme}://bucket/run") is None


def test_the_lower_bounds_are_those_of_the_extras():
  assert dict(LIBRARIES.values()) == lower_bounds(extras("gcs", "s3"))


@pytest.mark.parametrize("field", ["generation", "ETag", "etag", "size"])
def test_each_fact_of_an_object_is_of_its_version(field):
  """Google's stores tell a generation, Amazon's an ETag, HTTP servers an etag: a write
  changes it, or the size, alone."""
  facts = {"name": "bucket/file", "size": 5, "type": "file"}
  versions = []
  for value in (7, 8):
    store = types.SimpleNamespace(info=lambda url, value=value: facts | {field: value})
    versions.append(base_store.Objects.version_of(store, "s3://bucket/file"))
  assert versions[0] != versions[1]
