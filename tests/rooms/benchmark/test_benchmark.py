"""The benchmark of the text tower, at toy sizes."""

from concurrent.futures import ThreadPoolExecutor
import math
import re

from flax.traverse_util import flatten_dict
import open_clip
from open_clip.model import _build_text_tower
import pytest
import torch

from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.families import NoImageTower
from pomp_jax.config import ConfigError, validate
from pomp_jax.files import terminal
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import benchmark, towers
from pomp_jax.rooms.benchmark.synthetic_clip import token_lengths
from pomp_jax.rooms.benchmark.towers import compile_step, temporaries_mib
from tests.support.clips import needs_flax_clip
from tests.support.small_run import settings


def _config(**changes):
  changes = {"model": "tiny", "repeats": 1, "bank_steps": ""} | changes
  return settings(
    job="benchmark", **{f"benchmark.{name}": value for name, value in changes.items()}
  )


@pytest.mark.parametrize("name", towers.OPEN_CLIPS)
def test_the_sizes_of_a_family_are_open_clips(name):
  settings = open_clip.get_model_config(towers.OPEN_CLIPS[name])
  text = settings["text_cfg"] | {"vocab_size": 8}
  with torch.device("meta"):
    original = _build_text_tower(settings["embed_dim"], text)
  n_biases = settings["embed_dim"] if text.get("proj_bias") else 0
  shapes = parameter_shapes(ClipConfig(towers.MODELS[name], NoImageTower(), settings["embed_dim"]))
  leaves = flatten_dict({key: shapes[key] for key in ("text_model", "text_projection")}).values()
  found = sum(math.prod(shape) for shape in leaves) + n_biases
  assert found == sum(parameter.numel() for parameter in original.parameters())
  assert towers.MODELS[name].num_attention_heads == text["heads"]
  bidirectional = bool(text.get("no_causal_mask"))
  assert getattr(towers.MODELS[name], "bidirectional", False) == bidirectional
  if bidirectional:
    with pytest.raises(ConfigError, match="steps"):
      benchmark.check(_config(model=name), "")


_ALL = "shared+reference+torch_77"


@needs_flax_clip
@pytest.mark.parametrize(
  "implementations",
  ["shared+torch_77", pytest.param(_ALL, marks=pytest.mark.slow("three processes, Flax's CLIP"))],
)
def test_rows_of_implementations(tmp_path, capsys, monkeypatch, implementations):
  if implementations != _ALL:
    monkeypatch.setattr(towers, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(n))
  monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
  sizes = {"k": "12", "baseline_k": "12", "rows_at_a_time": 8, "m": 4, "repeats": 2, "steps": ""}
  config = _config(implementations=implementations, **sizes)
  results = benchmark.run(config, str(tmp_path))
  benchmark.check(config, str(tmp_path))  # it may be measured again there
  assert results == RunFolder(tmp_path).read_results()
  assert (tmp_path / "plots" / "text_tower.png").is_file()
  rows = {row["implementation"]: row for row in results["rows"]}
  assert set(rows) == set(implementations.split("+"))
  for name, row in rows.items():
    assert row["seconds"] > 0 and row["share_of_matmul_rate"] > 0 and row["matmul_gflops"] > 0
    assert (row["k"], row["rounds"]) == (12, 2)
    assert row["peak_mib"] >= 0
    fewest, most = (3 * 12 + 5, 14 * 12 + 5) if name == "shared" else (77 * 12, 77 * 12)
    assert fewest <= row["tokens"] <= most
  if "reference" in rows:
    assert rows["reference"]["peak_mib"] > 8 * rows["shared"]["peak_mib"]
  captured = capsys.readouterr()
  assert "time / ours" in captured.out
  assert f"compiling and warming up {len(rows)}/{len(rows)}" in captured.err
  assert "measuring 2/2" in captured.err


def test_all_classes_run_in_chunks():
  """Only compiles: running all classes takes seconds."""
  lengths_N = token_lengths()
  measurement, _ = towers.shared_step(_config(chunk=4096).benchmark, lengths_N)
  assert (measurement.k, measurement.tokens) == (21_841, 94_447 + 17)
  # A layer's [T, 4 D] alone would take 92 MiB in one piece.
  assert measurement.peak_mib < 400


def test_whole_steps_at_several_numbers_of_classes_and_with_a_bank(tmp_path, capsys):
  steps = {"k": "", "steps": "16/21841+16/65523", "bank_steps": "16/21841/24"}
  rows = benchmark.run(_config(**steps, bank_dtype="bfloat16"), str(tmp_path))["rows"]
  fields = ("implementation", "k", "n_classes", "renew")
  assert [tuple(row[field] for field in fields) for row in rows] == [
    ("train_step", 16, 21_841, None),
    ("train_step", 16, 65_523, None),
    ("train_step", 16, 21_841, 24),
  ]
  # Nothing of the size of N is copied: a table of all token ids alone would take 2.3 MiB more.
  assert abs(rows[1]["peak_mib"] - rows[0]["peak_mib"]) < 0.1
  assert [row["bank_mib"] for row in rows[:2]] == [0.0, 0.0]
  assert rows[2]["bank_mib"] == pytest.approx(21_841 * 32 * 2 / 2**20)
  ratio = f"{rows[2]['seconds'] / rows[0]['seconds']:.2f}"
  lines = capsys.readouterr().out.splitlines()
  assert any({ratio, "train_step", "24"} <= set(line.split()) for line in lines)


def test_no_array_of_all_classes_features_is_sorted_copied_or_converted():
  """The bank of a compiled step is read by one product and written in place."""
  n_classes, n_images, settings = 65_523, 32, _config(m=4).benchmark
  compiled, state, *_ = compile_step(settings, 16, n_classes, 24)
  made = re.findall(rf"= f32\[{n_classes},32\]\S* ([\w-]+)\(", compiled.as_text())
  assert state.bank.shape == (n_classes, 32)
  assert "scatter" in made
  assert set(made) <= {"parameter", "scatter", "fusion", "bitcast", "get-tuple-element"}
  assert made.count("fusion") == made.count("scatter") == 1
  # Beside what a uniform draw takes: the images' logits over all classes, twice.
  plain, *_ = compile_step(settings, 16, n_classes, None)
  more = temporaries_mib(compiled) - temporaries_mib(plain)
  assert more < 2.1 * n_images * n_classes * 4 / 2**20


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("model", "vit_h"),
    ("implementations", "shared+theirs"),
    ("k", "128+many"),
    ("k", "128+30000"),
    ("steps", "16/2000+128/100"),
    ("steps", "128"),
    ("bank_steps", "128/21841/0"),
  ],
)
def test_refuses_what_cannot_run(field, value, tmp_path):
  with pytest.raises(ConfigError, match=re.escape(f"config.benchmark.{field}: got {value!r}")):
    validate(config := _config(**{field: value}))
    benchmark.check(config, str(tmp_path))
