"""A group of fields of the config, and the fields that rooms add to a group."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple, TypeVar

from flax.traverse_util import unflatten_dict

from pomp_jax.config.rows import typed

Kind = TypeVar("Kind", bound="Group")


class Extension(NamedTuple):
  """Fields that a room adds to a group of the core."""

  # Prefix of the fields' names, such as `kdpl`; "" if they have the group's own prefix.
  prefix: str
  fields: "Group"

  def dotted_prefix(self, prefix: str) -> str:
    """Start of the fields' dotted names; `prefix` is that of the group's own fields."""
    return f"{self.prefix}." if self.prefix else prefix


@dataclasses.dataclass(frozen=True)
class Group:
  """Fields that belong together: a frozen dataclass of rows, and of groups.

  A user types the dotted name of a field: `optim.lr` is the field `lr` of the group
  `optim`.
  """

  extensions: tuple[Extension, ...] = dataclasses.field(default=(), kw_only=True)

  def check(self) -> None:
    """Raises ConfigError for fields of this group that don't fit together."""

  def check_in(self, config: Any) -> None:
    """Raises ConfigError for fields of a room that don't fit a job's config."""

  def unread(self) -> tuple[str, ...]:
    """Returns dotted names of a room's fields that have no effect at present values."""
    return ()

  def of(self, kind: type[Kind]) -> Kind:
    """Returns the fields of class `kind` that a room adds, or else the defaults."""
    for extension in self.extensions:
      if isinstance(extension.fields, kind):
        return extension.fields
    return kind()

  def having(self: Kind, fields: "Group") -> Kind:
    """Returns a copy in which `fields` replace a room's fields of the same class."""
    prefix = ""
    others = []
    for extension in self.extensions:
      if type(extension.fields) is type(fields):
        prefix = extension.prefix
      else:
        others.append(extension)
    return dataclasses.replace(self, extensions=(*others, Extension(prefix, fields)))

  def only(self, kind: type[Kind]) -> Kind:
    """Returns the fields of the base class `kind` alone, with all extensions."""
    rows = {name: getattr(self, name) for name in own_rows(kind)}
    return kind(**rows, extensions=self.extensions)

  def groups(self) -> dict[str, "Group"]:
    """The groups among the fields, by name."""
    groups = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, Group):
        groups[field.name] = value
    return groups

  def all_extensions(self) -> list["Group"]:
    """The fields that rooms add to this group and to the groups in it."""
    added = [extension.fields for extension in self.extensions]
    for group in self.groups().values():
      added += group.all_extensions()
    return added

  def flat(self, prefix: str = "") -> dict[str, Any]:
    """Returns the value of each field by its dotted name.

    Includes fields of the groups in this group, and fields that rooms add.

    Args:
      prefix: start of this group's dotted names, such as `optim.`; "" for a job's
        config.
    """
    values = {}
    for name in own_rows(type(self)):
      values[f"{prefix}{name}"] = getattr(self, name)
    for name, group in self.groups().items():
      values |= group.flat(f"{prefix}{name}.")
    for extension in self.extensions:
      values |= extension.fields.flat(extension.dotted_prefix(prefix))
    return values

  def to_dict(self) -> dict[str, Any]:
    """Nested dict of plain values, for config.json, checkpoints and prompt files."""
    nested: dict[str, Any] = unflatten_dict(self.flat(), sep=".")
    return nested

  def changed(self: Kind, values: Mapping[str, Any], prefix: str = "") -> Kind:
    """Returns a copy with other values.

    Args:
      values: value by dotted name; names of other groups are ignored.
      prefix: start of this group's dotted names, such as `optim.`; "" for a job's
        config.

    Raises:
      ConfigError: a value does not have the field's type.
    """
    changes: dict[str, Any] = {}
    for name, row in own_rows(type(self)).items():
      field = f"{prefix}{name}"
      if field in values:
        value = values[field]
        # A field of texts may be a flag as well: "true" then stands for one of them.
        value = row.metadata["spellings"].get(str(value).lower(), value)
        changes[name] = typed(field, row.type, value)
    for name, group in self.groups().items():
      changes[name] = group.changed(values, f"{prefix}{name}.")
    extensions = []
    for extension in self.extensions:
      fields = extension.fields.changed(values, extension.dotted_prefix(prefix))
      extensions.append(extension._replace(fields=fields))
    changes["extensions"] = tuple(extensions)
    return dataclasses.replace(self, **changes)


def own_rows(kind: type[Group]) -> dict[str, dataclasses.Field]:
  """The rows of a group by name, without the rows of groups in it."""
  rows = {}
  for field in dataclasses.fields(kind):
    if "help" in field.metadata:
      rows[field.name] = field
  return rows
