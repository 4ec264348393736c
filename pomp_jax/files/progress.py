"""How far a run is: a bar on a terminal, plain lines in a log."""

from collections.abc import Callable, Mapping
import io
import sys
import time
import types
from typing import SupportsFloat

from tqdm import tqdm

# In a log: a line once this much time has passed ...
_LINE_SECONDS = 10.0
# ... and this part of the run is done, so that a short run has about twenty lines ...
_LINE_PART = 0.05
# ... but one at least this often, so that a long run shows that it lives.
_SILENT_SECONDS = 60.0


class Progress:
  """Shows steps, speed, the time that is left, and the newest metrics."""

  def __init__(
    self,
    total: int,
    initial: int = 0,
    description: str = "",
    stream: io.TextIOBase | None = None,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
    unit: str = "steps",
  ):
    """Starts the clock.

    Args:
      total: steps (or other units) of the whole run.
      initial: steps done before this start; they don't count for the speed.
      description: what is running, a word or two.
      stream: where to write; standard error when it is None.
      quiet: write nothing (all processes but the first).
      clock: seconds, from any zero.
      unit: what is counted, in the plural.
    """
    self._total, self._description, self._quiet, self._clock = total, description, quiet, clock
    self._unit = unit
    self._stream = sys.stderr if stream is None else stream
    self._step = self._line_step = initial
    # The first step compiles: the speed is measured from its end.
    self._start: tuple[int, float] | None = None
    self._line_time = clock()
    self._bar = None
    if not quiet and self._stream.isatty():
      self._bar = tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        file=self._stream,
        dynamic_ncols=True,
      )

  def update(
    self,
    step: int,
    more: Mapping[str, SupportsFloat] = types.MappingProxyType({}),
    **metrics: SupportsFloat,
  ) -> None:
    """Tells how far the run is.

    Args:
      step: steps done in the whole run.
      more: figures that a log has beside the metrics, and a bar has no place for.
      **metrics: figures to show beside it, by name.
    """
    now = self._clock()
    figures = _figures(metrics)
    advance, self._step = step - self._step, step
    if self._start is None:
      self._start = (step, now)
    if self._bar is not None:
      self._bar.set_postfix(figures, refresh=False)
      self._bar.update(advance)
    elif not self._quiet and self._line_is_due(now):
      self._line_time, self._line_step = now, step
      print(self._line(now, figures | _figures(more)), file=self._stream, flush=True)

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _line_is_due(self, now: float) -> bool:
    if self._step >= self._total:
      return self._line_step < self._total
    silent = now - self._line_time
    enough = self._step - self._line_step >= _LINE_PART * self._total
    return silent >= _SILENT_SECONDS or (silent >= _LINE_SECONDS and enough)

  def _line(self, now: float, figures: dict[str, str]) -> str:
    width = len(str(self._total))
    percent = 100 * self._step // self._total if self._total else 100
    parts = [f"{self._description} {self._step:{width}d}/{self._total} ({percent}%)".strip()]
    start_step, start_time = self._start
    if self._step > start_step and now > start_time:
      rate = (self._step - start_step) / (now - start_time)
      parts.append(f"{rate:.3g} {self._unit}/s")
      if self._step < self._total:
        parts.append(f"{_duration((self._total - self._step) / rate)} left")
    parts += [f"{name}={value}" for name, value in figures.items()]
    return ", ".join(parts)


def _figures(values: Mapping[str, SupportsFloat]) -> dict[str, str]:
  return {name: f"{float(value):.4g}" for name, value in values.items()}


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
