"""Lists the sets of an evaluation that the config names, published and a user's own."""

from pomp_jax.config.fields import Evaluate
from pomp_jax.evaluate.sets_to_evaluate import EvaluationSet, OfSplit
from pomp_jax.rooms.data_sets import own_sets
from pomp_jax.rooms.data_sets.fields import Sets
from pomp_jax.rooms.data_sets.published_sets import published_sets


def sets_to_evaluate(
  evaluate: Evaluate, source: str, of_split: OfSplit
) -> list[EvaluationSet]:
  """Lists the sets of an evaluation: published ones by name, then a user's own.

  No image is opened yet.

  Args:
    evaluate: fields of the evaluation.
    source: `data.source`; the splits of a generated source are named sets too.
    of_split: function that opens a split of `source`.

  Raises:
    ConfigError: the name of a set is unknown, or the set has no folder.
    SourceError: the file of sets is unusable.
  """
  fields = evaluate.of(Sets)
  published = published_sets(evaluate, source, of_split)
  users = own_sets.sets_of_user(fields.sets_file, fields.own_sets)
  return [*published, *users]


def facts(evaluate: Evaluate) -> dict[str, str]:
  """Returns the members of `results.json` that say how the sets were chosen."""
  return {"suite": evaluate.of(Sets).suite}
