"""Where caption–URL tables come from. Whatever the source, the result is one `captions.parquet`."""
