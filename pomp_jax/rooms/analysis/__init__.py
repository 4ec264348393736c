"""Analyses of finished prompts: geometry, errors on WordNet, bias of the gradient.

The jobs `analyse` and `gradient_bias` run the analyses. Evaluations add figures by
class through `hooks.BY_CLASS`. Start with `analyse`; `bias` holds the pure computation.
"""
