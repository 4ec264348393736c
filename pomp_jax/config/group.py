"""A group of fields of the config, and the fields that rooms add to one."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple, TypeVar

from flax.traverse_util import unflatten_dict

from pomp_jax.config.rows import typed

Kind = TypeVar("Kind", bound="Group")


class Extension(NamedTuple):
  """Fields that a room adds to a group of the core."""

  prefix: str  # of their names, such as `kdpl`; "" if they stand among the group's own
  fields: "Group"

  def dotted_prefix(self, prefix: str) -> str:
    """Start of the fields' dotted names, in a group whose names have this prefix."""
    return f"{self.prefix}." if self.prefix else prefix


@dataclasses.dataclass(frozen=True)
class Group:
  """Fields that belong together: a frozen dataclass of rows, and of groups.

  A dotted name is the one that a user types: `optim.lr`, of the field `lr` in the group
  `optim`.
  """

  extensions: tuple[Extension, ...] = dataclasses.field(default=(), kw_only=True)

  def check(self) -> None:
    """Raises ConfigError for fields of this group that don't fit together."""

  def check_in(self, config: Any) -> None:
    """Raises ConfigError for fields of a room that don't fit a job's config."""

  def unread(self) -> tuple[str, ...]:
    """Returns dotted names of a room's fields without an effect at present."""
    return ()

  def of(self, kind: type[Kind]) -> Kind:
    """Returns the fields that a room adds to this group, or else their defaults."""
    for extension in self.extensions:
      if isinstance(extension.fields, kind):
        return extension.fields
    return kind()

  def having(self: Kind, fields: "Group") -> Kind:
    """Returns a copy with other values of fields that a room adds."""
    prefix = ""
    others = []
    for extension in self.extensions:
      if type(extension.fields) is type(fields):
        prefix = extension.prefix
      else:
        others.append(extension)
    return dataclasses.replace(self, extensions=(*others, Extension(prefix, fields)))

  def only(self, kind: type[Kind]) -> Kind:
    """Returns the fields of a base class alone, with all extensions."""
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
    """What rooms add to this group, and to the groups in it."""
    added = [extension.fields for extension in self.extensions]
    for group in self.groups().values():
      added += group.all_extensions()
    return added

  def flat(self, prefix: str = "") -> dict[str, Any]:
    """Returns the value of each field by its dotted name.

    Fields of groups in this group, and those that rooms add, are among them.

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
      ConfigError: a value of another type.
    """
    changes: dict[str, Any] = {}
    for name, row in own_rows(type(self)).items():
      field = f"{prefix}{name}"
      if field in values:
        value = values[field]
        # Such as "true" for a text, where the field is a flag as well.
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
  """The rows of a group by name, without those of groups in it."""
  rows = {}
  for field in dataclasses.fields(kind):
    if "help" in field.metadata:
      rows[field.name] = field
  return rows
