"""One thread is fastest for tensors as small as those of these tests."""

import torch

torch.set_num_threads(1)
