"""Loads prompts from HuggingFace's hub, `hf:OWNER/NAME`, and uploads them with a card.

Without a network HuggingFace's library retries for up to a minute. This module
therefore first asks the hub once, with a timeout. Every failure is one line. The
library is imported with the first request.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import tempfile
from typing import Any

from pomp_jax.config.fields import Export
from pomp_jax.errors import InputError, RunError
from pomp_jax.files import prompt_file
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path, exists, to_path, without_folders
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder, prompt_path, read_json
from pomp_jax.files.terminal import one_line, printable
from pomp_jax.rooms.interchange.fields import Upload

log = logging.getLogger(__name__)

# Neither kind of file can hold a pickle.
_SUFFIXES = (".npz", ".safetensors")
_KINDS = " or ".join(_SUFFIXES)
_ACCEPTED = f"hf:OWNER/NAME, hf:OWNER/NAME@REVISION, or one of them and /FILE, {_KINDS}"

# No part begins with a dot, so that no path leads out of the repository.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(
  rf"{prompt_file.HUB_PREFIX}({_PART}/{_PART})(?:@({_PART}))?(?:/({_PART}(?:/{_PART})*))?"
)
_TIMEOUT = 5.0  # seconds to wait for an answer
_LOG_IN = "a token in HF_TOKEN, or `hf auth login`"
_PAPER = "[POMP](https://arxiv.org/abs/2304.04704) (Ren et al., NeurIPS 2023)"
# Headings of the card's columns, by their names in `results.json`; None: the template.
_COLUMNS = {
  "prompt": "this prompt",
  "hand_written": None,
  "class_name": "the bare name",
}
_PLACES = {"end": "before", "middle": "on both sides of", "front": "after"}


class HubError(InputError, RuntimeError):
  """Error in one line that names a repository or file on the hub."""


class HubWriteError(HubError):
  """A failed upload."""

  status = RunError.status


def parse(name: str | os.PathLike) -> tuple[str, str | None, str]:
  """Splits `hf:OWNER/NAME[@REVISION][/FILE]` into repository, revision and file.

  A missing revision becomes None, which stands for the main branch. A missing file
  becomes `prompt.npz`.

  Raises:
    HubError: the name is malformed, or the file is neither .npz nor .safetensors.
  """
  match = _NAME.fullmatch(os.fspath(name))
  if match is not None:
    file = match[3] or prompt_file.DEFAULT_FILE
    if file.endswith(_SUFFIXES):
      return match[1], match[2], file
  raise HubError(f"{printable(os.fspath(name))}: expected {_ACCEPTED}")


def load_from_hub(name: str | os.PathLike) -> Prompt:
  """Downloads and loads a prompt.

  Args:
    name: `hf:OWNER/NAME[@REVISION][/FILE]`, see `parse`.

  Raises:
    HubError: the file is neither on the hub nor in the cache, or may not be read.
    PromptFileError: the file is no prompt, or it is a torch checkpoint. Checkpoints are
      not read from the hub, whatever their suffix.
  """
  file = _download(name)
  if prompt_file.format_of_content(file) == "pth":
    prompt_file.refuse(name, "the file", "a torch checkpoint", _KINDS)
  try:
    return prompt_file.load_prompt(file)
  except prompt_file.PromptFileError as error:
    # Name the file as the user did, not its copy in the cache.
    reason = str(error).removeprefix(f"{file}: ")
    raise prompt_file.PromptFileError(f"{name}: {reason}") from error


def _download(name: str | os.PathLike) -> pathlib.Path:
  """Downloads a name's file; takes it from the cache if the hub does not answer."""
  from huggingface_hub import HfApi
  from huggingface_hub.errors import HfHubHTTPError

  repository, revision, file = parse(name)
  api = HfApi()
  with _as_hub_error(name, HubError):
    try:
      info = api.model_info(repository, revision=revision, timeout=_TIMEOUT)
    except Exception as error:  # errors of requests and of httpx share no base
      if isinstance(error, HfHubHTTPError) and _status_of(error) < 500:
        raise  # the hub itself refuses
      try:
        cached = api.hf_hub_download(
          repository, file, revision=revision, local_files_only=True
        )
      except Exception:  # the class depends on the version of the library
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise HubError(
          f"{name}: not in the cache, and the hub can't be asked ({reason})"
        ) from error
      log.warning("%s: the hub can't be asked; the file in its cache is used", name)
      return pathlib.Path(cached)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    if file not in files:
      usable = sorted(path for path in files if path.endswith(_SUFFIXES))[:5]
      there = printable(", ".join(usable)) or f"no {_KINDS}"
      raise HubError(f"{name}: no {file} in the repository; there are: {there}")
    # Ask by the revision's name: under this name the cache finds the file later without
    # a network.
    downloaded = api.hf_hub_download(
      repository, file, revision=revision, etag_timeout=_TIMEOUT
    )
    return pathlib.Path(downloaded)


def _status_of(error: Any) -> int:
  return error.response.status_code


@contextlib.contextmanager
def _as_hub_error(name: str | os.PathLike, kind: type[HubError]) -> Iterator[None]:
  """Turns any error of the library or of the network into a HubError of one line."""
  from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

  try:
    yield
  except HubError:
    raise
  except RepositoryNotFoundError as error:
    reason = f"no such repository, or a private or gated one, which needs {_LOG_IN}"
    raise kind(f"{name}: {reason} ({_status_of(error)})") from error
  except RevisionNotFoundError as error:
    raise kind(f"{name}: no such revision in the repository") from error
  except Exception as error:  # errors of requests and of httpx share no base
    reason = f"{type(error).__name__}: {one_line(error, 200)}"
    raise kind(f"{name}: the hub: {reason}") from error


def wanted(export: Export) -> bool:
  """Whether the config asks for an upload."""
  return bool(export.of(Upload).hub)


def check(export: Export, prompt: Prompt) -> None:
  """Checks that `push` may succeed.

  Raises:
    RunFolderError: damaged results beside the prompt.
    HubError: a repository that can't be written; see `check_upload`.
  """
  upload = export.of(Upload)
  results_of(export.prompt, prompt)
  check_upload(upload.hub, upload.private)


def push(export: Export, prompt: Prompt, folder: Path) -> str:
  """Uploads a prompt with its card, and returns the commit's URL.

  Args:
    export: settings of the export, with the repository and the licence.
    prompt: content of the file or run that `export.prompt` names.
    folder: folder that gets a copy of prompt and card before the upload.

  Raises:
    HubError: see `push_prompt`.
  """
  upload = export.of(Upload)
  return push_prompt(
    upload.hub,
    prompt,
    upload.license,
    results=results_of(export.prompt, prompt),
    private=upload.private,
    keep_in=folder,
  )


def push_prompt(
  name: str,
  prompt: Prompt,
  license: str,
  results: Mapping[str, Any] | None = None,
  private: bool = False,
  keep_in: Path | None = None,
) -> str:
  """Uploads `prompt.npz` and a model card, and returns the commit's URL.

  Paths in the prompt's config are cut to their last name, since their folders belong to
  this machine.

  Args:
    name: repository, `hf:OWNER/NAME`.
    prompt: prompt to upload.
    license: licence by the hub's identifier.
    results: `results.json` of the training, whose accuracies the card reports.
    private: whether the repository must be private. A public repository is then an
      error.
    keep_in: folder that gets a copy of prompt and card before the upload.

  Raises:
    PromptFileError: a prompt that `save_prompt` refuses.
    HubError: a repository that can't be written; see `check_upload`.
    HubWriteError: the hub refuses the repository or the metadata.
  """
  from huggingface_hub import HfApi

  prompt = dataclasses.replace(
    prompt,
    clip_model=without_folders(prompt.clip_model),
    config=without_folders(prompt.config),
  )
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder)
    prompt_file.save_prompt(local / prompt_file.DEFAULT_FILE, prompt)
    model_card(name, prompt, license, results or {}).save(local / "README.md")
    if keep_in is not None:
      for file in local.iterdir():
        write_file(keep_in / file.name, file.read_bytes())
    repository = check_upload(name, private)
    api = HfApi()
    with _as_hub_error(name, HubWriteError):
      # Pass None instead of False: an organisation may have a default of its own.
      api.create_repo(repository, private=private or None, exist_ok=True)
      commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=f"Prompt for {prompt.clip_model}",
      )
      return commit.commit_url


def results_of(path: str | os.PathLike, prompt: Prompt) -> dict[str, Any]:
  """Reads `results.json` beside a prompt file.

  Args:
    path: file or folder of the prompt, as `load_prompt` takes it.
    prompt: content of the prompt file.

  Returns:
    The results; {} unless the folder is that of the run that learned the prompt.

  Raises:
    RunFolderError: the file is damaged.
  """
  if prompt_file.is_hub(path):
    return {}
  file = to_path(prompt_path(path))
  run = RunFolder(file.parent)
  if file in run.other_prompts.values():
    return {}  # the results are of another checkpoint
  if not exists(run.config) or not exists(run.results):
    return {}
  if read_json(run.config) != prompt.config:
    return {}  # the run has learned another prompt
  results = read_json(run.results)
  is_training = isinstance(results, dict) and results.get("job") == "pretrain"
  if not is_training or "eval" not in results:
    return {}
  return results


def check_upload(name: str | os.PathLike, private: bool = False) -> str:
  """Checks, before a job computes anything, that its upload may succeed.

  Args:
    name: `hf:OWNER/NAME`. The repository is created if it does not exist.
    private: whether the repository must not be public.

  Returns:
    The repository, `OWNER/NAME`.

  Raises:
    HubError: a malformed name, no token, no answer of the hub, or a public repository
      although `private` is set.
  """
  # Imported here, since most commands do without the hub.
  from huggingface_hub import HfApi, get_token
  from huggingface_hub.errors import RepositoryNotFoundError

  repository, *_ = parse(name)
  if os.fspath(name) != f"{prompt_file.HUB_PREFIX}{repository}":
    raise HubError(
      f"{name}: expected hf:OWNER/NAME, without revision and file, for an upload"
    )
  if not get_token():
    raise HubError(f"{name}: an upload needs {_LOG_IN}")

  with _as_hub_error(name, HubError):
    try:
      info = HfApi().model_info(repository, timeout=_TIMEOUT)
    except RepositoryNotFoundError as error:
      # The hub answers 404 if it knows the token, and 401 if it does not.
      if _status_of(error) == 401:
        raise
      # The upload creates the repository, private or not.
      return repository
  if private and not info.private:
    raise HubError(f"{name}: the repository is public, expected a private or a new one")
  return repository


def model_card(
  name: str, prompt: Prompt, license: str, results: Mapping[str, Any]
) -> Any:
  """Writes the card of a prompt, a `huggingface_hub.ModelCard`.

  Args:
    name: repository, `hf:OWNER/NAME`.
    prompt: prompt to describe.
    license: licence by the hub's identifier.
    results: `results.json` of the training, or {}.
  """
  from huggingface_hub import ModelCard, ModelCardData

  repository, *_ = parse(name)
  is_on_hub = re.fullmatch(rf"{_PART}/{_PART}", prompt.clip_model) is not None
  data = ModelCardData(
    license=license,
    library_name="pomp-jax",
    pipeline_tag="zero-shot-image-classification",
    base_model=prompt.clip_model if is_on_hub else None,
    tags=["clip", "prompt-learning", "jax"],
  )
  # A class-specific context has a leading axis of classes.
  *class_axis, n_vectors, width = prompt.context.shape
  classes = "for any class names"
  if class_axis:
    classes = f"one context for each of {class_axis[0]} classes"
  clip = "CLIP"
  if prompt.clip_model != prompt_file.UNKNOWN_CLIP:
    clip = printable(prompt.clip_model)
  hint = ""
  if not is_on_hub and prompt.clip_model != "world":
    # The CLIP's name is a folder or a file on the machine that trained.
    hint = "\n\nThe first argument is the folder or the file of that CLIP."
  return ModelCard(f"""---
{data.to_yaml()}
---

# {repository.partition("/")[2]}

A prompt for the CLIP {_code(prompt.clip_model)}, learned with POMP-JAX by {_PAPER}: {n_vectors} \
context vectors of width {width}, {_PLACES[prompt.position]} the class name, {classes}.

## Use

```python
from pomp_jax.evaluate import Classifier

classifier = Classifier({json.dumps(clip, ensure_ascii=False)}, "{name}", ["cat", "dog"])
print(classifier.predict("picture.jpg"))
```{hint}

## Training

{_training(name, prompt.config)}
{_results(prompt, results)}""")


def _training(name: str, config: Mapping[str, Any]) -> str:
  """The card's sentence on the training."""
  if not config:
    return "The configuration of the training is not known."
  data = config.get("data", {})
  contrast = config.get("k")
  if config.get("negatives") == "all":
    contrast = "all classes"
  facts = {
    "images": data.get("dataset") or data.get("root") or data.get("source"),
    "shots": data.get("shots") or "all",
    "contrast over": contrast,
    "correction": config.get("correction"),
    "fixed margin": config.get("margin") or None,
    "epochs": config.get("epochs"),
    "seed": config.get("seed"),
  }
  words = []
  for fact, value in facts.items():
    if value is not None:
      words.append(f"{fact} {_code(str(value))}")
  return (
    f'{", ".join(words)}. `load_prompt("{name}").config`, of `pomp_jax.files.prompt_file`, is the'
    " whole configuration."
  )


def _results(prompt: Prompt, results: Mapping[str, Any]) -> str:
  """The card's table of accuracies, with the command that measured them."""
  if not results:
    return ""
  template = prompt.config.get("eval", {}).get("template", "the hand-written prompt")
  labels = [label or _code(template) for label in _COLUMNS.values()]
  rows = [
    f"| top-1 (%) | images | classes | {' | '.join(labels)} |",
    "| --- " * 6 + "|",
  ]
  for split, scores in results["eval"].items():
    row = [
      _code(split),
      str(results["eval_images"][split]),
      str(results["eval_classes"][split]),
    ]
    for key in _COLUMNS:
      row.append(f"{100 * scores[key]['top1']:.1f}" if key in scores else "")
    rows.append(f"| {' | '.join(row)} |")
  paragraphs = [
    "## Results",
    "Measured on the test splits of the training's data:",
    "\n".join(rows),
  ]
  command = results.get("provenance", {}).get("command", "")
  command = printable(without_folders(command), None).replace("`", "?")
  if command:
    paragraphs.append(f"```bash\n{command}\n```")
  return "\n" + "\n\n".join(paragraphs) + "\n"


def _code(text: str) -> str:
  """A text as code in Markdown; "`" and "|", which end code or a cell, become "?"."""
  return f"`{re.sub(r'[`|]', '?', printable(text))}`"
