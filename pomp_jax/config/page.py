"""The table of fields as text: `--help`, and docs/config.md.

python -m pomp_jax.config.page > docs/config.md
"""

from collections.abc import Iterator
import dataclasses

from pomp_jax.config.fields import Settings
from pomp_jax.config.registry import JOBS
from pomp_jax.config.rows import OLD_NAMES, name_of_type


def page() -> str:
  """docs/config.md."""
  lines = [
    "# Fields of the config",
    "",
    "Generated from `pomp_jax/config/fields.py` by `python -m pomp_jax.config.page`. A file in",
    "`configs/` sets fields, and `--config.FIELD=VALUE` overrides any.",
  ]
  for name, group in _groups():
    lines += ["", f"## {name or 'The run'}", "", group.__doc__.partition("\n")[0], ""]
    lines += ["| field | default | what | accepted |", "| --- | --- | --- | --- |"]
    lines += [
      f"| `{field}` | `{row.default!r}` | {_cell(row.metadata['help'])} |"
      f" {_cell(row.metadata['check'].expected or name_of_type(row.type))} |"
      for field, row in _rows(name, group)
    ]
  lines += ["", "## Jobs", "", "| `config.job` | what |", "| --- | --- |"]
  lines += [f"| `{name}` | {job.help} |" for name, job in JOBS.items()]
  lines += ["", "## Renamed fields", "", "| before | now |", "| --- | --- |"]
  lines += [f"| `{old}` | `{new}` |" for old, new in OLD_NAMES.items()]
  return "\n".join(lines) + "\n"


def help_text() -> str:
  """One line per field, for `--help`."""
  return "\n".join(
    f"  --config.{field}={row.default!r}: {row.metadata['help']}"
    for name, group in _groups()
    for field, row in _rows(name, group)
  )


def _groups() -> Iterator[tuple[str, type]]:
  yield "", Settings
  for field in dataclasses.fields(Settings):
    if dataclasses.is_dataclass(field.type):
      yield field.name, field.type


def _rows(name: str, group: type) -> Iterator[tuple[str, dataclasses.Field]]:
  for field in dataclasses.fields(group):
    if "help" in field.metadata:
      yield f"{name}.{field.name}".lstrip("."), field


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


if __name__ == "__main__":
  print(page(), end="")
