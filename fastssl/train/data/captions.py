"""Images with captions: digits in words, and any images that a table describes."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastssl.train.data.digits import digits
from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.pixels import decode
from fastssl.train.data.splits import FIFTH, held_out
from fastssl.train.data.text import LENGTH, pad, tokenizer_of, vocabulary_of
from fastssl.train.data.unread import note_left_out, reason
from fastssl.train.errors import UsageError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: Of captions of digits; what is in braces is the digit as a word or as a figure.
TEMPLATES = (
    "a handwritten {}",
    "the digit {}, small",
    "a grey picture of the number {}",
    "someone wrote a {}",
    "{}, by hand",
    "a scan of the figure {}",
    "the number {} in pencil",
)

#: What a table of captions must be headed by.
HEADER = ("image", "caption")


def digits_captions() -> Data:
    """The handwritten digits with captions such as "a handwritten seven" or "the digit 7, small".

    Templates take turns, and so do words and figures, whatever the image: all that a caption tells
    of an image is its class.
    """
    data = digits()
    texts = [
        [_caption(place, label) for place, label in enumerate(split.labels.tolist())]
        for split in (data.train, data.test)
    ]
    ids, vocabulary = _tokens(*texts)
    train, test = (
        replace(split, captions=rows)
        for split, rows in zip((data.train, data.test), ids, strict=True)
    )
    return replace(data, name="digits-captions", train=train, test=test, vocabulary=vocabulary)


def captions(table: Path, side: int) -> Data:
    """The images of a CSV file, RGB squares, with their captions; without classes.

    Its first line is ``image,caption``; other columns are not looked at. An image is a path,
    relative to the table's folder. One that occurs again, with other captions, stays in its split:
    of every five images one is for testing, with all its captions. Captions keep 62 tokens.

    Lines whose image cannot be read or whose caption is empty are left out and reported.

    Args:
        table: path of the CSV file, UTF-8.
        side: of the images.

    Raises:
        UsageError: no such file, not such a table, or too few images.
    """
    rows = _lines(table)
    images: dict[str, Tensor] = {}
    unread: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    for number, (name, caption) in enumerate(rows, 2):
        if not name or not caption:
            missing = "caption" if name else "image"
            unread[f"{table}, entry {number}"] = f"no {missing}"
            continue
        # However it is written, one image is in one split.
        name = os.path.normpath(name)
        if name not in images and name not in unread:
            try:
                images[name] = decode(table.parent / name, side)
            # A damaged file raises almost anything.
            except Exception as error:
                unread[name] = reason(error)
        if name in images:
            kept.append((name, caption))
    note_left_out([f"{name} ({why})" for name, why in unread.items()])
    testing = held_out(torch.zeros(len(images), dtype=torch.int64)).tolist()
    for_test = {name for name, test in zip(images, testing, strict=True) if test}
    if not for_test:
        raise UsageError(
            f"data: {table} has {len(images)} images that can be read, there must be {FIFTH} or "
            f"more; every {FIFTH}th is for testing"
        )
    parts = [[row for row in kept if (row[0] in for_test) == test] for test in (False, True)]
    ids, vocabulary = _tokens(*([caption for _, caption in part] for part in parts))
    splits = [
        Split(torch.stack([images[name] for name, _ in part]), torch.full((len(part),), -1), tokens)
        for part, tokens in zip(parts, ids, strict=True)
    ]
    name = table.resolve().stem
    return Data(name, (), *splits, vocabulary=vocabulary, left_out=len(unread))


def _caption(place: int, label: int) -> str:
    word = (str(label), WORDS[label])[place // len(TEMPLATES) % 2]
    return TEMPLATES[place % len(TEMPLATES)].format(word)


def _tokens(train: list[str], test: list[str]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Token ids of both splits, int64 [N, L], and the word pieces, which the first one gives."""
    tokenizer = tokenizer_of(train)
    pieces = [[encoded.ids for encoded in tokenizer.encode_batch(texts)] for texts in (train, test)]
    longest = min(LENGTH, 2 + max(len(ids) for of in pieces for ids in of))
    return [pad(of, longest) for of in pieces], vocabulary_of(tokenizer)


def _lines(table: Path) -> list[tuple[str, str]]:
    """The image and the caption of each line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            if any(name not in header for name in HEADER):
                got = ",".join(header) or "nothing"
                raise UsageError(
                    f"data: {table} begins with {got}, it must be headed by {','.join(HEADER)}"
                )
            return [tuple((line[name] or "").strip() for name in HEADER) for line in reader]
    except UnicodeDecodeError as error:
        raise UsageError(f"data: {table} is not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise UsageError(f"data: {table} is not a CSV file: {error}") from error
    except OSError as error:
        raise UsageError(f"data: {table} cannot be read: {error.strerror}") from error
