"""Meta-training tasks from topics and domains (paper §3.3), in Parquet shards that stream."""
