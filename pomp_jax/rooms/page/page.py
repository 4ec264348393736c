"""A page in the browser: pictures under prompts side by side, and the folders of runs.

It writes nothing, and ends by SIGINT or SIGTERM with status 0. Without an address of the network it
can be reached from this machine alone.
"""

from collections.abc import Sequence
import errno
import importlib.util
import logging
import pathlib
import time

import numpy as np
from PIL import Image

from pomp_jax import hosts
from pomp_jax.config import WORLD, ConfigError, Settings
from pomp_jax.errors import InputError
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import NamedPrompt, read_prompts
from pomp_jax.files.class_features import ClassFeatures
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regions import scenes
from pomp_jax.rooms.regions.region_sources import check_network, open_network
from pomp_jax.world import source
from pomp_jax.world.names import class_attributes, class_names

log = logging.getLogger(__name__)

_LIBRARIES = ("flask", "waitress")
_EXAMPLES = 4
# Names that an example lists and its picture does not show: of a picture, and of a scene.
_NEAR, _OTHERS = 7, 4
_SECONDS = 0.2


def check(config: Settings, workdir: str) -> None:
  """Checks libraries, prompts, folder and port; writes nothing."""
  RunFolder(workdir).check(config.job)
  for library in _LIBRARIES:
    if importlib.util.find_spec(library) is None:
      raise InputError(f"the page needs {library}: pip install 'pomp-jax[page]'")
  page, model = config.page, config.clip.model
  if is_bucket(page.runs):
    raise ConfigError("page.runs", page.runs, "a local folder")
  if config.regions.crop != "context":
    raise ConfigError("regions.crop", config.regions.crop, "'context': boxes have no masks")
  prompts = read_prompts(page.prompts, "page.prompts")
  width = inputs.clip_config(model).text_config.hidden_size
  for label, prompt, _ in prompts:
    of_classes = isinstance(prompt, Prompt) and prompt.context.ndim == 3
    if of_classes or isinstance(prompt, ClassFeatures):
      raise ConfigError("page.prompts", label, "a prompt that fits any names")
    if isinstance(prompt, Prompt):
      check_fits(prompt, width, model, path=label)
  if config.propose.network:
    check_network(config)
  _listen(config).close()


def run(config: Settings, workdir: str) -> None:
  """Serves the page until the process is asked to stop."""
  del workdir
  # Import after `check`, which says what is missing.
  from pomp_jax.rooms.page import connections, server
  from pomp_jax.rooms.page.comparison import Comparison, shown_prompts

  page, turns = config.page, server.Turns()
  prompts = shown_prompts(read_prompts(page.prompts, "page.prompts"))
  encoder = inputs.open_encoder(config)
  network = open_network(config, encoder, batch_size=1) if config.propose.network else None
  comparison = Comparison(encoder, prompts, config, network)
  of_world = config.clip.model == WORLD
  app = server.make_app(
    comparison,
    pathlib.Path(page.runs) if page.runs else None,
    server.Limits(page.max_names, page.max_upload),
    host=page.host,
    hosts=page.hosts,
    pictures=_pictures() if of_world else (),
    scenes=_scenes() if of_world else (),
    turns=turns,
  )
  listener = _listen(config)
  host, port = listener.getsockname()[:2]
  if page.host not in server.LOOPBACK:
    log.warning(
      "page.host=%s: whoever reaches port %d of this machine can use the page and see the runs in"
      " %r; there is no password",
      *(page.host, port, page.runs),
    )
  with hosts.StopRequest() as stop, connections.serving(app, listener, page.max_upload):
    _log_start(prompts, f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    while not stop.after_step():
      time.sleep(_SECONDS)
    log.info("the page ends")
    turns.close()


def _log_start(prompts: Sequence[NamedPrompt], url: str) -> None:
  log.info("prompts: %s", ", ".join(named.label for named in prompts))
  log.info("the page is at %s (Ctrl-C ends it)", url)


def _listen(config: Settings):
  from pomp_jax.rooms.page.connections import listen

  try:
    return listen(config.page.host, config.page.port)
  except OSError as error:
    bad = "page.host", config.page.host, f"an address of this machine ({error.strerror})"
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
      bad = "page.port", config.page.port, f"a free port of {bad[1]} ({error.strerror})"
    raise ConfigError(*bad) from error


def _pictures():
  """Pictures of novel classes, each with its name and some that differ in one word's meaning."""
  from pomp_jax.rooms.page.server import Example

  images = source("novel", n_images=_EXAMPLES)
  names, attributes_NxA = class_names("all"), class_attributes("all")
  examples = []
  for pixels, label in zip(images.images(np.arange(_EXAMPLES)), images.labels, strict=True):
    own = names.index(images.names[label])
    near = np.flatnonzero((attributes_NxA != attributes_NxA[own]).sum(axis=1) == 1)
    near = near[:: max(len(near) // _NEAR, 1)][:_NEAR]
    shown = "\n".join(names[c] for c in sorted([own, *near.tolist()]))
    examples.append(Example(Image.fromarray(pixels), shown))
  return tuple(examples)


def _scenes():
  """Scenes of several objects, with their boxes, their names and some others'."""
  from pomp_jax.rooms.page.form import text_of_boxes
  from pomp_jax.rooms.page.server import Example

  found = scenes.Scenes("test", 2)
  examples = []
  for index in range(len(found)):
    scene = found.scene(index)
    others = range(index, len(found.names), len(found.names) // _OTHERS)
    classes = dict.fromkeys([*scene.labels.tolist(), *others])
    names = "\n".join(found.names[c] for c in classes)
    examples.append(Example(Image.fromarray(scene.image), names, text_of_boxes(scene.boxes)))
  return tuple(examples)
