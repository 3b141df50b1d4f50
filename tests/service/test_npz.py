"""Columns of an npz are read as numpy would read them, and no archive makes the reader unpack more than it can hold."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from service import npz
from service.errors import BadLocation


def archive(**arrays: Any) -> zipfile.ZipFile:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    stream.seek(0)
    return zipfile.ZipFile(stream)


@pytest.mark.parametrize("dtype", ["<i1", "<i2", "<i4", "<i8", ">i2", ">i8", "<u1", "<u2", ">u4", "<u8"])
def test_integers_are_read_as_numpy_reads_them(dtype: str) -> None:
    values = np.array([0, 1, 100, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype=dtype)
    assert npz.column(archive(ids=values), "ids") == values.tolist()


@pytest.mark.parametrize("dtype", ["<U9", ">U9", "<U512"])
def test_text_is_read_as_numpy_reads_it(dtype: str) -> None:
    values = np.array(["", "a", "café", "\U0001f600", "nine chars"[:9]], dtype=dtype)
    assert npz.column(archive(ids=values), "ids") == values.tolist()


def test_a_column_that_is_not_there_is_none() -> None:
    assert npz.column(archive(labels=np.arange(3)), "ids") is None


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((2, 2), np.int64), np.array(["x" * 513]), np.array(["a"], dtype="S1"), np.array(1)]
)
def test_another_kind_of_array_is_refused(values: Any) -> None:
    with pytest.raises(BadLocation):
        npz.column(archive(ids=values), "ids")


def test_a_column_longer_than_any_dataset_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadLocation, match="at most"):
        npz.column(archive(ids=np.zeros(npz.LONGEST_COLUMN + 1, np.uint8)), "ids")
