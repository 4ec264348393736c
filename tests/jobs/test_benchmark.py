"""The benchmark of the text tower, at toy sizes."""

import json
import subprocess
import sys

from ml_collections import ConfigDict
import pytest

from pomp_jax.jobs import benchmark


def _config(**changes):
  return ConfigDict({"benchmark": benchmark.DEFAULTS | {"model": "tiny", "repeats": 2} | changes})


def test_rows_of_all_implementations(tmp_path, capsys):
  config = _config(k="16+40", rows_at_a_time=24, m=4)
  results = benchmark.run(config, str(tmp_path))
  assert results == json.loads((tmp_path / "results.json").read_text())
  assert (tmp_path / "plots" / "text_tower.png").is_file()
  rows = {(row["implementation"], row["k"]): row for row in results["rows"]}
  assert set(rows) == {(name, k) for name in ("shared", "reference", "torch_77") for k in (16, 40)}
  for (name, k), row in rows.items():
    assert row["seconds"] > 0 and row["share_of_matmul_rate"] > 0 and row["matmul_gflops"] > 0
    assert row["rounds"] == 2
    if name == "shared":
      assert 3 * k + 5 <= row["tokens"] <= 14 * k + 5
    else:
      assert row["tokens"] == 77 * k
  assert rows["reference", 40]["peak_mib"] > 8 * rows["shared", 40]["peak_mib"]
  assert "time / ours" in capsys.readouterr().out


def test_all_classes_run_in_chunks(tmp_path):
  config = _config(k="21841", implementations="shared", chunk=4096)
  (row,) = benchmark.run(config, str(tmp_path))["rows"]
  assert row["k"] == 21_841
  assert row["tokens"] == 94_447 + 17
  # A layer's [T, 4 D] alone would take 92 MiB in one piece.
  assert row["peak_mib"] < 400


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model": "vit_h"}, "unknown model 'vit_h'"),
    ({"implementations": "shared+theirs"}, "unknown implementation 'theirs'"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"k": "128+30000"}, "k = 30000 is not between 1 and the number of classes, 21841"),
  ],
)
def test_refuses_what_cannot_run(changes, message, tmp_path):
  with pytest.raises(benchmark.BenchmarkError, match=message):
    benchmark.check(_config(**changes), str(tmp_path))


def test_runs_where_torch_and_transformers_are_missing(tmp_path):
  code = (
    "import sys\n"
    "for name in ('torch', 'transformers', 'ml_collections', 'absl', 'matplotlib', 'optax'):\n"
    "  sys.modules[name] = None\n"
    "import importlib.util\n"
    "find = importlib.util.find_spec\n"
    "gone = ('torch', 'transformers')\n"
    "importlib.util.find_spec = lambda name, *rest: None if name in gone else find(name, *rest)\n"
    "from pomp_jax.jobs import benchmark\n"
    f"sys.argv = ['benchmark', '--workdir={tmp_path}', '--model=tiny', '--k=16', '--repeats=1']\n"
    "benchmark.main()\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "torch_77: skipped, transformers, torch not installed" in done.stdout
  (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
  assert row["implementation"] == "shared"
