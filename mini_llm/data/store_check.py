"""Every byte of a store is compared with its checksum once, while training begins; again when a file changes."""

from __future__ import annotations

import hashlib

from mini_llm import log
from mini_llm.cache import Known
from mini_llm.data.token_store import TokenStore
from mini_llm.threads import Worker
from mini_llm.units import size

SMALL_BYTES = 2**28  # read in a quarter of a second: training waits for it
MOST_WAITED_BYTES = 10**10  # read in some seconds to a minute: the end of training waits for it


class StoreCheck:
    """Begins to read the store in the background, unless the same files were found sound before.

    What is remembered is an empty file in the user's cache folder, named by path, size, mtime, inode and checksum of
    all files of the store.
    """

    def __init__(self, store: TokenStore) -> None:
        self._known, self._name = Known("sound-stores"), _fingerprint(store)
        self._store, self._waits = store, store.n_bytes <= SMALL_BYTES
        self._worker = None if self._name in self._known else Worker(lambda: _read(store))

    def poll(self, *, wait: bool = False) -> None:
        """Look whether it has ended. A small store is waited for, with `wait` also a larger one; the largest never is.

        Raises:
            UserError: a file is not as it was written; it is named.
        """
        if self._worker is None:
            return
        if self._worker.is_alive():
            if wait and self._store.n_bytes > MOST_WAITED_BYTES:
                log.warn(f"training ended before all {self._store.n_bytes / 1e9:,.0f} GB of its tokens were checked")
                self._worker = None
                return
            if not (wait or self._waits):
                return
        self._worker.result()
        self._worker = None
        self._known.add(self._name)


def sound(store: TokenStore) -> TokenStore:
    """Return the store when all its bytes have been compared, now or before; one of many minutes is taken as it is.

    Raises:
        UserError: a file is not as it was written; it is named.
    """
    known, name = Known("sound-stores"), _fingerprint(store)
    if name in known:
        return store
    if store.n_bytes > MOST_WAITED_BYTES:
        log.note(f"{store.folder} has {size(store.n_bytes)}: its checksums are left out")
        return store
    store.verify()
    known.add(name)
    return store


def _read(store: TokenStore) -> None:
    for path, _, expected in store.files():  # without the bar of `verify`: the table of the training is on the screen
        store.verify_file(path, expected)


def _fingerprint(store: TokenStore) -> str:
    digest = hashlib.sha256()
    for path, n_bytes, expected in store.files():
        found = path.stat()
        digest.update(f"{path.resolve()}\0{n_bytes}\0{found.st_mtime_ns}\0{found.st_ino}\0{expected}\n".encode())
    return digest.hexdigest()[:32]
