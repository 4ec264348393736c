"""Files of repositories on HuggingFace's hub, by its own library: `hf:OWNER/NAME`.

The library retries for up to a minute where there is no network. So the hub is first asked once,
with a timeout, and every failure is one line. The library is imported with the first request.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import pathlib
import re
from typing import Any

from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import (
  DEFAULT_FILE,
  HUB_PREFIX,
  Prompt,
  PromptFileError,
  format_of_content,
  load_prompt,
  refuse,
)
from pomp_jax.files.terminal import one_line, printable

log = logging.getLogger(__name__)

# Neither kind of file can hold a pickle.
SUFFIXES = (".npz", ".safetensors")
ACCEPTED = (
  f"hf:OWNER/NAME, hf:OWNER/NAME@REVISION, or one of them and /FILE, {' or '.join(SUFFIXES)}"
)

# No part begins with a dot, so that no path leads out of the repository.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{HUB_PREFIX}({_PART}/{_PART})(?:@({_PART}))?(?:/({_PART}(?:/{_PART})*))?")
TIMEOUT = 5.0  # seconds to wait for an answer
LOG_IN = "a token in HF_TOKEN, or `hf auth login`"


class HubError(InputError, RuntimeError):
  """A repository or file on the hub that can't be used; one line that names it."""


def parse(name: str | os.PathLike) -> tuple[str, str | None, str]:
  """Repository, revision and file of `hf:OWNER/NAME[@REVISION][/FILE]`.

  Without a revision (None) it is the main branch, without a file `prompt.npz`. HubError for another
  form, or a file of another kind.
  """
  match = _NAME.fullmatch(os.fspath(name))
  if match is None or not (file := match[3] or DEFAULT_FILE).endswith(SUFFIXES):
    raise HubError(f"{printable(os.fspath(name))}: expected {ACCEPTED}")
  return match[1], match[2], file


def load_from_hub(name: str | os.PathLike) -> Prompt:
  """The prompt that `hf:OWNER/NAME` names; errors as `load_prompt`'s and `download`'s."""
  file = download(name)
  if format_of_content(file) == "pth":
    refuse(name, "the file", "a torch checkpoint", " or ".join(SUFFIXES))
  try:
    return load_prompt(file)
  except PromptFileError as error:
    raise PromptFileError(f"{name}: {str(error).removeprefix(f'{file}: ')}") from error


def download(name: str | os.PathLike) -> pathlib.Path:
  """Downloads a file that `parse` names, or finds it in the cache if the hub does not answer.

  HubError if it is in neither, or may not be read.
  """
  from huggingface_hub import HfApi
  from huggingface_hub.errors import HfHubHTTPError

  repository, revision, file = parse(name)
  api = HfApi()
  with as_hub_error(name, HubError):
    try:
      info = api.model_info(repository, revision=revision, timeout=TIMEOUT)
    except Exception as error:  # those of requests and of httpx share no base
      if isinstance(error, HfHubHTTPError) and status_of(error) < 500:
        raise  # the hub itself refuses
      try:
        cached = api.hf_hub_download(repository, file, revision=revision, local_files_only=True)
      except Exception:  # of another class in each version of the library
        told = f"{type(error).__name__}: {one_line(error, 200)}"
        raise HubError(f"{name}: not in the cache, and the hub can't be asked ({told})") from error
      log.warning("%s: the hub can't be asked; the file in its cache is used", name)
      return pathlib.Path(cached)
    files = [found.rfilename for found in info.siblings or ()]
    if file not in files:
      usable = sorted(other for other in files if other.endswith(SUFFIXES))[:5]
      there = printable(", ".join(usable)) or f"no {' or '.join(SUFFIXES)}"
      raise HubError(f"{name}: no {file} in the repository; there are: {there}")
    # By the revision's name, under which it is found without a network.
    return pathlib.Path(
      api.hf_hub_download(repository, file, revision=revision, etag_timeout=TIMEOUT)
    )


def status_of(error: Any) -> int:
  """HTTP status of an error of the library's."""
  return error.response.status_code


@contextlib.contextmanager
def as_hub_error(name: str | os.PathLike, kind: type[HubError]) -> Iterator[None]:
  """Turns any error of the library's or the network's into one line."""
  from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

  try:
    yield
  except HubError:
    raise
  except RepositoryNotFoundError as error:
    told = f"no such repository, or a private or gated one, which needs {LOG_IN}"
    raise kind(f"{name}: {told} ({status_of(error)})") from error
  except RevisionNotFoundError as error:
    raise kind(f"{name}: no such revision in the repository") from error
  except Exception as error:  # those of requests and of httpx share no base
    raise kind(f"{name}: the hub: {type(error).__name__}: {one_line(error, 200)}") from error
