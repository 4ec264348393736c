"""An image that is mended under its old name is read again, whichever it is."""

import shutil

import numpy as np
import pytest

from pomp_jax.config.fields import Clip
from pomp_jax.data.subsets import even_sample
from pomp_jax.evaluate import opening
from pomp_jax.rooms.reproduce import accuracies, measure, world_sets
from pomp_jax.rooms.reproduce.digests import SAMPLED, chosen_rows, packaged_record
from pomp_jax.rooms.reproduce.measure import QUICK, Measurer
from pomp_jax.rooms.reproduce.tables import ACCURACIES

SET = "known"


@pytest.fixture
def measured(world_data, tmp_path, monkeypatch):
  """A function that measures the controls of one set: answers, whether computed now.

  Its pictures are in `tmp_path / "data"`, its pieces in `tmp_path / FOLDER`.
  """
  shutil.copytree(world_data / SET, tmp_path / "data" / SET)
  encoder = opening.open_encoder(Clip())
  computed = []
  compute = Measurer._computed

  def counting(self, labelled, prompts):
    computed.append(labelled)
    return compute(self, labelled, prompts)

  monkeypatch.setattr(measure.Measurer, "_computed", counting)

  def run(folder):
    computed.clear()
    state = accuracies.Reproduction(
      table=ACCURACIES["world"],
      sets=accuracies.Sets([SET], lambda name: opened(tmp_path)),
      measurer=Measurer(encoder, tmp_path / folder, dtype="float32", quick=True),
      dtype="float32",
      record=packaged_record("world"),
      quick=True,
    )
    state.inputs()
    state.controls()
    answers = state.measured[f"controls-{SET}"]["hand_written"].answers
    return answers.tolist(), bool(computed), state.record_of()

  return run


def opened(folder):
  return world_sets.open_set(folder / "data", SET)


def test_an_image_outside_the_64_is_read_again(measured, tmp_path):
  source = opened(tmp_path).source
  first, _, _ = measured("pieces")
  sample = even_sample(source.labels, source.keys, QUICK)
  unread = sorted({*sample.tolist()} - {*chosen_rows(source, SAMPLED)})
  place_of = {row: place for place, row in enumerate(sample.tolist())}
  right = [row for row in unread if first[place_of[row]] == source.labels[row]]
  # A picture that is recognised, and one of another class in its place.
  row = right[0]
  other = next(one for one in right if source.labels[one] != source.labels[row])
  path = tmp_path / "data" / SET / "images" / str(source.keys[row])
  intact = path.read_bytes()
  path.write_bytes(source.encoded(other))

  broken, is_computed, _ = measured("pieces")
  assert is_computed
  assert np.flatnonzero(np.not_equal(broken, first)).tolist() == [place_of[row]]
  # Nothing has changed since: the stored answers.
  assert measured("pieces")[:2] == (broken, False)

  path.write_bytes(intact)
  mended, is_computed, _ = measured("pieces")
  assert is_computed
  assert mended == first == measured("elsewhere")[0]


def test_a_record_has_no_paths_and_times(measured, tmp_path):
  _, _, before = measured("pieces")
  assert str(tmp_path) not in str(before)
  for path in (tmp_path / "data" / SET / "images").iterdir():
    path.touch()
  _, is_computed, after = measured("pieces")
  assert is_computed and after == before


def test_answers_of_a_quick_run_are_not_those_of_the_set(
  world_data, tmp_path, monkeypatch
):
  """A whole run may follow in the folder of a quick one."""
  monkeypatch.setattr(measure, "QUICK", 8)
  encoder = opening.open_encoder(Clip())
  labelled = world_sets.open_set(world_data, SET)
  n_answers = []
  for quick in (True, False, True):
    measurer = Measurer(encoder, tmp_path, dtype="float32", quick=quick)
    measured = measurer.measure(SET, "digest", labelled, {"text": "{}."})
    n_answers.append(len(measured["text"].answers))
  assert n_answers == [8, len(labelled.source), 8]
