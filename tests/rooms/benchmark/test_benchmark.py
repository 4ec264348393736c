"""The benchmark of the text tower, at toy sizes."""

import math
import re
import statistics

from flax.traverse_util import flatten_dict
import open_clip
from open_clip.model import _build_text_tower
import pytest
import torch

from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.image_towers import NoImageTower
from pomp_jax.config import ConfigError, validate
from pomp_jax.files import terminal
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import benchmark, measurement, towers
from pomp_jax.rooms.benchmark.measurement import Measurement
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
  shapes = parameter_shapes(
    ClipConfig(towers.MODELS[name], NoImageTower(), settings["embed_dim"])
  )
  leaves = flatten_dict(
    {key: shapes[key] for key in ("text_model", "text_projection")}
  ).values()
  found = sum(math.prod(shape) for shape in leaves) + n_biases
  assert found == sum(parameter.numel() for parameter in original.parameters())
  assert towers.MODELS[name].num_attention_heads == text["heads"]
  bidirectional = bool(text.get("no_causal_mask"))
  assert getattr(towers.MODELS[name], "bidirectional", False) == bidirectional
  if bidirectional:
    with pytest.raises(ConfigError, match="steps"):
      benchmark.check(_config(model=name), "")


@needs_flax_clip
def test_rows_of_implementations(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
  sizes = {
    "k": "12",
    "baseline_k": "12",
    "rows_at_a_time": 8,
    "m": 4,
    "repeats": 2,
    "steps": "",
  }
  config = _config(**sizes)
  results = benchmark.run(config, str(tmp_path))
  benchmark.check(config, str(tmp_path))  # it may be measured again there
  assert results == RunFolder(tmp_path).read_results()
  assert (tmp_path / "plots" / "text_tower.png").is_file()
  rows = {row["implementation"]: row for row in results["rows"]}
  assert set(rows) == {"shared", "reference"}
  for name, row in rows.items():
    assert (
      row["seconds"] > 0
      and row["share_of_matmul_rate"] > 0
      and row["matmul_gflops"] > 0
    )
    assert (row["k"], row["rounds"]) == (12, 2)
    assert row["peak_mib"] >= 0
    fewest, most = (3 * 12 + 5, 14 * 12 + 5) if name == "shared" else (77 * 12, 77 * 12)
    assert fewest <= row["tokens"] <= most
  assert rows["reference"]["peak_mib"] > 8 * rows["shared"]["peak_mib"]
  captured = capsys.readouterr()
  assert "time / ours" in captured.out
  assert f"compiling and warming up {len(rows)}/{len(rows)}" in captured.err
  assert "measuring 2/2" in captured.err


@pytest.mark.parametrize("kind", ["shared", "reference"])
def test_a_tower_is_of_the_named_model_and_type(monkeypatch, kind):
  class Asked(Exception):
    pass

  def ask(*given):
    raise Asked(given[:3])

  monkeypatch.setattr(towers, "text_tower", ask)
  step = {"shared": towers.shared_step, "reference": towers.reference_step}[kind]
  with pytest.raises(Asked) as asked:
    step(_config(dtype="bfloat16").benchmark, token_lengths()[:12])
  assert asked.value.args == ((kind, towers.MODELS["tiny"], "bfloat16"),)


def test_all_classes_run_in_chunks():
  """Only compiles: running all classes takes seconds."""
  lengths_N = token_lengths()
  measured, _ = towers.shared_step(_config().benchmark, lengths_N)
  assert (measured.k, measured.tokens) == (21_841, 94_447 + 17)
  # A layer's [T, 4 D] alone would take 92 MiB in one piece.
  assert measured.peak_mib < 400


@pytest.mark.slow("25 s: three steps over 21,841 classes and more")
def test_whole_steps_at_several_numbers_of_classes_and_with_a_bank(tmp_path, capsys):
  steps = {"k": "", "steps": "16/21841+16/65523", "bank_steps": "16/21841/24"}
  rows = benchmark.run(_config(**steps), str(tmp_path))["rows"]
  fields = ("implementation", "k", "n_classes", "renew")
  assert [tuple(row[field] for field in fields) for row in rows] == [
    ("train_step", 16, 21_841, None),
    ("train_step", 16, 65_523, None),
    ("train_step", 16, 21_841, 24),
  ]
  # Nothing of the size of N is copied: a table of all token ids alone would take 2.3
  # MiB more.
  assert abs(rows[1]["peak_mib"] - rows[0]["peak_mib"]) < 0.1
  assert [row["bank_mib"] for row in rows[:2]] == [0.0, 0.0]
  # 15 negatives beside the images of a group, of 94,447 tokens of 21,841 names; SOS and
  # 16 vectors.
  n_rows = towers._GROUP + 15
  assert {row["rows_at_a_time"] for row in rows} == {n_rows}
  assert {row["tokens"] for row in rows} == {17 + round(n_rows * 94_447 / 21_841)}
  assert rows[2]["bank_mib"] == pytest.approx(21_841 * 32 * 4 / 2**20)
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


def test_figures_are_medians_of_rounds_between_two_products(monkeypatch, capsys):
  """Of two steps in three rounds, by a clock that is known; no fourth round starts
  after 300 s."""
  seconds = {
    # A product, the step, a product.
    "first": [(1, 2, 3), (2, 5, 2), (4, 3, 4)],
    "second": [(1, 8, 1), (1, 4, 3), (2, 6, 2)],
  }
  read = iter(
    time for pair in zip(*seconds.values(), strict=True) for one in pair for time in one
  )
  monkeypatch.setattr(
    measurement.timeit, "timeit", lambda call, number: (call(), next(read))[1]
  )
  monkeypatch.setattr(measurement, "_large_product", lambda dtype: (lambda: None, 1e10))
  now = iter((100.0, 250.0, 399.0, 401.0))
  monkeypatch.setattr(measurement.time, "monotonic", lambda: next(now))
  monkeypatch.setattr(measurement, "steps_of", lambda steps, *_: steps)
  calls = {name: [] for name in seconds}
  sizes = {
    "first": ("shared", 8, 20, 50, 8, 6e9, 3.0),
    "second": ("reference", 8, 20, 99, 4, 1e9, 6.0),
  }
  steps = [(Measurement(*sizes[name]), calls[name].append) for name in seconds]
  rows = measurement.measure_in_turn(steps, "float32", repeats=9)
  # The products' rate: 2 of 1e10 FLOPs in the seconds of both.
  for row, (name, rounds) in zip(rows, seconds.items(), strict=True):
    flops = sizes[name][5]
    rates = [2e10 / (before + after) for before, _, after in rounds]
    assert row["seconds"] == statistics.median(own for _, own, _ in rounds)
    assert row["matmul_gflops"] == pytest.approx(statistics.median(rates) / 1e9)
    shares = [
      flops / own / rate for (_, own, _), rate in zip(rounds, rates, strict=True)
    ]
    assert row["share_of_matmul_rate"] == pytest.approx(statistics.median(shares))
    assert (row["rounds"], row["renew"], row["bank_mib"]) == (3, None, 0.0)
    fields = ("implementation", "k", "n_classes", "tokens", "rows_at_a_time")
    assert tuple(row[field] for field in fields) == sizes[name][:5]
    assert row["peak_mib"] == sizes[name][6]
    assert calls[name] == [True, False, False, False]
  header, *lines, last = capsys.readouterr().out.splitlines()
  assert header.split()[:5] == ["implementation", "K", "N", "tokens", "seconds"]
  assert [line.split() for line in lines] == [
    [
      "shared",
      "8",
      "20",
      "50",
      "3.000",
      "375.00",
      "60.0%",
      "3",
      "1.00",
      "1.00",
      "-",
      "0",
    ],
    [
      "reference",
      "8",
      "20",
      "99",
      "6.000",
      "750.00",
      "3.3%",
      "6",
      "2.00",
      "2.00",
      "-",
      "0",
    ],
  ]
  assert last == "large matrix product: 5 GFLOP/s"


def test_the_plot_has_seconds_and_peaks_by_k(tmp_path, drawn):
  """Without whole steps."""
  rows = [
    {
      "implementation": name,
      "k": k,
      "n_classes": 20,
      "seconds": k / 4,
      "peak_mib": 3.0 * k,
    }
    for name in ("shared", "reference", "train_step")
    for k in (8, 4)
  ]
  measurement.plot(tmp_path / "plot.png", rows)
  points = lambda axes: {
    line.get_label(): line.get_xydata().tolist() for line in axes.lines
  }
  assert [points(axes) for axes in drawn[0].axes] == [
    {"shared prefix, packed names": values, "HuggingFace Flax, 77 tokens": values}
    for values in ([[4, 1], [8, 2]], [[4, 12], [8, 24]])
  ]


def test_the_flops_of_a_layer():
  """Q, K, V, the output, and an MLP of 4 D: 12 D^2 multiplications and additions a
  token, twice."""
  config = towers.MODELS["tiny"]
  width, n_layers = config.hidden_size, config.num_hidden_layers
  forward = 2 * (4 * width * width + 2 * width * 4 * width)
  assert towers.dense_flops(config, 7) == 7 * n_layers * 2 * forward


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
  with pytest.raises(
    ConfigError, match=re.escape(f"config.benchmark.{field}: got {value!r}")
  ):
    validate(config := _config(**{field: value}))
    benchmark.check(config, str(tmp_path))


def test_towers_that_cannot_be_had_are_skipped(monkeypatch):
  """The reference where transformers has no FlaxCLIP, as from 5 on."""
  monkeypatch.setattr(benchmark, "has_flax_clip", lambda: False)
  assert benchmark._available(["shared", "reference"]) == ["shared"]
