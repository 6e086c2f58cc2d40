"""Which part of the classifier trains: --tune, --freeze_blocks and the flags of LoRA."""

from flag_errors import of_flag

from keras_deit.training import freeze_blocks, train_only

TUNE = ("all", "attention", "bias", "head", "lora")
LORA_RANK, LORA_TARGETS = 8, ("qkv",)


def check_tuning(options):
    """Refuses flags that contradict each other, before anything is read."""
    if options.tune != "lora":
        for name in ("lora_rank", "lora_targets"):
            if getattr(options, name) is not None:
                _refuse(name, options, "needs --tune lora", f"--tune {options.tune}")
    if options.freeze_blocks and options.tune in ("head", "lora"):
        _refuse(
            "freeze_blocks",
            options,
            "needs blocks that train: use --tune all, attention or bias",
            f"--tune {options.tune}",
        )
    if options.layer_decay is not None and options.tune == "head":
        _refuse("layer_decay", options, "needs blocks that train", "--tune head")
    if not options.load_weights:
        for name, default in (("tune", "all"), ("freeze_blocks", 0)):
            if getattr(options, name) != default:
                _refuse(
                    name, options, "keeps trained weights, so it needs some", "--noload_weights"
                )
    if options.ema_momentum == 1.0:
        _refuse("ema_momentum", options, "must be below 1, or the average never changes", "1.0")
    if options.ema_warmup and not options.ema:
        _refuse("ema_warmup", options, "needs the moving average", "--noema")


def _refuse(name, options, problem, received):
    raise ValueError(f"--{name} {getattr(options, name)}: it {problem}. Received: {received}")


def choose_trainable(options, classifier):
    """Freezes what --tune and --freeze_blocks leave out."""
    if options.tune == "lora":
        targets = LORA_TARGETS if options.lora_targets is None else options.lora_targets
        with of_flag("lora_targets", ",".join(targets)):
            classifier.enable_lora(options.lora_rank or LORA_RANK, targets)
    else:
        train_only(classifier, options.tune)
    if options.freeze_blocks:
        with of_flag("freeze_blocks", options.freeze_blocks):
            freeze_blocks(classifier, options.freeze_blocks)
        num_layers = classifier.backbone.num_layers
        if options.layer_decay is not None and options.freeze_blocks == num_layers:
            _refuse(
                "layer_decay",
                options,
                "needs blocks that train",
                f"--freeze_blocks {options.freeze_blocks} of a model with {num_layers} blocks",
            )
