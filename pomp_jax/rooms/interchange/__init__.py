"""Exchanges files with other programs: CoOp, Detic, open_clip, CLIP_benchmark, LaTeX.

The job `export`, prompts by name, reports and the log call it through the rows of
`registry.FORMATS` and `TRACKERS` and through `hooks.py`; it also uploads to the hub and
to wandb. Start with `safetensors_prompts.py`, the shortest of the formats.
"""
