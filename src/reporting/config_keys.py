"""Keys of a configuration that do not affect what a run trains."""

#: Keys on where and how a run is executed, watched and evaluated, which do not affect what it trains.
EXECUTION_KEYS = (
    *("name", "resume", "from_run", "branch_from", "at", "task", "study", "check", "evaluation"),
    *("logger", "profiler", "samples", "safety", "trusted_targets"),
    *("data.path", "data.cache", "data.cache_gib", "data.workers", "data.micro_batch_size", "data.val_sets"),
    *("data.accept_changed",),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.restarts", "trainer.strategy"),
    *("trainer.shard_within_node", "trainer.checkpoint_activations", "trainer.threads", "trainer.compile"),
    *("trainer.onednn", "trainer.max_time", "trainer.log_every_steps", "trainer.val_every_steps"),
    *("trainer.checkpoint_every_steps", "trainer.keep_steps", "trainer.stream_pictures"),
    *("trainer.peak_flops", "trainer.detect_anomaly"),
)


def is_within(key: str, sections: tuple[str, ...] | list[str]) -> bool:
    """Return true if a dotted key is one of `sections` or inside one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)
