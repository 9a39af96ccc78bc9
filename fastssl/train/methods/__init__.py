"""The methods, one file each; a file placed here is found without being named anywhere."""

from importlib import import_module
from pkgutil import iter_modules

from fastssl.train.errors import UsageError
from fastssl.train.method import Method, registered

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def find(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        UsageError: there is no such method.
    """
    if name not in registered():
        raise UsageError(f"method: got {name!r}, must be one of {', '.join(registered())}")
    return registered()[name]
