"""Stage 1, Inputs: compares counts and digests of sets and weights with the record."""

from collections.abc import Mapping, Sequence
import itertools
import re
from typing import Any, NamedTuple

from pomp_jax.rooms.reproduce.digests import differing
from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.rows import FAIL, INPUTS, Row, compared, not_run
from pomp_jax.rooms.reproduce.targets import COUNTS_SOURCE

_WEIGHTS = "weights"
_RECORD = "record"
_NO_RECORD = "no packaged digest yet; reproduce.recorded_by=NAME writes one"
_EXACT = "a digest: equal or not"
# `Finding.shared` of several sets with another number of images.
OTHER_COUNT = "sets have another number of images"


class Inputs(NamedTuple):
  """Rows and findings of the stage."""

  rows: list[Row]
  findings: list[Finding]


def digest_row(
  subject: str, quantity: str, expected: str | None, got: str, why: str = _EXACT
) -> Row:
  """Compares a digest with the record's; the row is not run if the record has none.

  Args:
    subject: the set.
    quantity: what the digest covers.
    expected: digest of the record; None if there is none.
    got: digest that was found.
    why: `Row.why` of the comparison.
  """
  if expected is None:
    return not_run(INPUTS, subject, quantity, _NO_RECORD)
  return compared(
    INPUTS, subject, quantity, expected[:12], got[:12], why=why, source=_RECORD
  )


def clip_inputs(
  got: Mapping[str, Any], record: Mapping[str, Any], dtype: str, expected_dtype: str
) -> Inputs:
  """Compares weights, preprocessing and precision of the CLIP with the record.

  Args:
    got: result of `digests.digests_of_clip`.
    record: the packaged record's part on the CLIP; empty if there is none.
    dtype: type of the computation.
    expected_dtype: type that the targets were computed in.
  """
  rows: list[Row] = []
  findings: list[Finding] = []
  why = "the targets were computed so"
  rows.append(compared(INPUTS, _WEIGHTS, "precision", expected_dtype, dtype, why=why))
  if rows[-1].status == FAIL:
    text = f"the features are computed in {dtype}, the target's in {expected_dtype}"
    findings.append(finding(INPUTS, "precision", _WEIGHTS, text))
  if not record:
    rows.append(not_run(INPUTS, _WEIGHTS, "arrays", _NO_RECORD))
    return Inputs(rows, findings)
  for quantity in ("mean", "std", "resize", "filter"):
    expected_text = str(record[quantity])
    got_text = str(got[quantity])
    row = compared(
      INPUTS, "preprocessing", quantity, expected_text, got_text, source=_RECORD
    )
    rows.append(row._replace(why="a setting beside the weights"))
    if rows[-1].status == FAIL:
      text = _preprocessing_sentence(quantity, expected_text, got_text)
      findings.append(finding(INPUTS, "preprocessing", "all sets", text))
  expected = dict(record["arrays"])
  found = dict(got["arrays"])
  # The logit scale has a row of its own.
  expected_scale = expected.pop("logit_scale", None)
  found_scale = found.pop("logit_scale", None)
  row = compared(
    INPUTS,
    _WEIGHTS,
    "logit scale",
    f"{record['logit_scale']:g}",
    f"{got['logit_scale']:g}",
    source=_RECORD,
    why="one number of the weights",
  )
  rows.append(row)
  if row.status == FAIL or expected_scale != found_scale:
    text = f"the logit scale is {row.got}, and {row.expected} in the record"
    findings.append(finding(INPUTS, "logit scale", _WEIGHTS, text))
  names = differing(expected, found)
  right = f"{len(expected)} arrays as recorded"
  shown = right if not names else f"{len(names)} of {len(expected)} arrays differ"
  rows.append(
    compared(INPUTS, _WEIGHTS, "arrays", right, shown, why=_EXACT, source=_RECORD)
  )
  if names:
    text = _weights_sentence(names, len(expected), got["zero"], record["zero"])
    findings.append(finding(INPUTS, "weights", _WEIGHTS, text))
  return Inputs(rows, findings)


def _preprocessing_sentence(quantity: str, expected: str, got: str) -> str:
  match quantity:
    case "filter":
      return f"images are resized by a {got} filter, the target's by a {expected} one"
    case "resize":
      return f"images are {got}, the target's {expected}"
  text = f"pixels are normalised with {quantity} {got}, the target's with {expected}"
  if got in ("[0.0, 0.0, 0.0]", "[1.0, 1.0, 1.0]"):
    text += ": they are not normalised"
  return text


def _weights_sentence(
  names: Sequence[str], n_arrays: int, zero: Sequence[str], zero_before: Sequence[str]
) -> str:
  zeroed = [name for name in names if name in zero and name not in zero_before]
  if zeroed:
    place = _common_place(zeroed)
    return f"{len(zeroed)} arrays are all zeros, of {place}: a damaged file"
  if len(names) > 0.9 * n_arrays:
    return f"{len(names)} of {n_arrays} arrays differ: the weights are of another CLIP"
  return f"{len(names)} of {n_arrays} arrays differ, of {_common_place(names)}"


def _common_place(names: Sequence[str]) -> str:
  """The deepest part of the parameter tree that holds all these arrays."""
  parts = [name.split("/") for name in names]
  common: list[str] = []
  for level in zip(*parts, strict=False):
    if len(set(level)) > 1:
      break
    common.append(level[0])
  return "/".join(common) or "several parts"


def set_inputs(
  name: str,
  got: Mapping[str, Any],
  record: Mapping[str, Any],
  count: int | None,
  overlap: int | None,
) -> Inputs:
  """Compares counts and digests of a set with the record.

  Args:
    name: name of the set.
    got: result of `digests.digests_of_set`.
    record: the packaged record's part on the set; empty if there is none.
    count: published number of test images; None if not published.
    overlap: number of test images that are training images, byte for byte; None if no
      training images were compared.
  """
  rows: list[Row] = []
  findings: list[Finding] = []
  expected_count = record.get("images", count)
  if expected_count is not None:
    source = _RECORD if record else COUNTS_SOURCE
    row = compared(
      INPUTS,
      name,
      "images",
      float(expected_count),
      float(got["images"]),
      rule="within",
      tolerance=0.0,
      why="a count",
      source=source,
    )
    rows.append(row)
  if overlap is not None:
    row = compared(INPUTS, name, "test images in training", 0.0, float(overlap))
    rows.append(row._replace(why="a training image is no test"))
    if overlap:
      text = (
        f"{overlap} of {got['images']} test images are training images, byte for byte"
      )
      findings.append(finding(INPUTS, "leak", name, text))
  for quantity, key in (
    ("class names as embedded", "names"),
    ("pairs (image id, label)", "pairs"),
    ("content of images", "content"),
  ):
    rows.append(digest_row(name, quantity, record.get(key), got[key]))
  expected = " | ".join(record["templates"]) if record else None
  templates = " | ".join(got["templates"])
  if expected is None:
    rows.append(not_run(INPUTS, name, "templates", _NO_RECORD))
  else:
    row = compared(INPUTS, name, "templates", expected, templates, source=_RECORD)
    rows.append(row._replace(why="texts: equal or not"))
  bad = {row.quantity for row in rows if row.status == FAIL}
  if "templates" in bad:
    # The first pair that differs; "" where one of them has fewer templates.
    pairs = itertools.zip_longest(record["templates"], got["templates"], fillvalue="")
    expected_template, template = next((a, b) for a, b in pairs if a != b)
    text = f"a template is {template!r}, the target's {expected_template!r}"
    findings.append(finding(INPUTS, "templates", name, text))
  if bad - {"templates", "test images in training"} and not findings:
    findings.append(_cause(name, got, record, expected_count, bad))
  return Inputs(rows, findings)


def _cause(
  name: str,
  got: Mapping[str, Any],
  record: Mapping[str, Any],
  count: int | None,
  bad: set[str],
) -> Finding:
  """The most specific cause of a set's failed rows."""
  if not record:
    text = f"{got['images']:,} images, and {count:,} are published"
    return finding(INPUTS, "split", name, text, OTHER_COUNT)
  kind, text = _cause_of_lists(got, record, bad)
  return finding(INPUTS, kind, name, text)


def _cause_of_lists(
  got: Mapping[str, Any], record: Mapping[str, Any], bad: set[str]
) -> tuple[str, str]:
  """Kind and sentence of the most specific cause, by a set's lists and the record's."""
  same_ids = got["ids"] == record["ids"]
  # A digest of the image ids of each class.
  ours, theirs = list(got["class_ids"]), list(record["class_ids"])
  if got["classes"] < record["classes"]:
    lost = record["classes"] - got["classes"]
    names = _missing_names(got, record)
    return "split", f"{lost} of {record['classes']} classes are missing{names}"
  if got["classes"] > record["classes"]:
    return "split", f"{got['classes']} classes, and {record['classes']} in the record"
  if "pairs (image id, label)" in bad:
    if same_ids:
      return "labels", _relabelled(ours, theirs, got, record)
    missing = record["images"] - got["images"]
    if missing > 0:
      share = 100 * missing / record["images"]
      return (
        "split",
        f"{missing} of {record['images']} test images are missing ({share:.1f}%)",
      )
    shared = len(set(ours) & set(theirs))
    if missing == 0 and not shared:
      return "images", "the image ids are those of another set"
    return "split", f"{-missing} more images than in the record, or other ones"
  if "class names as embedded" in bad:
    return "names", _renamed(got, record)
  return "images", "the ids are right, but the files behind them are other images"


def _missing_names(got: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """Some of the class names that are missing, as the end of a sentence."""
  lost = sorted({*record.get("name_list", ())} - {*got.get("name_list", ())})
  return f": {', '.join(lost[:3])}" if lost else ""


def _relabelled(
  ours: list[str],
  theirs: list[str],
  got: Mapping[str, Any],
  record: Mapping[str, Any],
) -> str:
  """Describes how the same images have other labels.

  Args:
    ours: digest of the image ids of each of our classes.
    theirs: digest of the image ids of each class in the record.
    got: result of `digests.digests_of_set`.
    record: the packaged record's part on the set.
  """
  n = len(theirs)
  for shift in (1, -1):
    if all(ours[(label + shift) % n] == theirs[label] for label in range(n)):
      return f"each label is {abs(shift)} too {'high' if shift > 0 else 'low'}, modulo the classes"
  moved = [label for label in range(n) if ours[label] != theirs[label]]
  if len(moved) == 2 and sorted(ours) == sorted(theirs):
    names = record.get("name_list", [])
    pair = " and ".join(names[label] for label in moved) if names else str(moved)
    return f"two classes are swapped: {pair}"
  if sorted(ours) == sorted(theirs):
    return f"{len(moved)} of {n} classes have the images of another class: reordered"
  changed = sum(
    abs(a - b) for a, b in zip(got["class_images"], record["class_images"], strict=True)
  )
  return (
    f"single images of {len(moved)} of {n} classes have another label: random labels"
    f" (the sizes of classes change by {changed} in all)"
  )


_ARTICLE = re.compile(r"^(an?|the) ")


def _renamed(got: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """Describes how the class names differ from the record's."""
  ours, theirs = got.get("name_list", []), record.get("name_list", [])
  changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
  example = f"such as {changed[0][0]!r} for {changed[0][1]!r}"
  for label, change in (
    ("underscores for spaces", lambda text: text.replace("_", " ")),
    ("an article in front", lambda text: _ARTICLE.sub("", text)),
    ("other capitals", str.lower),
  ):
    if all(change(a) == change(b) for a, b in changed):
      return f"{len(changed)} names have {label}, {example}"
  if sorted(ours) == sorted(theirs):
    swapped = "two classes are swapped" if len(changed) == 2 else "names are reordered"
    return f"{swapped}, {example}"
  return f"{len(changed)} of {len(theirs)} names differ, {example}"
