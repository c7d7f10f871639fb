"""Find the bookmarks in the state that a run starts from.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from tap_pepper.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Bookmarks = dict[str, dict[str, Any]]

# Oldest first, because a later bookmark replaces an earlier one. Meltano stores the state of an interrupted run next
# to the state of the last complete run.
_WRAPPERS: Final = ("completed", "completed_state", "singer_state", "partial", "partial_state")
_EXPECTED: Final = 'expected {"bookmarks": {"actions": {…}}}, as in the last STATE of the previous run'


def read_bookmarks(state: object, required_keys: Mapping[str, tuple[str, ...]]) -> Bookmarks:
    """Return the bookmarks in a state, by stream.

    The state may have any of these forms:

    - the value of a STATE message, `{"bookmarks": {"actions": {…}}}`, or the whole message;
    - `{"singer_state": …}`;
    - the output of `meltano state get`, `{"completed": {"singer_state": …}, "partial": …}`;
    - only the bookmarks, `{"actions": {…}}`.

    An empty state has no bookmarks.

    Args:
        state: The decoded JSON.
        required_keys: The keys of each stream's bookmark. A bookmark must be empty or have at least one of them. If
            this mapping has no keys for a stream, any bookmark of the stream is valid, even an empty one.

    Raises:
        ConfigError: A bookmark is unusable, or the state has content but no usable bookmark.
    """
    bookmarks = _unwrap(state, required_keys)
    for stream, bookmark in bookmarks.items():
        _check_bookmark(stream, bookmark, required_keys)
    if bookmarks and not any(bookmark or not required_keys[stream] for stream, bookmark in bookmarks.items()):
        _reject("all bookmarks are empty; to start from the beginning, run without a state")
    return bookmarks


def _unwrap(state: object, streams: Mapping[str, object]) -> Bookmarks:
    if not isinstance(state, dict):
        _reject(_EXPECTED)
    if state.get("type") == "STATE" and "value" in state:
        return _unwrap(state["value"], streams)
    layers = [_unwrap(state[key], streams) for key in _WRAPPERS if state.get(key) is not None]
    known = {"bookmarks", *_WRAPPERS} & state.keys()
    if "bookmarks" in state:
        layers.append(state["bookmarks"])
    elif not known:
        layers.append(state)
    for key, value in state.items():
        if known and key not in known and isinstance(value, dict) and value:
            _reject(f"{key!r:.80} is next to {' and '.join(sorted(known))}, so it would not be read; {_EXPECTED}")
    if not all(isinstance(layer, dict) for layer in layers):
        _reject(_EXPECTED)
    merged: Bookmarks = {}
    for layer in layers:
        # The bookmark of a stream is empty until the stream has written one. If it is empty, keep the bookmark of an
        # earlier layer.
        merged.update({stream: value for stream, value in layer.items() if value != {} or stream not in merged})
    return merged


def _check_bookmark(stream: str, bookmark: object, required_keys: Mapping[str, tuple[str, ...]]) -> None:
    if stream not in required_keys:
        _reject(f"{stream!r:.80} is not a stream of tap-pepper; {_EXPECTED}")
    if not isinstance(bookmark, dict):
        _reject(f"bookmarks.{stream} is not an object; {_EXPECTED}")
    keys = required_keys[stream]
    if bookmark and keys and not any(bookmark.get(key) is not None for key in keys):
        _reject(
            f"bookmarks.{stream} has no {' or '.join(keys)}; restore the last STATE of the previous run, or "
            f"remove bookmarks.{stream} to read the stream from the beginning"
        )


def _reject(problem: str) -> NoReturn:
    msg = f"state: {problem}"
    raise ConfigError(msg)
