"""Without a GPU, FLA's kernels run in Triton's interpreter; Triton looks for
that when it is imported."""

import importlib.util
import os


def pytest_configure(config):
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
