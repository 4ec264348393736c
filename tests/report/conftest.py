"""Figures that are saved, to look into."""

from PIL import Image
import pytest

from pomp_jax.report import drawing


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, each of which became a picture."""
  figures, save = [], drawing.save

  def noted(path, figure):
    save(path, figure)
    figures.append(figure)
    with Image.open(path) as image:
      assert image.format == "PNG" and min(image.size) > 100

  monkeypatch.setattr(drawing, "save", noted)
  return figures
