"""Records of a TFDS data set in a bucket are those of the local folder."""

import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.folder import open_folder
from pomp_jax.data.prepare import Selection, build, open_input
from pomp_jax.data.source import SourceError
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.data.tfds import open_tfds
from pomp_jax.files.array_cache import ArrayCache
from pomp_jax.files.paths import store_of, to_path
from tests.support import stores

SYNSETS = load_class_list("imagenet21k").synsets[1000:1006]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  """A data set of six classes with five images each, and the folder that it was made from."""
  images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("records")
  for label, synset in enumerate(SYNSETS):
    (images / synset).mkdir()
    for number in range(5):
      content = encode(natural_image(10 * label + number, 60, 80))
      (images / synset / f"{number}.JPEG").write_bytes(content)
  build(open_input("imagenet21k", images), out, Selection())
  return images, out


@pytest.mark.parametrize("scheme", stores.SCHEMES)
def test_records_and_files_of_a_bucket(records, scheme, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  images, out = records
  local = open_tfds("imagenet21k", "train", root=out)
  with stores.running(scheme) as found:
    url = found[scheme].url("data")
    store_of(url).put(f"{out}/", f"{url}/records/", recursive=True)
    store_of(url).put(f"{images}/", f"{url}/images/", recursive=True)
    source = open_tfds("imagenet21k", "train", root=f"{url}/records")
    assert source.keys.tolist() == local.keys.tolist() and source.names == local.names
    for index in (7, 0, len(local) - 1):
      assert source.encoded(index) == local.encoded(index)
    # Without the index of `prepare` the labels are read from the records.
    to_path(f"{url}/records/imagenet21k/1.0.0/index-train.npz").unlink()
    for _ in range(2):
      cache = ArrayCache(f"{url}/labels")
      source = open_tfds("imagenet21k", "train", root=f"{url}/records", cache=cache)
      np.testing.assert_array_equal(source.labels, local.labels)
    folder, there = open_folder(f"{url}/images"), open_folder(images)
    assert folder.keys.tolist() == there.keys.tolist()
    assert folder.encoded(3) == there.encoded(3)
    with pytest.raises(SourceError):
      open_folder(f"{url}/missing")
