"""What a run is told: the dataclass from which keywords, flags, checks and config.json follow."""

import dataclasses
import difflib
import re
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastssl.train.data import ANY_SIZE, CHOICES
from fastssl.train.errors import UsageError
from fastssl.train.vit import SIZES

#: Of Fabric's names those that the trainers are tested with.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def option(
    default, help: str, *, least=None, above=None, below=None, choices: tuple[str, ...] = ()
):
    """A field of a configuration, with its help text and the values it may take."""
    metadata = {"help": help, "least": least, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Config:
    """Keywords common to all methods; a method's own configuration adds to them.

    Every field is a keyword of `fastssl.train.pretrain` and a flag of `fastssl train METHOD`. A
    method may declare a field again, with another default or other choices.

    Attributes:
        WIDTHS: the width of each choice of `backbone` where none is given.

    Raises:
        UsageError: a value has the wrong type or is out of range; the message names the argument.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"small": 16, "resnet18": 64, "resnet50": 64} | {
        name: size.width for name, size in SIZES.items()
    }

    data: str = option("digits", "What to train on.", choices=CHOICES)
    root: Path | None = option(None, "Folder that holds cifar-10-batches-py or cifar-100-python.")
    limit: int | None = option(None, "Use only the first N images of each split.", least=1)
    image_size: int = option(
        32, "Side to which the images of folder, wds and captions are brought.", least=1
    )
    out: Path | None = option(None, "Folder to write to, by default out/METHOD-DATA.")
    epochs: int = option(40, "Passes over the training images.", least=1)
    batch_size: int = option(128, "Images per step, over all processes.", least=2)
    lr: float = option(2e-3, "Peak learning rate of AdamW.", above=0)
    weight_decay: float = option(1e-4, "Weight decay of AdamW; none on biases and norms.", least=0)
    warmup: float = option(0.1, "Share of all steps in which the rate rises to its peak.", least=0)
    backbone: str = option("small", "Encoder.", choices=(*WIDTHS, "timm:NAME", "torchvision:NAME"))
    width: int | None = option(
        None,
        "Channels of the first stage, or size of the tokens; by default its own.",
        least=1,
    )
    stem: str = option(
        "auto",
        "First layers of a ResNet, by the images' side.",
        choices=("auto", "cifar", "imagenet"),
    )
    precision: str = option("32-true", "Arithmetic, as Fabric names it.", choices=PRECISIONS)
    accelerator: str = option("auto", "Where to run.", choices=("auto", "cpu", "cuda", "mps"))
    devices: int = option(
        1, "Processes, one device each; under torchrun as many as it started.", least=1
    )
    workers: int = option(
        2, "Processes that read images that are not in memory, for each device.", least=0
    )
    cuda_graph: bool = option(
        False, "Record a whole step as a CUDA graph and replay it: for small batches on a GPU."
    )
    seed: int = option(0, "Fixes initial weights, order of images and views.", least=0)
    online: int = option(
        5, "Epochs between two looks at the features during training; 0 for none.", least=0
    )
    evaluate: bool = option(True, "Measure and draw the features afterwards.")
    resume: bool = option(False, "Continue the run in the out folder from its last checkpoint.")
    overwrite: bool = option(False, "Replace the run in the out folder.")
    config: Path | None = option(
        None, "YAML file of these keywords; those given beside it count more."
    )
    dry_run: bool = option(False, "Say what would be done, and do nothing.")

    def __post_init__(self):
        types_by_name = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _coerce(field.name, getattr(self, field.name), types_by_name[field.name])
            setattr(self, field.name, value)
            if value is not None:
                _check(field.name, value, **field.metadata)
        if self.width is None:
            self.width = self.WIDTHS.get(self.backbone)
        if self.image_size != 32 and self.data.partition(":")[0] not in ANY_SIZE:
            raise UsageError(
                f"image_size: got {self.image_size}, images of {self.data} are as large as they are"
            )
        if self.warmup >= 1:
            raise UsageError(f"warmup: got {self.warmup}, must be below 1")
        if self.resume and self.overwrite:
            raise UsageError("overwrite: cannot be combined with resume")
        if self.batch_size % self.devices:
            raise UsageError(
                f"batch_size: got {self.batch_size}, must be a multiple of devices ({self.devices})"
            )

        if self.cuda_graph and self.devices > 1:
            raise UsageError(f"cuda_graph: cannot be combined with devices ({self.devices})")
        if self.cuda_graph and self.precision == "16-mixed":
            raise UsageError(
                "cuda_graph: cannot be combined with precision='16-mixed', whose scale the host "
                "decides from step to step"
            )

    @classmethod
    def from_keywords(cls, keywords: dict, method: str | None = None) -> "Config":
        """Builds a configuration from keywords and from the file that `config` among them names.

        Args:
            keywords: fields by name.
            method: what the configuration is for; a file may name it, and no other.

        Raises:
            UsageError: a keyword is unknown, with a suggestion where it may be misspelt, or the
                file cannot be read.
        """
        if keywords.get("config") is not None:
            keywords = _read_yaml(Path(keywords["config"]), method) | keywords
        names = [field.name for field in dataclasses.fields(cls)]
        for name in keywords:
            if name not in names:
                near = difflib.get_close_matches(str(name).replace("-", "_"), names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
                raise UsageError(f"{name}: no such argument{hint}")
        return cls(**keywords)

    @property
    def data_name(self) -> str:
        """The name of the data set for folders: of a file or folder its name, of shards theirs."""
        kind, _, place = self.data.partition(":")
        path = Path(place).resolve()
        name = path.parent.name if kind == "wds" else path.stem if path.is_file() else path.name
        name = name if place else kind
        return re.sub(r"[^\w.-]+", "-", name).strip("-") or kind

    def as_json(self) -> dict:
        """All keywords as values that JSON can hold."""
        values = dataclasses.asdict(self)
        # What the file said is among the others.
        del values["config"]
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def _read_yaml(path: Path, method: str | None) -> dict:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"config: {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config: {path} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"config: {path} holds {type(values).__name__}, must be keys and values")
    named = values.pop("method", method)
    if method is not None and named != method:
        raise UsageError(f"config: {path} is for {named}, not for {method}")
    return values


def _coerce(name: str, value, expected):
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if value is None and type(None) in options:
        return None
    wanted = options[0]
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and type(value) is int:
        return float(value)
    # YAML takes 1e-3 for a word; it wants 1.0e-3.
    if wanted is float and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    # bool is an int to Python, never to a caller.
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise UsageError(f"{name}: got {value!r}, must be {wanted.__name__}")
    return value


def _check(name: str, value, *, help: str, least, above, below, choices) -> None:
    # "folder:PATH" stands for every value that begins with "folder:".
    prefixes = tuple(c[: c.index(":") + 1] for c in choices if c.rpartition(":")[2].isupper())
    chosen = value in choices or (prefixes and value.startswith(prefixes))
    if choices and not chosen or value in prefixes:
        near = difflib.get_close_matches(value, choices, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"{name}: got {value!r}, must be one of {', '.join(choices)}{hint}")
    # Negated comparisons, so that NaN fails too.
    if least is not None and not value >= least:
        raise UsageError(f"{name}: got {value}, must be at least {least}")
    if above is not None and not value > above:
        raise UsageError(f"{name}: got {value}, must be above {above}")
    if below is not None and not value < below:
        raise UsageError(f"{name}: got {value}, must be below {below}")
