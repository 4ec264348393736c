"""A small network of torch modules and its checkpoint, as ZSSeg's code leaves it."""

import pytest
import torch

from tests.support.clips import randomise
from tests.support.torch_mask_former import torch_mask_former, zsseg_state


@pytest.fixture(scope="session")
def torch_model():
  return randomise(torch_mask_former())


@pytest.fixture(scope="session")
def checkpoint(torch_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("zsseg") / "model_final.pth"
  optimizer = torch.optim.AdamW(torch_model.class_predictor.parameters())
  state = {"model": zsseg_state(torch_model), "optimizer": optimizer.state_dict()}
  torch.save(state | {"iteration": 59_999}, path)
  return path
