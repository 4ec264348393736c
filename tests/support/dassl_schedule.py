"""Dassl's learning-rate schedule, restated on torch's own classes."""

import torch


class _ConstantWarmup(torch.optim.lr_scheduler.LRScheduler):
  """Dassl's ConstantWarmupScheduler: its successor is first stepped after the warm-up."""

  def __init__(self, optimizer, successor, warmup, rate):
    self._successor, self._warmup, self._rate = successor, warmup, rate
    super().__init__(optimizer)

  def get_lr(self):
    if self.last_epoch >= self._warmup:
      return self._successor.get_last_lr()
    return [self._rate] * len(self.base_lrs)

  def step(self, epoch=None):
    if self.last_epoch >= self._warmup:
      self._successor.step()
      self._last_lr = self._successor.get_last_lr()
    else:
      super().step()


def dassl_scheduler(
  optimizer: torch.optim.Optimizer, *, epochs: int, warmup: int, warmup_rate: float
) -> torch.optim.lr_scheduler.LRScheduler:
  """A cosine whose period is all epochs, behind a constant warm-up; to be stepped once an epoch."""
  cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))
  return _ConstantWarmup(optimizer, cosine, warmup, warmup_rate) if warmup else cosine
