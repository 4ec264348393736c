"""The export job uploads a prompt to the hub."""

import numpy as np
import pytest

from pomp_jax.evaluate import export
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import read_json
from pomp_jax.rooms.interchange.prompt_hub import HubError, results_of
from tests.evaluate.test_export import UPLOAD, checked, encoder, files  # noqa: F401


def test_the_prompt_is_uploaded_with_the_figures_of_its_run(
  hub,
  pretrained,
  files,  # noqa: F811
  capsys,
):
  results, prompt = read_json(pretrained / "results.json"), load_prompt(pretrained)
  # Of the folder as of the file in it.
  for path in (pretrained, pretrained / "prompt.npz"):
    assert results_of(str(path), prompt) == results
  config = checked(files, **UPLOAD, prompt=str(path), names="", private=True)
  assert not hub.files
  written = export.run(config, str(files / "run"))
  assert hub.private == {"me/a"}
  for name, content in hub.files["me/a"].items():
    assert (files / "run" / name).read_bytes() == content
  card = hub.files["me/a"]["README.md"].decode()
  top1 = results["eval"]["novel"]["prompt"]["top1"]
  assert f"| {100 * top1:.1f} |" in card and "license: mit" in card
  assert written["url"] in capsys.readouterr().out
  np.testing.assert_array_equal(load_prompt("hf:me/a").context, prompt.context)


@pytest.mark.parametrize("changes", [{}, {"prompt": "hf:me/a"}, {"hub": "hf:me/a@v1"}])
def test_what_the_hub_refuses_is_found_before_anything_is_written(hub, files, changes):  # noqa: F811
  hub.down = True
  with pytest.raises(HubError, match=r"^hf:me/a[^\n]*$"):
    checked(files, **UPLOAD | {"names": ""} | changes)
  assert not (files / "run").exists()
