"""The command line: `python -m fastssl`, or `fastssl`.

`info` is here and needs nothing but fastssl itself; the other commands are in `fastssl.cli`.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator


def main() -> None:
    """Runs the command line with `sys.argv`, and exits."""
    if sys.argv[1:] == ["info"]:
        print_info()
        return
    try:
        from fastssl.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "fastssl":
            raise
        wanted = " ".join(["fastssl", *sys.argv[1:2]])
        print(f"{wanted}: {error}; `fastssl info` works without them", file=sys.stderr)
        sys.exit(2)
    app(prog_name="fastssl")


def print_info() -> None:
    """Prints versions, native libraries, devices, and what runs for each operator."""
    lines = []
    for topic, facts in _topics():
        lines += [topic, *(f"  {name:<12} {value}" for name, value in facts)]
    print("\n".join(lines))


def _topics() -> Iterator[tuple[str, list[tuple[str, object]]]]:
    import torch

    import fastssl
    from fastssl import _dispatch, _library

    ours = [("fastssl", fastssl.__version__), ("python", platform.python_version())]
    yield "versions", [*ours, *((name, _version(name)) for name in ("torch", "numpy", "triton"))]

    yield (
        "native libraries",
        [
            ("cpu", _library.cpu_error and f"not loaded: {_library.cpu_error}" or "loaded"),
            ("cuda", _library.cuda_error and f"not loaded: {_library.cuda_error}" or "loaded"),
        ],
    )
    if _library._C is not None:
        build = _library._C.build_info()
        yield "build", [(name.replace("_", " "), value) for name, value in build.items()]

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield (
        "devices",
        [
            ("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads"),
            ("capability", _library._C.cpu_capability() if _library._C else "not known"),
            ("gpu", ", ".join(gpus) or "none"),
        ],
    )

    for name in _dispatch.operators():
        found = _dispatch.availability(name)
        lines = [
            (f"auto, {device}", found.auto(device)) for device in ("cpu", "cuda")[: 1 + bool(gpus)]
        ]
        lines += [(impl, reason or "runs") for impl, reason in sorted(found.reasons.items())]
        yield f"operator {name}", lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
