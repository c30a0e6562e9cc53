"""What a run says about itself: reduced metrics, their files, throughput and memory."""

from polaris_jax.metrics.writer import Mean, MetricsWriter, read_metrics, value_of

__all__ = ["Mean", "MetricsWriter", "read_metrics", "value_of"]
