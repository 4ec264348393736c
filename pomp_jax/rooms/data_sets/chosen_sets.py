"""Opens the sets of an evaluation that the config names, published and a user's own."""

from pomp_jax.config.fields import Evaluate
from pomp_jax.evaluate.evaluation_sets import EvaluationSet, OfSplit
from pomp_jax.rooms.data_sets import own_sets
from pomp_jax.rooms.data_sets.fields import Sets
from pomp_jax.rooms.data_sets.named_sets import named_sets


def evaluation_sets(
  evaluate: Evaluate, source: str, of_split: OfSplit
) -> list[EvaluationSet]:
  """Returns the named sets, and after them a user's own.

  Args:
    evaluate: fields of the evaluation.
    source: `data.source`, whose splits `named_sets` may name.
    of_split: function that opens a split of that source.

  Raises:
    ConfigError: an unknown name of a set, or no folder for it.
    SourceError: an unusable file of sets.
  """
  settings = evaluate.of(Sets)
  sets = named_sets(evaluate, source, of_split)
  return sets + own_sets.evaluation_sets(settings.sets_file, settings.own_sets)


def facts(evaluate: Evaluate) -> dict[str, str]:
  """Returns what `results.json` says of the choice of the sets."""
  return {"suite": evaluate.of(Sets).suite}
