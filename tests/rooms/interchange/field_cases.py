"""Runs and cases of the fields of `export` that other libraries are written for, see
`tests/rooms/test_each_field.py`."""

from collections.abc import Mapping
import json
import pathlib

from pomp_jax.config import Config
from pomp_jax.rooms.interchange import class_feature_files, prompt_hub
from tests.support.field_cases import EXPORTED, NAMES
from tests.support.recorded_calls import Calls, Case, Recorded, clip_case
from tests.support.recorded_runs import export_prompt

EXPORTED_FEATURES = {
  "job": "export",
  "export.format": "open_clip",
  "export.prompt": "{}.",
  "export.names": "ROOT/names.txt",
}
UPLOADED = EXPORTED | {
  "export.hub": "hf:me/a",
  "export.license": "mit",
}


def export_elsewhere(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job export, with class features or up to its upload."""
  calls.note(class_feature_files, "category_features")
  calls.note(class_feature_files, "check_prompt")
  calls.note(class_feature_files, "pictures_upright")
  calls.note(prompt_hub, "results_of")
  calls.note(prompt_hub, "check_upload", lambda *args: None)
  calls.note(prompt_hub, "push_prompt", Recorded)
  export_prompt(calls, config, folder)
  if (categories := calls.seen.get("category_features.categories")) is not None:
    calls.seen["categories"] = [category.name for category in categories]


CASES = {
  "the CLIP of export": clip_case("export", EXPORTED_FEATURES),
  "features for others": Case(
    run=export_elsewhere,
    fields=EXPORTED_FEATURES,
    rows={
      "export.names": (
        "ROOT/synonyms.json",
        {"categories": ["red star", "teal leaf"], "names": "ROOT/synonyms.json"},
      ),
      "export.synonyms": (
        True,
        {
          "category_features.synonyms": True,
          "check_prompt.synonyms": [
            ("red star", "a red star"),
            ("teal leaf", "a teal leaf"),
          ],
        },
      ),
      "export.prompt": (
        "the {}",
        {
          "category_features.prompt": "the {}",
          "check_prompt.named.prompt": "the {}",
          "pictures_upright.prompt": "the {}",
          "prompt": "the {}",
        },
      ),
      "export.format": (
        "detic",
        {"output": "class_features.npy", "category_features.unit": False},
      ),
    },
  ),
  "an upload": Case(
    run=export_elsewhere,
    fields=UPLOADED,
    rows={
      "export.prompt": (
        "ROOT/b.npz",
        {
          "push_prompt.prompt.context.shape": (3, 64),
          "results_of.path*": ["ROOT/b.npz", "ROOT/b.npz"],
        },
      ),
      "export.hub": ("hf:me/b", "push_prompt.name"),
      "export.license": ("apache-2.0", "push_prompt.license"),
      "export.private": (True, "push_prompt.private"),
    },
  ),
  "the check of an upload": Case(
    run=export_elsewhere,
    fields=UPLOADED,
    rows={
      "export.hub": ("hf:me/b", "check_upload.name"),
      "export.private": (True, "check_upload.private"),
    },
  ),
}


def write_files(folders: Mapping[str, pathlib.Path]) -> None:
  """Writes names with their synonyms."""
  rows = []
  for number, name in enumerate(NAMES, start=1):
    rows.append({"id": number, "name": name, "synonyms": [name, f"a {name}"]})
  (folders["ROOT"] / "synonyms.json").write_text(json.dumps({"categories": rows}))
