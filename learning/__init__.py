"""The mathematics and the trainer, without Ray: advantages, objectives, packing, DeepSpeed."""
