"""Every argument of every loss of the contrastive family: the error names it."""

import math

import pytest
import torch
from contrast_loss_cases import CASES, LOSSES, inputs_of, numbers_of

import fastssl


def arguments_of(case, n=4, d=3):
    tensors, options = inputs_of(case, n, d)
    return tensors | {k: v.item() for k, v in numbers_of(case, 0.5).items()} | options


def refused(case, error, message, **changes):
    arguments = {k: v for k, v in (arguments_of(case) | changes).items() if v is not ...}
    with pytest.raises(error, match=message):
        case.plain(**arguments)


def named(part, names):
    return [n for n in names if part in n]


GIVEN = [(case, name) for case in CASES if not case.options for name in inputs_of(case, 4, 3)[0]]
GIVEN += [(case, name) for case in LOSSES if case.options for name in inputs_of(case, 4, 3)[0]]


@pytest.mark.parametrize(("case", "name"), GIVEN, ids=str)
def test_rows(case, name):
    z = arguments_of(case)[name]
    refused(case, TypeError, rf"{name}: got list, must be a tensor", **{name: z.tolist()})
    refused(case, TypeError, rf"{name}: got int, must be a tensor", **{name: 3})
    refused(case, TypeError, rf"{name}: got dtype torch.int64, must be float16", **{name: z.long()})
    refused(case, TypeError, rf"{name}: got dtype torch.complex64", **{name: z + 0j})
    refused(case, TypeError, rf"{name}: got layout", **{name: z.to_sparse()})
    refused(
        case, ValueError, rf"{name}: got shape \({z.numel()},\), must be", **{name: z.flatten()}
    )
    refused(case, ValueError, rf"{name}: got shape \(1, 1, ", **{name: z[None, None]})
    refused(case, ValueError, rf"{name}: got ", **{name: z[..., :0]})
    empty = z[:, :0] if z.dim() == 3 else z[:0]
    refused(
        case,
        ValueError,
        rf"{name}: got shape \({empty.shape[0]}, 0|{name}: got shape \(0, 3",
        **{name: empty},
    )  # noqa: E501


@pytest.mark.parametrize(("case", "name"), GIVEN, ids=str)
def test_rows_belong_together(case, name):
    arguments = arguments_of(case)
    first = next(iter(arguments))
    if name == first:
        return
    z = arguments[name]
    refused(
        case, ValueError, rf"{name}: got .*, must be .*3", **{name: torch.ones(*z.shape[:-1], 5)}
    )
    refused(case, ValueError, rf"{name}: got device meta, must be", **{name: z.to("meta")})
    if z.dim() == 2:
        message = rf"{name}: got dtype torch.float64, must be that of {first}"
        refused(case, TypeError, message, **{name: z.double()})
    if name in ("key", "z1", "text_features"):
        message = rf"{name}: got shape \(5, 3\), must be that of {first}, \(4, 3\)"
        refused(case, ValueError, message, **{name: torch.ones(5, 3)})
    elif z.dim() == 3:
        refused(case, ValueError, rf"{name}: got shape \(5, 7, 3\)", **{name: torch.ones(5, 7, 3)})


NUMBERS = [(case, name) for case in LOSSES for name in numbers_of(case, 0.5)]


@pytest.mark.parametrize(("case", "name"), NUMBERS, ids=str)
def test_numbers(case, name):
    def bad(error, message, value):
        refused(case, error, f"{name}: got {message}", **{name: value})

    bad(TypeError, "'a'", "a")
    bad(TypeError, r"\[1", [1.0])
    bad(TypeError, "dtype torch.int64", torch.tensor(1))
    bad(ValueError, r"shape \(2,\)", torch.ones(2))
    if name != "temperature":
        bad(TypeError, "True", True)
        if name == "logit_scale":
            bad(TypeError, "None", None)
        return
    bad(TypeError, "None", None)
    bad(ValueError, r"shape \(1,\), must be 0-d", torch.ones(1))
    for value in (0.0, 9e-9, -9e-9, math.nan):
        bad(ValueError, r".*\|temperature\| must be at least 1e-8", value)
        bad(ValueError, r".*\|temperature\| must be at least 1e-8", torch.tensor(value))
    assert case.plain(**(arguments_of(case) | {name: math.inf})).isfinite()


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_choices(case):
    refused(case, ValueError, "reduction: got 'avg', must be one of", reduction="avg")
    refused(case, ValueError, "reduction: got None", reduction=None)
    refused(case, ValueError, "strategy: got 'tree', must be one of", strategy="tree")
    refused(case, ValueError, "impl: got 'cuda', must be one of", impl="cuda")
    refused(case, TypeError, "normalize: got 'no', must be True or False", normalize="no")
    refused(case, TypeError, "normalize: got None", normalize=None)
    refused(case, TypeError, "normalize: got 1", normalize=1)
    if not torch.cuda.is_available():
        refused(case, RuntimeError, "impl", impl="triton")


@pytest.mark.parametrize("case", [c for c in CASES if c.negatives and not c.options], ids=str)
def test_choices_with_negatives(case):
    refused(case, ValueError, "impl: got 'cuda', must be one of", impl="cuda")
    refused(case, ValueError, "symmetric: is for in-batch negatives", symmetric=True)
    refused(case, ValueError, "labels: is for in-batch negatives", labels=torch.arange(4))


@pytest.mark.parametrize("name", ["labels", "reference_labels"])
@pytest.mark.parametrize("case", [c for c in CASES if c.labels and not c.options], ids=str)
def test_labels(case, name):
    if name not in arguments_of(case):
        return
    labels = arguments_of(case)[name]
    n = len(labels)

    def bad(error, message, value):
        refused(case, error, f"{name}: got {message}", **{name: value})

    bad(TypeError, "list, must be a tensor", labels.tolist())
    bad(TypeError, "dtype torch.float32, must be an integer type", labels.float())
    bad(TypeError, "dtype torch.bool, must be an integer type", labels > 0)
    bad(ValueError, rf"shape \({n - 1},\), must be \({n},\)", labels[1:])
    bad(ValueError, rf"shape \({n}, 1\), must be \({n},\)", labels[:, None])
    bad(ValueError, r"shape \(\)", labels[0])
    bad(ValueError, "device meta, must be cpu", labels.to("meta"))


@pytest.mark.parametrize("name", ["sup_con", "pair_nt_xent"])
def test_references_and_their_labels_come_together(name):
    function = getattr(fastssl, name)
    x, labels = torch.ones(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="reference_labels: references and reference_labels"):
        function(x, labels, references=x)
    with pytest.raises(ValueError, match="references: references and reference_labels"):
        function(x, labels, reference_labels=labels)
    with pytest.raises(TypeError, match="labels: got NoneType"):
        function(x, None)


@pytest.mark.parametrize("margin", ["false_negative_margin", "hard_negative_margin"])
@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_margins(margin, name):
    case = next(c for c in LOSSES if c.name == name)
    for value in ("a", True, torch.ones(()), [0.1]):
        refused(case, TypeError, f"{margin}: got .*, must be a number", **{margin: value})
    refused(case, ValueError, f"{margin}: got nan", **{margin: math.nan})
    assert case.plain(**(arguments_of(case) | {margin: math.inf})).isfinite()


def test_options_of_one_loss():
    by_name = {case.name: case for case in LOSSES}
    refused(by_name["info_nce"], TypeError, "symmetric: got 'yes'", symmetric="yes")
    refused(by_name["info_nce"], TypeError, "negatives: got list", negatives=[[1.0]])
    refused(by_name["sup_con"], ValueError, "form: got 'both', must be one of", form="both")
    for sigma in (0, 0.0, math.nan, "a", None, True, torch.ones(())):
        refused(by_name["dclw"], (TypeError, ValueError), "sigma: got", sigma=sigma)
    dcl = by_name["dcl"]
    refused(dcl, ValueError, r"weights: got shape \(4,\), must be \(8,\)", weights=torch.ones(4))
    refused(dcl, TypeError, "weights: got list, must be a tensor", weights=[1.0] * 8)
    refused(dcl, TypeError, "weights: got dtype torch.complex64", weights=torch.ones(8) + 0j)
    refused(dcl, ValueError, "weights: got device meta", weights=torch.ones(8, device="meta"))
    with pytest.raises(TypeError):
        fastssl.dclw(torch.ones(2, 3), torch.ones(2, 3), weight=1)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_what_is_wrong_under_autocast_is_so_too(case):
    name = next(iter(arguments_of(case)))
    with torch.autocast("cpu", torch.bfloat16):
        test_rows(case, name)
        for other in named("", inputs_of(case, 4, 3)[0])[1:]:
            z = arguments_of(case)[other]
            refused(case, TypeError, rf"{other}: got dtype torch.int64", **{other: z.long()})
