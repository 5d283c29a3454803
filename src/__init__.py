"""Training and evaluation of BabyLM models."""

import os

# All progress bars, also those of libraries, vanish when they end and fit the window. tqdm reads
# these variables when it is imported.
os.environ.setdefault("TQDM_LEAVE", "")
os.environ.setdefault("TQDM_DYNAMIC_NCOLS", "1")
