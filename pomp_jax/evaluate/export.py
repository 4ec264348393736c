"""A prompt for other programs: as a file of theirs, or as features of given names.

docs/formats.md describes the formats. Leaves the file and `results.json` in the run's folder. With
`config.export.hub` the folder also gets the model card, `README.md`, and both are uploaded.
"""

from pomp_jax import hosts
from pomp_jax.config import EXPORT_FORMATS, FEATURE_FORMATS, ConfigError, Settings
from pomp_jax.config.fields import Export
from pomp_jax.data.class_lists import load_categories
from pomp_jax.evaluate import category_features, inputs
from pomp_jax.files import hub
from pomp_jax.files.class_features import write_detic, write_open_clip
from pomp_jax.files.paths import file_size
from pomp_jax.files.prompt_file import Prompt, check_fits, load_prompt, save_prompt
from pomp_jax.files.prompt_formats import import_torch
from pomp_jax.files.prompt_hub import push_prompt, results_of
from pomp_jax.files.run_folder import RunFolder, writing

# Names of files without a suffix; of other formats `prompt`.
_STEMS = {"detic": "class_features", "open_clip": "zero_shot_weights"}


def check(config: Settings, workdir: str) -> None:
  """Refuses names or a prompt that can't be used, and another run's folder; writes nothing."""
  settings = config.export
  RunFolder(workdir).check(config.job)
  prompt = _prompt(settings)
  if settings.format == "pth":
    import_torch()
  if settings.hub:
    results_of(settings.prompt, prompt)
    hub.check_upload(settings.hub, settings.private)
  if settings.format not in FEATURE_FORMATS:
    return
  categories = load_categories(settings.names)
  if settings.synonyms and not any(category.synonyms for category in categories):
    raise ConfigError("export.synonyms", True, f"False, as {settings.names} has no synonyms")
  if isinstance(prompt, Prompt):
    if settings.synonyms and prompt.context.ndim == 3:
      raise ConfigError("export.synonyms", True, "False, as the prompt has one context a class")
    width = inputs.clip_config(config.clip.model).text_config.hidden_size
    check_fits(prompt, width, config.clip.model, len(categories), settings.prompt)


def run(config: Settings, workdir: str) -> dict:
  """Writes `config.export.output`; returns what `results.json` holds."""
  settings, folder = config.export, RunFolder(workdir)
  prompt = _prompt(settings)
  usual_name = _STEMS.get(settings.format, "prompt") + EXPORT_FORMATS[settings.format][0]
  path = folder.path / (settings.output or usual_name)
  results = {"job": config.job, "prompt": settings.prompt, "format": settings.format}
  if settings.format in FEATURE_FORMATS:
    categories = load_categories(settings.names)
    encoder = inputs.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)
    # Detic normalises the features itself.
    unit = settings.format != "detic"
    features_CxE = category_features(encoder, categories, prompt, settings.synonyms, unit=unit)
    shape = features_CxE.shape if settings.format == "detic" else features_CxE.shape[::-1]
    results |= {"clip_model": encoder.clip.name, "names": settings.names, "shape": shape}
    names = [category.name for category in categories]
  else:
    results |= {"clip_model": prompt.clip_model, "shape": prompt.context.shape}
  if not hosts.is_first():
    return results
  folder.create()
  with writing(path):
    if settings.format == "detic":
      write_detic(path, features_CxE)
    elif settings.format == "open_clip":
      write_open_clip(path, features_CxE, names, encoder.clip.name)
    elif settings.hub:
      # Writes the prompt and its card to the folder, and uploads both.
      results["url"] = push_prompt(
        settings.hub,
        prompt,
        settings.license,
        results_of(settings.prompt, prompt),
        settings.private,
        keep_in=folder.path,
      )
      print(results["url"])
    else:
      save_prompt(path, prompt)
  results |= {"output": path.name, "bytes": file_size(path)}
  folder.write_results(results)
  print(f"{path}: {settings.format}, {' x '.join(map(str, results['shape']))}")
  return results


def _prompt(settings: Export) -> Prompt | str:
  """Returns a template as it is, or loads the prompt in a file."""
  is_template = settings.format in FEATURE_FORMATS and "{}" in settings.prompt
  return settings.prompt if is_template else load_prompt(settings.prompt)
