from __future__ import annotations

import numpy as np
import pytest

from planner.contracts.errors import TrainingError
from planner.training.loop import train
from planner.training.text import EncodedRow, EncodedRows, encode_rows
from planner.training.token_cache import KEEP, TokenCache

LEGAL = (np.array([3, 9]), np.array([4]), np.array([1, 5, 7]))
ROWS = EncodedRows(
    (
        EncodedRow("a", (1, 2), (3, 4, 5), LEGAL),
        EncodedRow("b é", (1,), (6,)),
        EncodedRow("c", (), (9, 4, 7), LEGAL),
    ),
    num_overlong=2,
    num_unlisted=1,
)


def fail():
    raise AssertionError("encoded again")


def test_rows_come_back_as_they_were_encoded(tmp_path, tokenizer, texts):
    real = encode_rows(tokenizer, texts, max_tokens=512, max_overlong_share=0)
    for key, rows in (("x", ROWS), ("y", EncodedRows((), 0)), ("z", real)):
        cache = TokenCache(tmp_path, key)
        assert cache.rows("train", lambda rows=rows: rows) is rows
        again = cache.rows("train", fail)
        assert (again.digest, again.num_overlong, again.num_unlisted) == (
            rows.digest,
            rows.num_overlong,
            rows.num_unlisted,
        )
        assert [row.scored for row in again.rows] == [row.scored for row in rows.rows]
        assert [row.num_tokens for row in again.rows] == [row.num_tokens for row in rows.rows]


def test_another_split_or_key_is_encoded_for_itself(tmp_path):
    TokenCache(tmp_path, "k").rows("train", lambda: ROWS)
    other = EncodedRows(ROWS.rows[:1], 0)
    assert TokenCache(tmp_path, "k").rows("validation", lambda: other) is other
    assert TokenCache(tmp_path, "k2").rows("train", lambda: other) is other


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "unknown packing", "encrypted"])
def test_damaged_file_is_encoded_anew(tmp_path, damage):
    cache = TokenCache(tmp_path, "k")
    cache.rows("train", lambda: ROWS)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(np.int64(9).tobytes())] ^= 4
    entry = content.index(b"PK\x01\x02")  # of the zip's directory: flags are 8 bytes behind, the packing 10
    content[entry + 8] ^= damage == "encrypted"
    content[entry + 10] ^= damage == "unknown packing"
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert cache.rows("train", lambda: ROWS) is ROWS
    assert cache.rows("train", fail).digest == ROWS.digest


def test_only_the_newest_files_are_kept(tmp_path):
    for index in range(KEEP + 3):
        TokenCache(tmp_path, str(index)).rows("train", lambda: ROWS)
    assert len(list(tmp_path.iterdir())) == KEEP


def test_second_start_encodes_nothing_and_an_error_is_not_kept(model, tokenizer, texts, config, tmp_path, monkeypatch):
    cache = TokenCache(tmp_path / "tokens", "k")
    short = config.model_copy(update={"max_tokens": 20})
    with pytest.raises(TrainingError, match="longer than 20 tokens"):
        train(model, tokenizer, texts[:16], texts[16:], short, tmp_path, token_cache=TokenCache(cache.folder, "short"))
    first = train(model, tokenizer, texts[:16], texts[16:], config, tmp_path, token_cache=cache)
    monkeypatch.setattr("planner.training.token_cache.encode_rows", lambda *_, **__: fail())
    again = train(model, tokenizer, texts[:16], texts[16:], config, tmp_path, token_cache=cache)
    assert again.resumed_from_step == first.num_steps
    assert len(list(cache.folder.iterdir())) == 2
