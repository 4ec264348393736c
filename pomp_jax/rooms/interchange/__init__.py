"""Files and services of other programs: CoOp, Detic, open_clip, CLIP_benchmark, the
hub, wandb."""
