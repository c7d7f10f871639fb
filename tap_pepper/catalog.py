"""Complete the selection in a catalog that another program wrote."""

from __future__ import annotations

from typing import Any, Final

from tap_pepper.errors import ConfigError

Json = dict[str, Any]

_SELECTIONS: Final = {"selected", "selected-by-default"}


def complete_selection(catalog: Json) -> Json:
    """Return a catalog in which each stream's metadata says whether the stream and its fields are selected.

    Old catalogs have `"selected": true` in a stream, its schema or a field, but not in the metadata. This value counts
    only if the metadata contains no selection. If a stream has neither this value nor metadata of its own, it is
    selected, because the catalog lists it. Fields without a selection keep the stream's defaults.

    Raises:
        ConfigError: A selection is neither true nor false.
    """
    return {**catalog, "streams": [_complete_stream(stream) for stream in catalog.get("streams", [])]}


def _complete_stream(stream: Json) -> Json:
    schema = stream.get("schema") or {}
    metadata = {tuple(item["breadcrumb"]): item["metadata"] for item in stream.get("metadata") or []}
    selected = stream.get("selected", schema.get("selected", None if () in metadata else True))
    for breadcrumb, value in {(): selected, **_old_field_selection(schema)}.items():
        own = metadata.get(breadcrumb, {})
        if value is not None and "selected" not in own:
            metadata[breadcrumb] = {**own, "selected": value}
    for own in metadata.values():
        for name in _SELECTIONS & own.keys():
            if not isinstance(own[name], bool | None):
                msg = f"catalog: {stream.get('tap_stream_id')}: {name!r} is {own[name]!r:.20}, expected true or false"
                raise ConfigError(msg)
    items = [{"breadcrumb": list(breadcrumb), "metadata": own} for breadcrumb, own in metadata.items()]
    return {**stream, "metadata": items}


def _old_field_selection(schema: Json, parent: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
    found = {}
    for name, field in (schema.get("properties") or {}).items():
        breadcrumb = (*parent, "properties", name)
        if isinstance(field.get("selected"), bool):
            found[breadcrumb] = field["selected"]
        found.update(_old_field_selection(field, breadcrumb))
    return found
