"""Prompts on HuggingFace's hub, `hf:OWNER/NAME`, by its own library; uploads with a
model card.

The library retries for up to a minute where there is no network. So the hub is first
asked once, with a timeout, and every failure is one line. The library is imported with
the first request.
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
# Columns of the table, by their names in `results.json`.
_COLUMNS = {
  "prompt": "this prompt",
  "hand_written": None,
  "class_name": "the bare name",
}
_PLACES = {"end": "before", "middle": "on both sides of", "front": "after"}


class HubError(InputError, RuntimeError):
  """A repository or file on the hub that can't be used; one line that names it."""


class HubWriteError(HubError):
  """A failed upload."""

  status = RunError.status


def parse(name: str | os.PathLike) -> tuple[str, str | None, str]:
  """Repository, revision and file of `hf:OWNER/NAME[@REVISION][/FILE]`.

  Without a revision (None) it is the main branch, without a file `prompt.npz`. HubError
  for another form, or a file of another kind.
  """
  match = _NAME.fullmatch(os.fspath(name))
  if match is None or not (file := match[3] or prompt_file.DEFAULT_FILE).endswith(
    _SUFFIXES
  ):
    raise HubError(f"{printable(os.fspath(name))}: expected {_ACCEPTED}")
  return match[1], match[2], file


def load_from_hub(name: str | os.PathLike) -> Prompt:
  """The prompt that `hf:OWNER/NAME` names; errors as `load_prompt`'s and
  `_download`'s."""
  file = _download(name)
  if prompt_file.format_of_content(file) == "pth":
    prompt_file.refuse(name, "the file", "a torch checkpoint", _KINDS)
  try:
    return prompt_file.load_prompt(file)
  except prompt_file.PromptFileError as error:
    raise prompt_file.PromptFileError(
      f"{name}: {str(error).removeprefix(f'{file}: ')}"
    ) from error


def _download(name: str | os.PathLike) -> pathlib.Path:
  """Downloads a file that `parse` names, or finds it in the cache if the hub does not
  answer.

  HubError if it is in neither, or may not be read.
  """
  from huggingface_hub import HfApi
  from huggingface_hub.errors import HfHubHTTPError

  repository, revision, file = parse(name)
  api = HfApi()
  with _as_hub_error(name, HubError):
    try:
      info = api.model_info(repository, revision=revision, timeout=_TIMEOUT)
    except Exception as error:  # those of requests and of httpx share no base
      if isinstance(error, HfHubHTTPError) and _status_of(error) < 500:
        raise  # the hub itself refuses
      try:
        cached = api.hf_hub_download(
          repository, file, revision=revision, local_files_only=True
        )
      except Exception:  # of another class in each version of the library
        told = f"{type(error).__name__}: {one_line(error, 200)}"
        raise HubError(
          f"{name}: not in the cache, and the hub can't be asked ({told})"
        ) from error
      log.warning("%s: the hub can't be asked; the file in its cache is used", name)
      return pathlib.Path(cached)
    files = [found.rfilename for found in info.siblings or ()]
    if file not in files:
      usable = sorted(other for other in files if other.endswith(_SUFFIXES))[:5]
      there = printable(", ".join(usable)) or f"no {_KINDS}"
      raise HubError(f"{name}: no {file} in the repository; there are: {there}")
    # By the revision's name, under which it is found without a network.
    found = api.hf_hub_download(
      repository, file, revision=revision, etag_timeout=_TIMEOUT
    )
    return pathlib.Path(found)


def _status_of(error: Any) -> int:
  return error.response.status_code


@contextlib.contextmanager
def _as_hub_error(name: str | os.PathLike, kind: type[HubError]) -> Iterator[None]:
  """Turns any error of the library's or the network's into one line."""
  from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

  try:
    yield
  except HubError:
    raise
  except RepositoryNotFoundError as error:
    told = f"no such repository, or a private or gated one, which needs {_LOG_IN}"
    raise kind(f"{name}: {told} ({_status_of(error)})") from error
  except RevisionNotFoundError as error:
    raise kind(f"{name}: no such revision in the repository") from error
  except Exception as error:  # those of requests and of httpx share no base
    raise kind(
      f"{name}: the hub: {type(error).__name__}: {one_line(error, 200)}"
    ) from error


def wanted(export: Export) -> bool:
  """Whether the config asks for an upload."""
  return bool(export.of(Upload).hub)


def check(export: Export, prompt: Prompt) -> None:
  """Checks that `push` may succeed; errors as `results_of`'s and `check_upload`'s."""
  upload = export.of(Upload)
  results_of(export.prompt, prompt)
  check_upload(upload.hub, upload.private)


def push(export: Export, prompt: Prompt, folder: Path) -> str:
  """Writes a prompt and its card to the folder, uploads both, and returns the
  commit's URL."""
  upload, results = export.of(Upload), results_of(export.prompt, prompt)
  return push_prompt(
    upload.hub, prompt, upload.license, results, upload.private, keep_in=folder
  )


def push_prompt(
  name: str,
  prompt: Prompt,
  license: str,
  results: Mapping[str, Any] | None = None,
  private: bool = False,
  keep_in: Path | None = None,
) -> str:
  """Uploads `prompt.npz` and a model card to `hf:OWNER/NAME`; returns the commit's URL.

  Folders in the prompt's config are cut to their last name: they belong to the machine.
  Errors as `save_prompt`'s and `check_upload`'s; HubWriteError if the hub refuses
  repository or metadata. Licences are named by the hub's identifiers. `results` are
  `results.json` of the training, whose accuracies the card reports. With `private` a
  public repository is an error. `keep_in` is a folder that gets a copy of both files,
  before the upload.
  """
  from huggingface_hub import HfApi

  config, clip_model = (
    without_folders(prompt.config),
    without_folders(prompt.clip_model),
  )
  prompt = dataclasses.replace(prompt, clip_model=clip_model, config=config)
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder)
    prompt_file.save_prompt(local / prompt_file.DEFAULT_FILE, prompt)
    model_card(name, prompt, license, results or {}).save(local / "README.md")
    if keep_in is not None:
      for file in local.iterdir():
        write_file(keep_in / file.name, file.read_bytes())
    repository, api = check_upload(name, private), HfApi()
    with _as_hub_error(name, HubWriteError):
      api.create_repo(repository, private=private or None, exist_ok=True)
      told = f"Prompt for {clip_model}"
      commit = api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message=told
      )
      return commit.commit_url


def results_of(path: str | os.PathLike, prompt: Prompt) -> dict[str, Any]:
  """`results.json` beside a prompt file, `path` of `load_prompt`; RunFolderError if it
  is damaged.

  Empty unless the folder is of the run that learned the prompt.
  """
  if prompt_file.is_hub(path):
    return {}
  file = to_path(prompt_path(path))
  run = RunFolder(file.parent)
  if file in run.other_prompts.values():
    return {}  # the results are of another checkpoint
  if (
    not (exists(run.config) and exists(run.results))
    or read_json(run.config) != prompt.config
  ):
    return {}
  results = read_json(run.results)
  is_training = isinstance(results, dict) and results.get("job") == "pretrain"
  return results if is_training and "eval" in results else {}


def check_upload(name: str | os.PathLike, private: bool = False) -> str:
  """Checks that an upload to `hf:OWNER/NAME` may succeed, and returns `OWNER/NAME`.

  HubError for another form of name, no token, no answer of the hub, or a public
  repository where a private one is wanted.
  """
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
      is_private = HfApi().model_info(repository, timeout=_TIMEOUT).private
    except RepositoryNotFoundError as error:
      if _status_of(error) == 401:  # with a token that the hub knows it is 404
        raise
      return repository
    if private and not is_private:
      raise HubError(
        f"{name}: the repository is public, expected a private or a new one"
      )
  return repository


def model_card(
  name: str, prompt: Prompt, license: str, results: Mapping[str, Any]
) -> Any:
  """The `huggingface_hub.ModelCard`; arguments as `push_prompt`'s."""
  from huggingface_hub import ModelCard, ModelCardData

  repository, *_ = parse(name)
  on_hub = bool(re.fullmatch(rf"{_PART}/{_PART}", prompt.clip_model))
  data = ModelCardData(
    license=license,
    library_name="pomp-jax",
    pipeline_tag="zero-shot-image-classification",
    base_model=prompt.clip_model if on_hub else None,
    tags=["clip", "prompt-learning", "jax"],
  )
  *n_classes, n_vectors, width = prompt.context.shape
  shared = (
    f"one context for each of {n_classes[0]} classes"
    if n_classes
    else "for any class names"
  )
  clip = (
    "CLIP"
    if prompt.clip_model == prompt_file.UNKNOWN_CLIP
    else printable(prompt.clip_model)
  )
  # A name of no hub and not "world" is a folder or file of the machine that trained.
  local = not on_hub and prompt.clip_model != "world"
  hint = (
    "\n\nThe first argument is the folder or the file of that CLIP." if local else ""
  )
  return ModelCard(f"""---
{data.to_yaml()}
---

# {repository.partition("/")[2]}

A prompt for the CLIP {_code(prompt.clip_model)}, learned with POMP-JAX by {_PAPER}: {n_vectors} \
context vectors of width {width}, {_PLACES[prompt.position]} the class name, {shared}.

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
  if not config:
    return "The configuration of the training is not known."
  data = config.get("data", {})
  facts = {
    "images": data.get("dataset") or data.get("root") or data.get("source"),
    "shots": data.get("shots") or "all",
    "contrast over": "all classes"
    if config.get("negatives") == "all"
    else config.get("k"),
    "correction": config.get("correction"),
    "epochs": config.get("epochs"),
    "seed": config.get("seed"),
  }
  told = [
    f"{fact} {_code(str(value))}" for fact, value in facts.items() if value is not None
  ]
  return (
    f'{", ".join(told)}. `load_prompt("{name}").config`, of `pomp_jax.files.prompt_file`, is the'
    " whole configuration."
  )


def _results(prompt: Prompt, results: Mapping[str, Any]) -> str:
  if not results:
    return ""
  template = prompt.config.get("eval", {}).get("template", "the hand-written prompt")
  labels = [label or _code(template) for label in _COLUMNS.values()]
  rows = [
    f"| top-1 (%) | images | classes | {' | '.join(labels)} |",
    "| --- " * 6 + "|",
  ]
  for split, scores in results["eval"].items():
    found = [
      f"{100 * scores[key]['top1']:.1f}" if key in scores else "" for key in _COLUMNS
    ]
    counts = results["eval_images"][split], results["eval_classes"][split]
    rows.append(f"| {_code(split)} | {counts[0]} | {counts[1]} | {' | '.join(found)} |")
  command = results.get("provenance", {}).get("command", "")
  shown = printable(without_folders(command), None).replace("`", "?")
  lines = [
    "## Results",
    "Measured on the test splits of the training's data:",
    "\n".join(rows),
  ]
  lines += [f"```bash\n{shown}\n```"] if shown else []
  return "\n" + "\n\n".join(lines) + "\n"


def _code(text: str) -> str:
  return f"`{re.sub(r'[`|]', '?', printable(text))}`"
