"""Texts as a data set: excerpts of word pieces that the texts themselves give."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.splits import FIFTH, held_out, ranks
from fastssl.train.data.unread import note_left_out
from fastssl.train.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: The first word pieces of every vocabulary, BERT's.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))

#: Word pieces of a vocabulary, at most.
PIECES = 4000

#: Tokens of an excerpt, [CLS] and [SEP] among them.
LENGTH = 64

#: Tokens that the rest of a text must have to be an excerpt.
LEAST = 8

#: The longest topics of the Python documentation, which are classes.
TOPICS = 10


def pydoc() -> Data:
    """The texts that ``help()`` of Python shows on its topics, some 80 in 460,000 letters.

    Classes are the ten longest topics, the longest first; excerpts of the others have the label -1.
    Many topics repeat parts of longer ones: a paragraph counts for the longest topic that has it.
    Word pieces are learned from all texts, test excerpts included. Texts differ a little between
    versions of Python.
    """
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: (-len(topics[name]), name))
    texts = dict(zip(names, _once(topics[name] for name in names), strict=True))
    classes = tuple(sorted(names, key=lambda name: -len(texts[name]))[:TOPICS])
    others = [text for name, text in texts.items() if name not in classes]
    return _excerpts("pydoc", classes, [*([texts[name]] for name in classes), others])


def text(path: Path) -> Data:
    """A UTF-8 file, or the .txt files in a folder and everything below it, as a data set.

    Classes are the folders directly in `path`, in the order of their names, if there are two or
    more with texts and none lies beside them; otherwise the data has no classes. A paragraph that
    occurs again is left out, so that nothing is trained on that is tested. Texts are cut into
    excerpts of 62 tokens between [CLS] and [SEP]; every fifth of a class, in the order of paths, is
    for testing. Excerpts of different classes take turns, so that the first few of a split are of
    all. Word pieces are learned from all texts, those for testing too, which are cut by them. Files
    that are not UTF-8 are left out and reported; hidden ones are not looked at.

    Args:
        path: of the file or folder.

    Raises:
        UsageError: no such file or folder, or too little text.
    """
    if not path.exists():
        raise UsageError(f"data: {path} is not a file or folder")
    files = _by_class(path) if path.is_dir() else {"": [path]}
    unread: list[str] = []
    read = {kind: _read(of, unread) for kind, of in files.items()}
    note_left_out(unread)
    read = {kind: texts for kind, texts in read.items() if any(map(str.strip, texts))}
    if not read:
        raise UsageError(f"data: {path} has no text")
    kept = iter(_once(text for texts in read.values() for text in texts))
    groups = [[next(kept) for _ in texts] for texts in read.values()]
    classes = tuple(read) if len(read) > 1 else ()
    return replace(_excerpts(path.resolve().stem, classes, groups), left_out=len(unread))


def tokenizer_of(texts: Iterable[str]) -> "Tokenizer":
    """Learns at most `PIECES` word pieces: pairs of bytes, the most frequent joined first.

    Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016, over bytes
    as by Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, but without
    capitals, as in BERT's uncased models, and with one space for any. The same texts give the same
    pieces. Bytes that they do not have are unknown to it.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def vocabulary_of(tokenizer: "Tokenizer") -> tuple[str, ...]:
    """Its word pieces in the order of their ids."""
    return tuple(tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))


def pad(pieces: Sequence[Sequence[int]], length: int) -> Tensor:
    """Rows of [CLS], at most length - 2 of the ids, [SEP] and [PAD]: int64 [N, length]."""
    rows = torch.full((len(pieces), length), PAD)
    for row, ids in zip(rows, pieces, strict=True):
        ids = [CLS, *ids[: length - 2], SEP]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def decode(ids: Tensor, vocabulary: Sequence[str]) -> str:
    """The text of token ids [L]; without [PAD], [CLS] and [SEP]."""
    from tokenizers.decoders import ByteLevel

    shown = [vocabulary[i] for i in ids.tolist() if i not in (PAD, CLS, SEP)]
    return ByteLevel().decode(shown).strip()


def _by_class(path: Path) -> dict[str, list[Path]]:
    files, found = [], {}
    for file in sorted(path.rglob("*.txt")):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith(".") for part in parts):
            files.append(file)
            found.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    return {"": files} if "" in found or len(found) < 2 else dict(sorted(found.items()))


def _read(files: list[Path], unread: list[str]) -> list[str]:
    texts = []
    for file in files:
        try:
            texts.append(file.read_text("utf-8-sig"))
        except UnicodeDecodeError as error:
            unread.append(f"{file} (not UTF-8 at byte {error.start})")
        except OSError as error:
            unread.append(f"{file} ({error.strerror})")
    return texts


def _once(texts: Iterable[str]) -> list[str]:
    """The texts without paragraphs that an earlier text, or an earlier part, has."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
        new = []
        for paragraph in paragraphs:
            if paragraph not in seen:
                seen.add(paragraph)
                new.append(paragraph)
        kept.append("\n".join(new))
    return kept


def _excerpts(name: str, classes: tuple[str, ...], groups: list[list[str]]) -> Data:
    """Texts of each class, and of no class after them, as a data set."""
    tokenizer = tokenizer_of(text for group in groups for text in group)
    held = LENGTH - 2
    pieces: list[list[int]] = []
    kinds: list[int] = []
    for kind, group in enumerate(groups):
        for encoded in tokenizer.encode_batch(group):
            ids = encoded.ids
            cut = [ids[i : i + held] for i in range(0, len(ids), held)]
            pieces += [part for part in cut if len(part) >= LEAST]
            kinds += [kind] * (len(pieces) - len(kinds))
    labels = torch.tensor(kinds, dtype=torch.int64)
    order = ranks(labels).argsort(stable=True)
    testing = held_out(labels)[order]
    rows, labels = pad(pieces, LENGTH)[order], labels[order]
    labels[labels >= len(classes)] = -1
    splits = [Split(rows[chosen], labels[chosen]) for chosen in (~testing, testing)]
    if not all(map(len, splits)):
        raise UsageError(
            f"data: {name} has {len(splits[0])} excerpts of {LENGTH} tokens to train on and "
            f"{len(splits[1])} to test on, there must be some of each; every {FIFTH}th is for "
            f"testing"
        )
    return Data(name, classes, *splits, vocabulary_of(tokenizer))
