"""Exchanges files with other programs: CoOp, Detic, open_clip, CLIP_benchmark, LaTeX.

The job `export`, the loading of prompts, reports and the log call this room through the
rows of `registry.FORMATS` and `TRACKERS` and through `hooks.py`. The room also uploads
to the hub and to wandb. Start with `safetensors_prompts.py`, the shortest of the
formats.
"""
