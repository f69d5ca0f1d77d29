"""The demo's outside world: websites and datasets drawn from openly licensed pictures.

Only the `draw` stage looks in here. Everything after it meets a caption table with URLs and folders
of class pictures, exactly as it would meet a user's own.
"""
