"""A prompt with its model card, as a repository on the hub.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import re
import tempfile
from typing import Any

from pomp_jax.files import hub
from pomp_jax.files.paths import exists, to_path
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.prompt_formats import UNKNOWN_CLIP
from pomp_jax.files.run_folder import RunFolder, prompt_path, read_json
from pomp_jax.files.terminal import printable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Of "root=/home/me/pictures" or "gs://bucket/pictures" all but "root=", "pictures".
_FOLDERS = re.compile(r"(^|[=:;,'\"\s(])(?:\w+:/)?(?:~\w*)?/(?:[^=:;,'\"\s()]*/)?(?=[^\s/])")
_TASK = "zero-shot-image-classification"
_PAPER = "[POMP](https://arxiv.org/abs/2304.04704) (Ren et al., NeurIPS 2023)"
# Columns of the table, by their names in `results.json`.
_COLUMNS = {"prompt": "this prompt", "hand_written": None, "class_name": "the bare name"}
_PLACES = {"end": "before", "middle": "on both sides of", "front": "after"}


def push_prompt(
  name: str,
  prompt: Prompt,
  license: str,
  results: Mapping[str, Any] | None = None,
  private: bool = False,
) -> str:
  """Uploads `prompt.npz` and a model card, replacing those that are there.

  Args:
    name: `hf:OWNER/NAME`, created if necessary.
    prompt: the prompt.
    license: licence by the hub's identifiers: apache-2.0, mit, other, ..
    results: `results.json` of the training, whose accuracies the card reports.
    private: whether a new repository is private, and a public one is refused.

  Returns:
    URL of the commit.

  Raises:
    PromptFileError: a field has a value that the format does not take.
    HubError, HubWriteError: as raised by `hub.upload`.
  """
  files = hub_files(name, prompt, license, results)
  return hub.upload(name, files, f"Prompt for {without_folders(prompt.clip_model)}", private)


def hub_files(
  name: str, prompt: Prompt, license: str, results: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
  """Contents of the two files that `push_prompt` uploads; arguments as its.

  Folders in the prompt's config are cut to their last name: they belong to the machine.
  """
  config = without_folders(prompt.config)
  prompt = dataclasses.replace(prompt, clip_model=without_folders(prompt.clip_model), config=config)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / hub.DEFAULT_FILE
    save_prompt(path, prompt)
    content = path.read_bytes()
  card = model_card(name, prompt, license, results or {})
  return {hub.DEFAULT_FILE: content, "README.md": card.encode()}


def results_of(path: str | os.PathLike, prompt: Prompt) -> dict[str, Any]:
  """`results.json` beside a prompt file; empty unless the folder is of the run that learned it.

  Args:
    path: name that `load_prompt` takes.
    prompt: prompt of that name.

  Raises:
    RunFolderError: a damaged file.
  """
  if hub.is_hub(path):
    return {}
  file = to_path(prompt_path(path))
  run = RunFolder(file.parent)
  if file in run.other_prompts.values():
    return {}  # the results are of another checkpoint
  if not (exists(run.config) and exists(run.results)) or read_json(run.config) != prompt.config:
    return {}
  results = read_json(run.results)
  if not isinstance(results, dict):
    return {}
  return results if results.get("job") == "pretrain" and "eval" in results else {}


def without_folders(value: Any) -> Any:
  """The value, in whose strings absolute paths and URLs are cut to their last name."""
  if isinstance(value, Mapping):
    return {key: without_folders(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [without_folders(item) for item in value]
  return _FOLDERS.sub(r"\1", value) if isinstance(value, str) else value


def model_card(name: str, prompt: Prompt, license: str, results: Mapping[str, Any]) -> str:
  """The card: metadata of the hub as YAML, and Markdown; arguments as `push_prompt`'s."""
  from huggingface_hub import ModelCardData

  repository = hub.parse(name).repository
  on_hub = bool(_HUB_ID.fullmatch(prompt.clip_model))
  data = ModelCardData(
    license=license,
    library_name="pomp-jax",
    pipeline_tag=_TASK,
    base_model=prompt.clip_model if on_hub else None,
    tags=["clip", "prompt-learning", "jax"],
    **_metrics(repository, prompt, results),
  )
  parts = [
    f"# {repository.partition('/')[2]}",
    _description(prompt),
    "## Use",
    _use(name, prompt, on_hub),
    "## Training",
    _training(name, prompt),
  ]
  if results:
    parts += ["## Results", _table(prompt, results)]
  return "\n\n".join([f"---\n{data.to_yaml()}\n---", *parts]) + "\n"


def _description(prompt: Prompt) -> str:
  *n_classes, n_vectors, width = prompt.context.shape
  shared = f"one context for each of {n_classes[0]} classes" if n_classes else "for any class names"
  return (
    f"A prompt for the CLIP {_code(prompt.clip_model)}, learned with POMP-JAX by {_PAPER}:"
    f" {n_vectors} context vectors of width {width}, {_PLACES[prompt.position]} the class name,"
    f" {shared}."
  )


def _use(name: str, prompt: Prompt, on_hub: bool) -> str:
  known = prompt.clip_model != UNKNOWN_CLIP
  clip = json.dumps(printable(prompt.clip_model) if known else "CLIP", ensure_ascii=False)
  local = not on_hub and prompt.clip_model != "world"
  hint = "\n\nThe first argument is the folder or the file of that CLIP." if local else ""
  return (
    "```python\n"
    "from pomp_jax.inference import Classifier\n\n"
    f'classifier = Classifier({clip}, "{name}", ["cat", "dog"])\n'
    'print(classifier.predict("picture.jpg"))\n'
    f"```{hint}"
  )


def _training(name: str, prompt: Prompt) -> str:
  config = prompt.config
  if not config:
    return "The configuration of the training is not known."
  data, told = config.get("data", {}), []
  for label, value in (
    ("images", data.get("dataset") or data.get("root") or data.get("source")),
    ("shots", data.get("shots") or "all"),
    ("contrast over", "all classes" if config.get("negatives") == "all" else config.get("k")),
    ("correction", config.get("correction")),
    ("epochs", config.get("epochs")),
    ("seed", config.get("seed")),
  ):
    if value is not None:
      told.append(f"{label} {_code(str(value))}")
  return (
    f'{", ".join(told)}. `load_prompt("{name}").config`, of `pomp_jax.files.prompt_file`, is the'
    " whole configuration."
  )


def _table(prompt: Prompt, results: Mapping[str, Any]) -> str:
  template = prompt.config.get("eval", {}).get("template", "the hand-written prompt")
  labels = [label or f"{_code(template)}" for label in _COLUMNS.values()]
  rows = [f"| top-1 (%) | images | classes | {' | '.join(labels)} |", "| --- " * 6 + "|"]
  for split, scores in results["eval"].items():
    found = [f"{100 * scores[key]['top1']:.1f}" if key in scores else "" for key in _COLUMNS]
    counts = results["eval_images"][split], results["eval_classes"][split]
    rows.append(f"| {_code(split)} | {counts[0]} | {counts[1]} | {' | '.join(found)} |")
  command = results.get("provenance", {}).get("command", "")
  shown = printable(without_folders(command), None).replace("`", "?")
  return (
    "Measured at the end of the training, on the test splits of its data:\n\n"
    + "\n".join(rows)
    + (f"\n\n```bash\n{shown}\n```" if shown else "")
  )


def _metrics(repository: str, prompt: Prompt, results: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the metadata for the accuracy on each split."""
  from huggingface_hub import EvalResult

  data = prompt.config.get("data", {})
  dataset = str(data.get("dataset") or data.get("source") or "unknown")
  found = [
    EvalResult(
      task_type=_TASK,
      dataset_type=dataset,
      dataset_name=f"{dataset}, {split}",
      dataset_split=split,
      dataset_args={
        "images": results["eval_images"][split],
        "classes": results["eval_classes"][split],
      },
      metric_type="accuracy",
      metric_name="top-1",
      metric_value=scores["prompt"]["top1"],
    )
    for split, scores in results.get("eval", {}).items()
  ]
  if not found:
    return {}
  return {"model_name": repository, "eval_results": found, "metrics": ["accuracy"]}


def _code(text: str) -> str:
  """Text between backticks, for a line or a cell of Markdown."""
  return f"`{re.sub(r'[`|]', '?', printable(text))}`"
