"""open_clip backbones: loading, tokenising, feature extraction, and where soft tokens enter a
tower.
"""
