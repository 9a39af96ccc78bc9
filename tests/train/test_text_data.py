import pytest
import torch

from fastssl.train import UsageError, data
from fastssl.train.data.captions import WORDS
from fastssl.train.data.text import (
    CLS,
    LENGTH,
    MASK,
    PAD,
    SEP,
    SPECIAL,
    UNK,
    decode,
    pad,
    tokenizer_of,
    vocabulary_of,
)  # fmt: skip

Image = pytest.importorskip("PIL.Image")


def words(count, start=0):
    """A text whose every word is another, in paragraphs of ten."""
    lines = (" ".join(f"w{i}" for i in range(n, n + 10)) for n in range(start, start + count, 10))
    return "\n\n".join(lines)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def load(path, **keywords):
    return data.load(f"text:{path}", **keywords)


def rows(split):
    return {tuple(row) for row in split.inputs.tolist()}


def same(one, two):
    pairs = ((one.train, two.train), (one.test, two.test))
    return one.vocabulary == two.vocabulary and all(
        torch.equal(a.inputs, b.inputs) for a, b in pairs
    )


@pytest.fixture(scope="module")
def pydoc():
    return data.load("pydoc")


def test_the_python_documentation(pydoc):
    assert pydoc.kind == "texts" and pydoc.vocabulary[: len(SPECIAL)] == SPECIAL
    assert 1000 < len(pydoc.vocabulary) <= 4000
    assert len(pydoc.classes) == 10 and {"specialnames", "compound"} <= set(pydoc.classes)
    for split in (pydoc.train, pydoc.test):
        assert split.inputs.dtype == torch.int64 and split.inputs.shape[1] == LENGTH
        assert split.labels.unique().tolist() == list(range(-1, 10))
        assert split.inputs.min() >= 0 and split.inputs.max() < len(pydoc.vocabulary)
        assert (split.inputs[:, 0] == CLS).all()
        assert ((split.inputs == SEP).sum(1) == 1).all() and not (split.inputs == MASK).any()
        end = (split.inputs == SEP).int().argmax(1, keepdim=True)
        assert torch.equal(split.inputs == PAD, torch.arange(LENGTH) > end)
    assert (pydoc.train.labels + 1).bincount().min() >= 10
    # The first few are of all.
    assert len(pydoc.first(11).train.labels.unique()) == 11


def test_no_test_excerpt_is_trained_on(pydoc):
    """Topics repeat parts of each other, at other places of their excerpts."""
    train = " ".join(decode(row, pydoc.vocabulary) for row in pydoc.train.inputs)
    tests = [decode(row[2:-2], pydoc.vocabulary) for row in pydoc.test.inputs]
    assert not [test for test in tests if test in train]


def test_the_same_texts_give_the_same_word_pieces(tmp_path):
    text = "\n\n".join(f"the cat {i} and the bat {i * i} sat on the mat" for i in range(200))
    write(tmp_path / "a.txt", text)
    assert same(load(tmp_path / "a.txt"), load(tmp_path / "a.txt"))
    made = tokenizer_of([text])
    assert vocabulary_of(made)[:5] == SPECIAL and vocabulary_of(made) == vocabulary_of(
        tokenizer_of([text])
    )
    assert made.encode("cat").ids == made.encode("  CAT ").ids
    assert UNK in made.encode("the cat \u2603").ids


def test_decoding_returns_the_text():
    text = 'Straße, naïve 日本: f(x) = "y"; 10**-3'
    tokenizer = tokenizer_of([text])
    ids = pad([tokenizer.encode(f" {text}\n").ids], LENGTH)[0]
    assert decode(ids, vocabulary_of(tokenizer)) == text.lower()
    assert ids.shape == (LENGTH,) and ids[0] == CLS and ids[-1] == PAD
    cut = pad([list(range(5, 105))], LENGTH)[0].tolist()
    assert cut == [CLS, *range(5, 5 + LENGTH - 2), SEP]


def test_classes_are_the_folders(tmp_path):
    write(tmp_path / "b" / "one.txt", words(300))
    write(tmp_path / "b" / "deep" / "two.txt", words(300, 300))
    write(tmp_path / "a" / "one.txt", words(300, 600))
    write(tmp_path / "a" / ".hidden.txt", words(300, 900))
    write(tmp_path / "c" / "empty.txt", " \n\n ")
    write(tmp_path / "c" / "notes.md", words(300, 900))
    made = load(tmp_path)
    assert made.name == tmp_path.name and made.classes == ("a", "b")
    assert made.train.labels[:4].tolist() == [0, 1, 0, 1]
    assert "w900" not in " ".join(decode(row, made.vocabulary) for row in made.train.inputs)
    write(tmp_path / "beside.txt", words(300, 1200))
    assert load(tmp_path).classes == ()


def test_what_is_said_twice_is_kept_once(tmp_path):
    write(tmp_path / "once" / "a.txt", words(600))
    write(tmp_path / "twice" / "a.txt", words(600))
    write(tmp_path / "twice" / "b.txt", "w590\n\n" + words(600))
    once, twice = load(tmp_path / "once"), load(tmp_path / "twice")
    assert len(once.train) == len(twice.train) and not rows(twice.train) & rows(twice.test)


def test_files_that_are_not_utf8_are_reported_and_left_out(tmp_path, capsys):
    write(tmp_path / "good.txt", words(600))
    (tmp_path / "bad.txt").write_bytes("naïve".encode("latin-1"))
    made = load(tmp_path)
    assert made.left_out == 1 and same(made, load(tmp_path / "good.txt"))
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (
        f"data: left out 1 that cannot be read: {tmp_path / 'bad.txt'} (not UTF-8 at byte 2)"
    )


def test_errors_of_texts_name_what_is_wrong(tmp_path):
    with pytest.raises(UsageError, match="^data: .*none is not a file or folder"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match="^data: .* has no text"):
        load(tmp_path)
    write(tmp_path / "short.txt", words(40))
    with pytest.raises(UsageError, match="^data: short has 2 excerpts of 64 tokens to train .* 0 "):
        load(tmp_path / "short.txt")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits-captions")


def test_digits_have_captions_that_tell_the_class_alone(digits):
    assert digits.kind == "captions" and digits.name == "digits-captions"
    names = [f" {word} " for word in WORDS]
    for split in (digits.train, digits.test):
        without = []
        texts = [f" {decode(row, digits.vocabulary).replace(',', ' ,')} " for row in split.captions]
        for text, label in zip(texts, split.labels.tolist(), strict=True):
            told = [k for k in range(10) if names[k] in text or f" {k} " in text]
            assert told == [label]
            without.append(text.replace(names[label], "#").replace(f" {label} ", "#"))
        # What else a caption says depends on its number alone.
        assert without[:7] == without[7:14] == without[14:21] and len(set(without)) == 7
    assert torch.equal(digits.train.inputs, data.load("digits").train.inputs)


def test_captions_stay_with_their_images_when_few_are_used(digits):
    few = data.load("digits-captions", limit=9)
    assert torch.equal(few.train.captions, digits.train.captions[:9])
    assert torch.equal(few.test.labels, digits.test.labels[:9]) and len(few.test.captions) == 9


def table(tmp_path, lines, header="image,caption"):
    path = tmp_path / "pairs.csv"
    write(path, "\n".join([header, *lines]))
    return path


def images(tmp_path, count):
    (tmp_path / "pictures").mkdir()
    for i in range(count):
        Image.new("RGB", (20 + i, 31), (i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")


def test_a_table_of_captions(tmp_path, capsys):
    images(tmp_path, 10)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no image")
    lines = [f'pictures/{i}.png,"number {i:04b}, red",x' for i in range(10)]
    lines.insert(2, "pictures/bad.png,nothing,x")
    lines += ["./pictures/4.png,again number 0100,x", "pictures/1.png,,x", ",text,x"]
    path = table(tmp_path, lines, "image,caption,licence")
    made = data.load(f"captions:{path}", image_size=16)
    assert made.name == "pairs" and made.classes == () and made.left_out == 3
    assert made.kind == "captions" and made.train.inputs.shape == (8, 3, 16, 16)
    assert made.test.labels.tolist() == [-1] * 3
    for split in (made.train, made.test):
        for image, row in zip(split.inputs, split.captions, strict=True):
            assert f"number {image[0, 8, 8]:04b}" in decode(row, made.vocabulary)
    # Both captions of a test image are for testing.
    assert made.test.inputs[:, 0, 8, 8].tolist() == [4, 9, 4]
    out = capsys.readouterr().out
    assert "left out 3 that cannot be read: pictures/bad.png (no image of" in out
    assert f"{path}, entry 14 (no caption), {path}, entry 15 (no image)" in out


def test_errors_of_tables_name_what_is_wrong(tmp_path):
    def error(path, match):
        with pytest.raises(UsageError, match=match):
            data.load(f"captions:{path}")

    error(tmp_path / "none.csv", "^data: .*none.csv cannot be read: No such file")
    error(table(tmp_path, [], "file,text"), "^data: .* begins with file,text, it must be headed by")
    error(table(tmp_path, [], ""), "^data: .* begins with nothing, it must be headed by image,")
    error(table(tmp_path, ["a.png,one"] * 6), "^data: .* has 0 images that can be read, .* be 5 or")
    (tmp_path / "latin.csv").write_bytes("image,caption\na.png,na\xefve".encode("latin-1"))
    error(tmp_path / "latin.csv", "^data: .* is not UTF-8 at byte")
    long = table(tmp_path, ["a.png," + "x" * 200_000])
    error(long, "^data: .* is not a CSV file: field larger")
