"""Files and services of other programs: CoOp, Detic, open_clip, HuggingFace's hub, wandb."""
