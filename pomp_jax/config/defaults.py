"""The base config: every field there is, and its default."""

from ml_collections import ConfigDict

from pomp_jax.config.accepted import WORLD
from pomp_jax.data.suites import NO_SUITE


def base() -> ConfigDict:
  """The defaults; locked, so that no field can be added by a typo."""
  config = ConfigDict()
  config.job = "pretrain"  # what to run, one of JOBS
  config.dry_run = False  # measure the run on made-up data, and say what it will take
  config.method = "pomp"  # what is learned, one of METHODS; the rest are baselines
  config.seed = 0  # of the context's first value, the draws, and the order of the images

  # The frozen CLIP.
  config.clip = ConfigDict()
  config.clip.model = WORLD  # "world", or a folder, file or hub id: see docs/weights.md
  config.clip.activation = "auto"  # of its MLPs: quick_gelu, gelu; auto: as the checkpoint has it
  config.clip.text_tower = "shared"  # shared (names packed, no padding) or reference (the oracle)
  config.clip.dtype = "float32"  # exact; faster on accelerators: tensorfloat32, then bfloat16
  config.clip.keep = "auto"  # for the backward pass: activations, layers, chunks; auto: what fits
  config.clip.n_chunks = 0  # parts that a step's classes are computed in; 0: as many as it takes
  config.clip.memory_gib = 4.0  # of activations on a device, for the automatic choices
  config.clip.chunk = 1024  # classes or images at a time when features of many are needed
  config.clip.images_at_a_time = 64  # in a device's memory together, training or not; 0: no limit

  # Images and their classes.
  config.data = ConfigDict()
  config.data.source = WORLD  # or stored images: folder, coop, tfds, made_up; see docs/data.md
  config.data.root = ""  # where they are: a folder a class, CoOp's $DATA, or TFDS's data_dir
  config.data.dataset = ""  # for coop a class list's name, for tfds that or TFDS's own
  config.data.names = ""  # a class list or a file of names; those of the data set if empty
  config.data.shots = 0  # stored images a class for training; 0: all
  config.data.shots_seed = 1  # of the few-shot subset; CoOp's are 1, 2 and 3
  config.data.classes = "all"  # CoOp's halves: base, the first, and new, the others
  config.data.base = ""  # a class list or a file of names: the classes to train on
  config.data.novel = ""  # likewise, for the evaluation beside base; empty: all others
  config.data.test_share = 0.2  # of a folder without test images: held out of each class's,
  config.data.validation_share = 0.1  # and likewise without validation images
  config.data.cache = ""  # a folder for the labels of TFDS sets, so that they are read once
  config.data.images_per_class = 16  # of the world, and of made-up data
  config.data.n_classes = 0  # so many of the source's classes, spread over its list; 0: all
  config.data.augment = "none"  # none (as test images), crop_flip, or recipe (and RandAugment2)
  config.data.views = 1  # V of each image in an epoch, from one decode; batch_size counts views
  config.data.augment_seed = 0
  config.data.crop_area = 0.08  # least share of an image's area that a random crop shows
  config.data.fresh_epochs = 0  # after so many epochs the same views come again; 0: never
  config.data.features = "online"  # or cached: the images', as config.job="cache" computed them
  config.data.feature_cache = ""  # the folder of the cached features
  config.data.threads = 2  # that render or decode ahead of the step, in each worker
  config.data.workers = 0  # processes that decode, for machines of many cores; 0: threads alone
  config.data.max_corrupt = 0.001  # share of the images that may be unreadable: others stand in

  # The prompt.
  config.prompt = ConfigDict()
  config.prompt.m = 4  # M, context vectors
  config.prompt.position = "end"  # where the name stands; end, middle or front of the prompt
  config.prompt.init = (
    ""  # words that it starts from; maple fixes those beyond M; empty: N(0, 0.02^2)
  )
  config.prompt.class_specific = False  # one context a class
  config.prompt.depth = 1  # layers that have prompts of their own: of vpt_deep and maple
  config.prompt.visual = 8  # tokens among an image's own, of vpt_shallow and vpt_deep

  # The baselines that learn on image features.
  config.probe = ConfigDict()
  config.probe.iterations = 1000  # of L-BFGS for each strength of the penalty
  config.tip = ConfigDict()
  config.tip.views = 10  # augmented views of an image, whose mean feature is its key
  # Where 0: as published for data.dataset; for ImageNet, where nothing is published for it.
  config.tip.epochs = 0  # in which tip_adapter_f learns the keys
  config.tip.alpha = 0.0  # weight of the cache there
  config.tip.alpha_max = 0.0  # alpha is searched for from 0.1 to this, ...
  config.tip.beta_max = 0.0  # and so is beta
  config.tip.beta = 1.0  # sharpness while the keys are learned
  config.tip.alphas = 20  # steps of the searches
  config.tip.betas = 200

  # Local contrast and local correction.
  config.negatives = "sampled"  # sampled: K of them; all: the exact contrast over N, k is not read
  config.k = 1000  # K, classes that an image is contrasted with, its own included; N is all
  config.correction = "log"  # log (unbiased), log10 (as published), none, refined, logq
  config.sampling = ConfigDict()  # see docs/sampling.md
  config.sampling.name = "uniform"  # uniform, hard, easy, hierarchical, frequency
  config.sampling.mix = 0.5  # share of the uniform draw in the others, above 0
  config.sampling.temperature = 0.05  # of hard and easy, in units of the cosine
  config.sampling.anchors = "classes"  # near which hard draws: the images' classes, or the images
  config.sampling.refresh_every = 50  # steps, after which the bank of class features is made anew
  config.sampling.power = 0.5  # of the class counts, for frequency
  config.sampling.exclude = "none"  # never an image's negatives: similar to its class, or kin of it
  config.sampling.exclude_threshold = 0.95  # the cosine above which classes are similar
  config.sampling.batch_positives = False  # the other images' classes as negatives too
  config.sampling.ancestors_weight = 0.0  # of a loss over kinds of classes beside the classes'

  # Training.
  config.batch_size = 256  # images a step, over all devices
  config.accumulate = 1  # draws that a data index computes one after the other
  config.epochs = 5
  config.steps = 0  # steps of the whole run; 0: `epochs` times the images, by the batch size
  config.on_bad_loss = "stop"  # or roll_back: to the last checkpoint, and on with other draws
  config.loss_spike = 0.0  # a loss so many times the usual one is bad; 0: only what is not finite
  config.max_roll_backs = 3  # of a run; then it stops
  config.optim = ConfigDict()
  config.optim.lr = 0.002
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "epoch"  # the published cosine, by epochs; step: every step, down to 0
  config.optim.warmup = 1.0  # epochs at warmup_lr; any fraction under the step schedule
  config.optim.warmup_lr = 1e-5

  # Devices.
  config.mesh = ConfigDict()
  config.mesh.class_size = 1  # devices that split one draw's classes; the rest split the images

  # Evaluation, over all classes of a split.
  config.eval = ConfigDict()
  config.eval.images = 2048  # of each split; 0: all, of stored images
  config.eval.cache = ""  # a folder for class features by prompt, CLIP and names; none: in memory
  config.eval.template = "a photo of a {}."  # the hand-written prompt beside the learned one

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 100  # steps; each is validated
  config.checkpoint.keep = 3  # the newest few, and the best by validation beside them
  config.checkpoint.on_failure = "stop"  # at a save that fails; or retry: on, and again at the next
  config.log = ConfigDict()
  config.log.every = 10  # steps
  config.profile_steps = ""  # "20+30": the first and the last step of a profile in the run's folder
  config.watch = ConfigDict()  # metrics for Prometheus, from process 0; see docs/watching.md
  config.watch.port = 0  # where it answers; 0: nowhere
  config.watch.host = "127.0.0.1"  # the address there; another opens it to the network

  # job = "evaluate": prompts over a suite of data sets.
  config.evaluate = ConfigDict()
  config.evaluate.suite = NO_SUITE  # of data.suites.SUITES; none: the sets below, or config.data's
  config.evaluate.sets = ""  # named sets or suites, separated by ";"; empty: all of the suite
  config.evaluate.reader = "coop"  # coop (its layout), tfds (prepared), folder (one a class)
  config.evaluate.root = ""  # where they lie: CoOp's $DATA, TFDS's data_dir, the folder of folders
  config.evaluate.sets_file = ""  # a TOML file of one's own sets; see docs/evaluation.md
  config.evaluate.own_sets = ()  # or the same as dicts, in a config file
  config.evaluate.skip_missing = False  # evaluate the other sets where some can't be opened
  # Separated by ";": prompt files, runs' folders (for all their checkpoints), texts with a {},
  # hand_written (the set's own text), ensemble (CLIP's texts for it), ensemble:imagenet_7.
  config.evaluate.prompts = "hand_written"
  config.evaluate.images = 0  # of each set, its classes evenly; 0: all, of the world eval.images
  config.evaluate.batch_size = 512  # images at a time, over all devices

  # job = "analyse": what prompts do to class features, on the sets that `evaluate` names.
  config.analyse = ConfigDict()
  config.analyse.prompts = "hand_written"  # as evaluate.prompts
  config.analyse.top = 5  # nearest tokens of each learned vector

  # job = "predict": names for a folder of images.
  config.predict = ConfigDict()
  config.predict.prompt = ""  # a prompt.npz, or a template with {} for the name
  config.predict.images = ""  # a folder
  config.predict.names = ""  # a class list such as imagenet1k, or a file: one name a line, or JSON
  config.predict.top = 5

  # job = "export": the prompt, or features of names under it, for other programs.
  config.export = ConfigDict()
  config.export.prompt = ""  # a prompt file; for features also a template with {} for the name
  config.export.format = "npz"  # npz, safetensors, pth; features of names: detic, open_clip
  config.export.names = ""  # for features: a text file, one name a line, or COCO or LVIS JSON
  config.export.synonyms = False  # average over the synonyms that an LVIS JSON has
  config.export.output = ""  # file name within the run's folder; empty: a usual one

  # job = "prepare": images as distributed, made into a TFDS data set; see docs/data.md.
  config.prepare = ConfigDict()
  config.prepare.dataset = ""  # imagenet21k, fgvc_aircraft, coop_stanford_cars, coop_ucf101, ..
  config.prepare.input = ""  # the archive, or the folder, that it is made of
  config.prepare.names = ""  # for imagenet21k: a class list with synsets; all of its own if empty
  config.prepare.shots = 0  # training images a class to store; 0: all
  config.prepare.shots_seed = 1  # of the choice
  config.prepare.held_out = 0  # images a class for the split "validation" of an undivided input
  config.prepare.workers = 2  # processes

  # job = "baselines": methods side by side, each over the seeds of `repeat`.
  config.baselines = ConfigDict()
  config.baselines.methods = ""  # label:field=value,field=value, separated by ";"

  # job = "repeat": the pretrain job once for each seed.
  config.repeat = ConfigDict()
  config.repeat.seeds = (0, 1, 2)

  # job = "ablate": the pretrain job for every combination of values; docs/ablations.md.
  config.ablate = ConfigDict()
  config.ablate.grid = ""  # such as "k=16|64|all;correction=log|none;seed=0|1|2"
  config.ablate.lanes = 0  # cells that one program trains together, at most; 0: what memory takes
  config.ablate.part = ""  # "2/5": this run takes the second of five parts; all if empty

  # job = "gradient_bias": the sampled gradient against the exact one.
  config.gradient_bias = ConfigDict()
  config.gradient_bias.prompt = ""  # a prompt file; empty: N(0, 0.02^2), as a training starts
  config.gradient_bias.k = (16, 64, 256, 1024, 4096)
  config.gradient_bias.samplers = "uniform;hard;easy;hierarchical"  # the first: by correction too
  config.gradient_bias.corrections = "log;log10;none;logq"  # the first: for all samplers
  config.gradient_bias.images = 64
  config.gradient_bias.rows = 20_000  # classes computed for a cell, over all its draws

  return config.lock()
