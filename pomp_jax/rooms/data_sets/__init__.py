"""Published data sets: their images in the layouts of CoOp and TFDS, and the job
prepare."""
