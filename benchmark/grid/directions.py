"""The direction in which a metric is better (`overpaint.metrics.metric.Metric.direction`)."""

BETTER = {"up": "higher is better", "down": "lower is better", "zero": "nearer to 0 is better"}
