"""A changed token is found before it is learned, and a sound store is read once."""

import shutil
from pathlib import Path

import pytest

from mini_llm.data import store_check
from mini_llm.data.mixture import Mixture
from mini_llm.data.store_check import StoreCheck, sound
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "train.idx"])
def test_a_changed_byte_is_refused_by_name(store: Path, name: str) -> None:
    StoreCheck(TokenStore.open(store)).poll()
    data = bytearray((store / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        StoreCheck(TokenStore.open(store)).poll()


def test_what_was_sound_is_not_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StoreCheck(TokenStore.open(store)).poll()
    monkeypatch.setattr(TokenStore, "verify_file", lambda *_: pytest.fail("was read again"))
    StoreCheck(TokenStore.open(store)).poll(wait=True)


def test_before_a_run_and_by_an_evaluation_a_store_is_read_once_for_all(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mixture.open(str(store)).verify()
    monkeypatch.setattr(TokenStore, "verify_file", lambda *_: pytest.fail("was read again"))
    Mixture.open(str(store)).verify()
    sound(TokenStore.open(store))
    StoreCheck(TokenStore.open(store)).poll(wait=True)


def test_a_store_of_many_minutes_is_taken_as_it_is_and_that_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "train-00000.bin").write_bytes(bytes((store / "train-00000.bin").stat().st_size))
    monkeypatch.setattr(store_check, "MOST_WAITED_BYTES", 1)
    Mixture.open(str(store)).verify()
    assert "its checksums are left out" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"train-00000\.bin"):
        Mixture.open(str(store)).verify()
