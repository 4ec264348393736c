"""docs/gallery.md as data: the commands of each section, and the files that it lists."""

import fnmatch
import pathlib
import re
import shlex

PATH = pathlib.Path(__file__).parent.parent.parent / "docs" / "gallery.md"


def sections() -> dict[str, str]:
  """Text of each section by its title; "" is what comes before the first."""
  title, *parts = re.split(r"^## (.+)$", PATH.read_text(), flags=re.MULTILINE)
  return {"": title} | dict(zip(parts[::2], parts[1::2], strict=True))


def commands(text: str) -> list[str]:
  """The command lines of its bash blocks, continued lines joined."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  joined = "".join(blocks).replace("\\\n", "")
  return [line for line in joined.splitlines() if line]


def job_arguments(text: str) -> list[list[str]]:
  """Arguments of each command that runs a job."""
  start = ["python", "-m", "pomp_jax.main"]
  found = [shlex.split(command, comments=True) for command in commands(text)]
  return [words[3:] for words in found if words[:3] == start]


def listed_files(text: str) -> list[str]:
  """Glob patterns in the first column of its table `| file | content |`; a folder ends in /."""
  table = text.partition("| file | content |\n| --- | --- |\n")[2].partition("\n\n")[0]
  return [name for row in table.splitlines() for name in re.findall("`(.+?)`", row.split("|")[1])]


def problems(text: str, folder: pathlib.Path) -> list[str]:
  """Files below a folder that the table lacks, and entries of the table that fit no file."""
  files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
  missing, fitted = [], set()
  for pattern in listed_files(text):
    fits = {name for name in files if _fits(name, pattern)}
    fitted |= fits
    if not fits:
      missing.append(f"{pattern}: no such file")
  return missing + [f"{name}: not listed" for name in sorted(files - fitted)]


def _fits(name: str, pattern: str) -> bool:
  """Whether a file's path is of a pattern part by part, or lies in a folder of the pattern."""
  names, patterns = name.split("/"), pattern.rstrip("/").split("/")
  if pattern.endswith("/"):
    names = names[: len(patterns)] if len(names) > len(patterns) else []
  return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))
