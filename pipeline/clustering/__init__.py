"""Cross-modal hierarchical clustering (paper §3.2): sentences → topics → topic words → visual
domains.
"""
