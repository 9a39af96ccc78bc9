from importlib.util import find_spec

import pytest
import torch

# On a machine that has no extras, such as one lent for its GPU, other tests shall still be found.
if any(find_spec(name) is None for name in ("lightning_fabric", "sklearn", "typer")):
    collect_ignore_glob = ["test_*.py", "methods/test_*.py"]


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
