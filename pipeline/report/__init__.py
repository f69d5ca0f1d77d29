"""The result page: tables, topic map, domains side by side, curves."""
