"""The report of the job analyse: every figure is on its page."""

from tests.support.report_page import AWKWARD, PATHS, Case, check_page

PROMPTS = (*PATHS, AWKWARD)


def geometry_results():
  figures = {"alignment": 1.25, "uniformity": None, "top1": 0.511, "top1_interval": [0.4, 0.6]}
  vectors = {PATHS[0]: [{"tokens": ["<b>", "cat</w>"], "distances": [0.125, 0.5]}]}
  found = {"clip_model": "world", "prompts": [{"label": own, "step": None} for own in PROMPTS]}
  found["tokens"] = {"median_distance_between_tokens": 0.25, "vectors": vectors}
  novel = {"images": 1000, "classes": 50, "prompts": dict.fromkeys(PROMPTS, figures)}
  return found | {"sets": {"novel": novel}}


EXPECTED = """Class features under 3 prompts

prompt | novel
learned, one | 1.250
learned, two | 1.250
AWKWARD | 1.250
learned, one | -
learned, two | -
AWKWARD | -
learned, one | 51.1 (40.0 to 60.0)
learned, two | 51.1 (40.0 to 60.0)
AWKWARD | 51.1 (40.0 to 60.0)

vector
1 | <b> 0.125 | cat</w> 0.500

set | images | classes
novel | 1,000 | 50"""


def test_every_figure_is_on_the_page(tmp_path):
  plots = ("alignment_uniformity.png", "map_novel.png")
  check_page(Case("analyse", geometry_results(), plots, EXPECTED), tmp_path)


def test_a_prompt_without_vectors_has_no_nearest_tokens(tmp_path):
  results = geometry_results()
  results["tokens"]["vectors"][AWKWARD] = []
  parsed = check_page(Case("analyse", results, (), EXPECTED), tmp_path)
  assert [head for head in parsed.headings if "Nearest" in head] == ["Nearest tokens: learned, one"]
