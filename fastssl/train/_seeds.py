"""Seeds for torch's generators."""

import numpy as np


def derived(*key: int) -> int:
    """A seed that is a function of several numbers, such as a run's seed and the epoch."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
