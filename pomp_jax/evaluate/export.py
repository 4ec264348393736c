"""A prompt for other programs: as a file of theirs, or as features of given names.

docs/reference/formats.md describes the formats. The job writes the file and
`results.json` to the run's folder, and `class_names.json` if the classes are known.
With `config.export.hub` it also writes the model card, `README.md`, and uploads the
card and the prompt.
"""

from typing import Any

from pomp_jax import hosts
from pomp_jax.config.jobs import ExportConfig
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.evaluate import opening
from pomp_jax.files.paths import file_size
from pomp_jax.files.prompt_file import (
  encode,
  load_prompt,
  recorded_classes,
  save_prompt,
)
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.hooks import HUB_UPLOAD
from pomp_jax.registry import FORMATS, load


def check(config: ExportConfig, workdir: str) -> None:
  """Checks the names, the prompt and the format; writes nothing."""
  export = config.export
  export_format = FORMATS[export.format]
  if export_format.features:
    load(export_format.features).check(export, config.clip)
    return
  prompt = load_prompt(export.prompt)
  # Raises if the format can't hold the prompt.
  encode(export.output or export_format.usual_name, prompt)
  if HUB_UPLOAD and HUB_UPLOAD.open().wanted(export):
    HUB_UPLOAD.open().check(export, prompt)


def run(config: ExportConfig, workdir: str) -> dict:
  """Writes `config.export.output`; returns what `results.json` holds."""
  export = config.export
  export_format = FORMATS[export.format]
  folder = RunFolder(workdir)
  path = folder.path / (export.output or export_format.usual_name)
  results: dict[str, Any] = {
    "job": config.job,
    "prompt": export.prompt,
    "format": export.format,
  }
  if export_format.features:
    encoder = opening.open_encoder(
      config.clip, config.mesh.class_size, config.data.feature_store
    )
    # All processes compute the features together; the first writes them.
    facts, write = load(export_format.features).compute(export, encoder)
    results |= facts
  else:
    prompt = load_prompt(export.prompt)
    results |= {"clip_model": prompt.clip_model, "shape": prompt.context.shape}
    write = lambda path: save_prompt(path, prompt)
  if not hosts.is_first():
    return results
  folder.create()
  with writing(path):
    names = results.get("names") or recorded_classes(export.prompt)
    if names:
      # Other programs need the class names beside the exported prompt or features.
      folder.write_classes(load_class_list(names).names)
    if HUB_UPLOAD and HUB_UPLOAD.open().wanted(export):
      results["url"] = HUB_UPLOAD.open().push(export, prompt, folder.path)
      print(results["url"])
    else:
      write(path)
  results |= {"output": path.name, "bytes": file_size(path)}
  folder.write_results(results)
  shape = " x ".join(map(str, results["shape"]))
  print(f"{path}: {export.format}, {shape}")
  return results
