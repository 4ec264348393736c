"""What fields take, where no other module has the list."""

JOBS = (
  "pretrain",
  "cache",
  "evaluate",
  "predict",
  "repeat",
  "benchmark",
  "export",
  "prepare",
  "analyse",
  "baselines",
  "ablate",
  "gradient_bias",
)
WORLD = "world"
MADE_UP_DATA = "made_up"
SOURCES = (WORLD, "folder", "coop", "tfds", MADE_UP_DATA)
MADE_UP_CLIP = "made_up:"  # in front of the name of a published architecture
FEATURES = ("online", "cached")

# What is learned: by gradient steps on the contrast of images and classes, or on image features.
# CoOp is pomp with negatives = "all".
STEP_METHODS = ("pomp", "cocoop", "vpt_shallow", "vpt_deep", "maple")
FEATURE_METHODS = ("zero_shot", "linear_probe", "tip_adapter", "tip_adapter_f")
# Of these, the ones that learn tokens of the image tower: they need pixels, not features.
PIXEL_METHODS = ("vpt_shallow", "vpt_deep", "maple")
METHODS = STEP_METHODS + FEATURE_METHODS

# Of a CLIP's weights: no hub id ends so.
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".msgpack")

# What `export` writes, and the suffixes that the file may have; first the usual one.
EXPORT_FORMATS = {
  "npz": (".npz",),
  "safetensors": (".safetensors",),
  "pth": (".pth.tar", ".pth", ".pt"),
  "detic": (".npy",),
  "open_clip": (".npy", ".safetensors"),
}
# Of these, the ones that hold features of names, not the prompt.
FEATURE_FORMATS = ("detic", "open_clip")
