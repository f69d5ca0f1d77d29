"""Gradient-regulated meta-prompt learning (paper §3.3): regulator, inner step, meta-training,
few-shot tuning.
"""
