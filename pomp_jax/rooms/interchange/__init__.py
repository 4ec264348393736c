"""Files and services of other programs: CoOp, Detic, open_clip, CLIP_benchmark, wandb.

Readers and writers of prompt files are opened by `registry.FORMATS`, the others by
`hooks`. Start with `torch_archive` for published prompts, and with `prompt_hub` for
prompts on HuggingFace's hub.
"""
