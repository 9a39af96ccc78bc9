import pytest
import torch
from train_extras import missing

# On a machine without them, such as one that is there for its GPU, other tests shall still run.
MISSING = missing()


class Skipped(pytest.Module):
    """A file that is not imported."""

    def collect(self):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny networks gain nothing from threads, and on a busy machine wait for each other."""
    # Only libraries that are loaded can be limited: t-SNE's among them.
    import sklearn.manifold  # noqa: F401
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)
