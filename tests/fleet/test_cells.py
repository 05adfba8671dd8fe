"""Cells, and the store that keeps what is finished."""

import errno
import io
import json

import pytest
from pack.fleet import store as stores
from pack.fleet.cells import Cell, Result, Unusable, checked
from pack.fleet.store import Store
from PIL import Image


def png(size=(4, 4), colour=(1, 2, 3)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


CELL = Cell("echo", {"b": [1, 2.5], "a": "ä"}, {"row": "one"})


def test_the_id_depends_on_kind_and_work_and_not_on_labels_or_order():
    assert CELL.id == Cell("echo", {"a": "ä", "b": [1, 2.5]}).id
    assert len({CELL.id, Cell("sleep", CELL.work).id, Cell("echo", {**CELL.work, "a": "a"}).id}) == 3
    with pytest.raises(ValueError, match="JSON compliant"):
        Cell("echo", {"a": float("nan")}).id  # noqa: B018


def test_what_is_kept_is_found_again_bit_for_bit(tmp_path):
    result = Result({"fd": 0.1 + 0.2, "name": "x"}, (png(), png(colour=(9, 9, 9))), 1.5, "worker 1")
    assert Store(tmp_path).done(CELL) is None
    Store(tmp_path).keep(CELL, result)
    assert Store(tmp_path).done(CELL) == result
    assert [(cell.id, found) for cell, found in Store(tmp_path)] == [(CELL.id, result)]


@pytest.mark.parametrize("damage", ["a number", "a picture", "half", "no picture"])
def test_a_damaged_result_is_none(tmp_path, damage):
    store = Store(tmp_path)
    store.keep(CELL, Result({"fd": 0.25}, (png(),)))
    (record,), (picture,) = tmp_path.rglob("*.json"), tmp_path.rglob("*.png")
    text = record.read_text()
    if damage == "a number":
        record.write_text(text.replace("0.25", "0.26"))
    if damage == "half":
        record.write_text(text[: len(text) // 2])
    if damage == "a picture":
        picture.write_bytes(png(colour=(7, 7, 7)))
    if damage == "no picture":
        picture.unlink()
    assert store.done(CELL) is None and [*store] == []


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(tmp_path, monkeypatch):
    store, other = Store(tmp_path), Cell("echo", {"other": 1})
    store.keep(CELL, Result({"a": 1}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.keep(other, Result({"a": 2}))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert store.done(CELL) == Result({"a": 1}) and store.done(other) is None


def bomb() -> bytes:
    """A small file that claims 60,000 x 60,000 pixels."""
    content = bytearray(png())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "JPEG")
    return content.getvalue()


UNUSABLE = {
    "half a picture": (Result({}, (png((64, 64))[:-30],)), "picture 1 of 1 is no whole PNG file"),
    "no picture": (Result({}, (png(), b"<html>")), "picture 2 of 2 is no whole PNG file"),
    "another format": (Result({}, (jpeg(),)), "is no whole PNG file"),
    "a bomb": (Result({}, (bomb(),)), "larger than any picture|million are taken"),
    "NaN": (Result({"fd": float("nan")}), "the value fd is nan"),
    "a list": (Result({"fd": [1]}), "the value fd is neither a number nor a text"),  # pyright: ignore
    "a long text": (Result({"text": "x" * (2 << 20)}), "letters; at most"),
}


@pytest.mark.parametrize(("result", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_result_is_refused_with_its_reason(result, said):
    with pytest.raises(Unusable, match=said):
        checked(result)


def test_a_record_is_plain_json_that_other_programs_read(tmp_path):
    Store(tmp_path).keep(CELL, Result({"fd": 0.5}))
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text("utf-8"))["work"] == CELL.work and path.stem == CELL.id
