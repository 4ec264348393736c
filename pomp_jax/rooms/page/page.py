"""A page in the browser: pictures under prompts side by side, and the folders of runs.

The job writes nothing, and ends with status 0 at SIGINT or SIGTERM. Unless `page.host`
is an address in the network, only this machine can reach the page.
"""

import errno
import importlib.util
import logging
import os
import socket
import time

import numpy as np
from PIL import Image

from pomp_jax import hosts
from pomp_jax.config import WORLD, ConfigError
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import (
  check_prompt,
  of_one_list,
  read_prompts,
  warn_of_turns,
)
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.run_folder import prompt_path
from pomp_jax.hooks import REGIONS_ON_PAGE
from pomp_jax.rooms.page.comparison import Comparison, shown_prompts
from pomp_jax.rooms.page.fields import PageConfig
from pomp_jax.rooms.page.form import Example
from pomp_jax.world import source
from pomp_jax.world.names import class_attributes, class_names

log = logging.getLogger(__name__)

_LIBRARIES = ("flask", "waitress")
_EXAMPLES = 4
_NEAR = 7  # number of names that an example lists although its picture is of another
_SECONDS = 0.2  # between two looks for a request to stop


def check(config: PageConfig, workdir: str) -> None:
  """Checks libraries, prompts, folder and port; writes nothing.

  Args:
    config: config of the job.
    workdir: ignored, since the page writes nothing.

  Raises:
    InputError: a library is missing, or a field, a prompt or the address is unusable.
  """
  for library in _LIBRARIES:
    if importlib.util.find_spec(library) is None:
      raise InputError(f"the page needs {library}: pip install 'pomp-jax[page]'")

  page = config.page
  clip_model = config.clip.model
  if is_bucket(page.runs):
    raise ConfigError("page.runs", page.runs, "a local folder")
  if REGIONS_ON_PAGE:
    REGIONS_ON_PAGE.open().check(page, clip_model)

  clip_config = opening.clip_config(clip_model)
  for named in read_prompts(page.prompts, "page.prompts"):
    if of_one_list(named.prompt):
      raise ConfigError("page.prompts", named.label, "a prompt that fits any names")
    # No names yet: a visitor enters them.
    check_prompt(named, (), clip_config, clip_model)

  # Opens the port to see whether it can be opened.
  _listen(page.host, page.port).close()


def run(config: PageConfig, _: str) -> None:
  """Serves the page until the process is asked to stop."""
  # Import here, after `check` has reported missing libraries.
  from pomp_jax.rooms.page import server

  page = config.page
  turns = server.Turns()
  prompts = shown_prompts(read_prompts(page.prompts, "page.prompts"))
  # Browsers turn pictures as their EXIF says, so the page classifies turned pictures.
  warn_of_turns(prompts, True, "the page")
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  regions = None
  if REGIONS_ON_PAGE:
    regions = REGIONS_ON_PAGE.open().RegionsOfPictures(encoder, config.clip, page)
  files = set()
  for name in page.prompts:
    if not is_bucket(name):
      files.add(os.path.realpath(prompt_path(name)))
  comparison = Comparison(encoder, prompts, page.top, regions, files)
  examples: dict[str, tuple[Example, ...]] = {}
  if config.clip.model == WORLD:
    examples["classify"] = _pictures()
    examples["regions"] = _scenes() if regions else ()
  app = server.make_app(comparison, page, turns, examples)
  listener = _listen(page.host, page.port)
  host, port = listener.getsockname()[:2]
  if page.host not in server.LOOPBACK:
    log.warning(
      "page.host=%s: whoever reaches port %d of this machine can use the page and see the runs in"
      " %r; there is no password",
      page.host,
      port,
      page.runs,
    )
  # In a URL an IPv6 address is in brackets.
  address = f"[{host}]" if ":" in host else host
  url = f"http://{address}:{port}/"
  with hosts.StopRequest() as stop, server.serving(app, listener, page.max_upload):
    log.info("prompts: %s", ", ".join(prompt.label for prompt in prompts))
    log.info("the page is at %s (Ctrl-C ends it)", url)
    while not stop.after_step():
      time.sleep(_SECONDS)
    log.info("the page ends")
    turns.close()


def _listen(host: str, port: int) -> socket.socket:
  """Opens a port.

  Args:
    host: address of this machine, IPv4 or IPv6, or its name.
    port: number of the port; 0 for a free one.

  Raises:
    ConfigError: this machine has no such address, or the port is in use or reserved.
  """
  # Only an IPv6 address has colons.
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    is_wrong_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
    if is_wrong_port:
      expected = f"a free port of {host!r} ({error.strerror})"
      raise ConfigError("page.port", port, expected) from error
    expected = f"an address of this machine ({error.strerror})"
    raise ConfigError("page.host", host, expected) from error


def _pictures() -> tuple[Example, ...]:
  """Pictures of novel classes, with the true name and names that differ in one word."""
  images = source("novel", n_images=_EXAMPLES)
  names = class_names("all")
  attributes_NxA = class_attributes("all")
  pixels_of_images = images.images(np.arange(_EXAMPLES))
  examples = []
  for pixels, label in zip(pixels_of_images, images.labels, strict=True):
    true_class = names.index(images.names[label])
    n_different_N = (attributes_NxA != attributes_NxA[true_class]).sum(axis=1)
    near = np.flatnonzero(n_different_N == 1)
    # Take near names at even distances, so that each word differs in some name.
    stride = max(len(near) // _NEAR, 1)
    near = near[::stride][:_NEAR]
    listed = sorted([true_class, *near.tolist()])
    text = "\n".join(names[c] for c in listed)
    examples.append(Example(Image.fromarray(pixels), text))
  return tuple(examples)


def _scenes() -> tuple[Example, ...]:
  """Scenes of several objects, with the objects' boxes and names and some other names."""
  return tuple(Example(*scene) for scene in REGIONS_ON_PAGE.open().examples())
