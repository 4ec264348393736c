"""Pictures of what was found: legends, colours, boxes at their places, pictures of
any shape."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
import numpy as np
from PIL import Image

from pomp_jax.rooms.regions import plots
from pomp_jax.rooms.regions.detections import Detections

NAMES = [f"name {i}" for i in range(20)]


def legend_of(figure):
  return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_an_overlay_has_each_name_with_its_share_and_colour(drawn, tmp_path):
  labels = np.full((40, 60), -1, np.int32)
  labels[:, :30], labels[:10, 30:] = 3, 7
  image = np.full((40, 60, 3), 100, np.uint8)
  plots.overlay(tmp_path / "a.png", image, labels, NAMES, "a.png")
  assert legend_of(drawn[0]) == ["name 3  50.0%", "name 7  12.5%", "no region  37.5%"]
  picture = drawn[0].axes[0].get_images()[0].get_array()
  mixed = 0.4 * 100 / 255 + 0.6 * np.array(to_rgb(plots.label_colours(labels)[3]))
  height, width = picture.shape[:2]
  np.testing.assert_allclose(picture[height // 2, width // 4], mixed)
  np.testing.assert_allclose(picture[height * 3 // 4, width * 3 // 4], 100 / 255)
  assert (picture == 1).all(axis=-1).any()  # lines between classes
  # On paper pixel by pixel, at its upper left.
  saved = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")) / 255
  assert np.abs(saved - mixed).max(axis=-1).min() < 0.01


def test_names_beyond_the_colours_are_grey_and_counted(drawn, tmp_path):
  labels = np.arange(16, dtype=np.int32).repeat(10).reshape(4, 40)
  plots.overlay(
    tmp_path / "a.png", np.full((4, 40, 3), 200, np.uint8), labels, NAMES, "a.png"
  )
  texts = legend_of(drawn[0])
  assert len(texts) == 13 and texts[-1] == "4 other names  25.0%"
  grey = 0.4 * 200 / 255 + 0.6 * np.array(to_rgb(plots.OTHER))
  np.testing.assert_allclose(drawn[0].axes[0].get_images()[0].get_array()[-1, -1], grey)


def test_boxes_have_numbers_at_their_corners_and_scores_in_the_legend(drawn, tmp_path):
  boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 50, 40]], np.float32)
  found = Detections(boxes, np.array([0.5, 0.9, 0.25], np.float32), np.array([2, 5, 2]))
  image = np.full((50, 75, 3), (10, 120, 240), np.uint8)
  plots.boxes_picture(tmp_path / "a.png", image, found, NAMES, "a.png")
  # The first overlaps the second, which has the higher score.
  assert legend_of(drawn[0]) == ["1  name 5  0.90", "2  name 2  0.25"]
  (axes,) = drawn[0].axes
  picture = axes.get_images()[0].get_array()
  np.testing.assert_array_equal(picture, np.broadcast_to(image[0, 0], (500, 750, 3)))
  assert [text.get_position() for text in axes.texts] == [(10, 0), (200, 200)]
  frames = [(frame.get_width(), frame.get_height()) for frame in axes.patches]
  assert frames == [(90, 100)] * 2 + [(300, 200)] * 2
  assert drawn[0].get_suptitle() == "a.png: 2 of 3 detections"
  nothing = Detections(boxes[:0], found.scores[:0], found.classes[:0])
  plots.boxes_picture(tmp_path / "b.png", image, nothing, NAMES, "b.png")
  assert legend_of(drawn[1]) == [] and drawn[1].get_suptitle() == "b.png: 0 detections"


def test_each_picture_of_a_sheet_says_how_many_boxes_it_shows(drawn, tmp_path):
  boxes = np.array([[10 * n, 0, 10 * n + 9, 9] for n in range(10)], np.float32)
  many = Detections(boxes, np.linspace(0.9, 0.1, 10, dtype=np.float32), np.arange(10))
  one = Detections(*(part[:1] for part in many[:3]))
  image = np.zeros((20, 100, 3), np.uint8)
  plots.detection_sheet(tmp_path / "a.png", [image], [[one, many]], ["a", "b"], NAMES)
  texts = [text for axes in drawn[0].axes for text in axes.texts]
  assert [text.get_text() for text in texts] == ["1 box", "8 of 10 boxes"]
  # White on black can be read on any picture.
  assert {text.get_color() for text in texts} == {"white"}
  assert {text.get_bbox_patch().get_facecolor() for text in texts} == {(0, 0, 0, 1)}


def test_legends_of_a_wide_sheet_are_inside_and_apart():
  names = [f"maroon ribbed lightning bolt on teal {n}" for n in range(12)]
  legends = [
    dict(zip(names, plots.colours_of(range(n)).values(), strict=False)) for n in (12, 3)
  ]
  pictures = [[np.zeros((4, 4, 3), np.uint8)] * 7] * 2
  headings = [f"learned (coop/seed_{n})" for n in range(7)]
  figure, _ = plots.sheet(pictures, legends, headings, "2 of 400 images")
  FigureCanvasAgg(figure).draw()
  first, second = (legend.get_window_extent() for legend in figure.legends)
  assert first.y0 >= second.y1 >= second.y0 >= 0
  assert max(first.x1, second.x1) <= figure.bbox.x1
