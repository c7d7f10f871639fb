"""Decide which stream maps apply to the records of each stream, and which sinks receive them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from singer_sdk.exceptions import SingerSDKError
from singer_sdk.mapper import CustomStreamMap, PluginMapper, RemoveRecordTransform, SameRecordTransform, StreamMap

from target_crm.errors import InputError
from target_crm.loader.sinks import BatchContext, LedgerSink, StreamSink, TableSink, sink_class
from target_crm.records import values
from target_crm.records.names import snake_case
from target_crm.records.schemas import InvalidSchema
from target_crm.sql.tables import WORK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Route(NamedTuple):
    """The stream map that applies to the records of a stream, and the sink that receives them."""

    map: StreamMap
    sink: StreamSink

    def mapped(self, record: dict[str, Any], where: str) -> dict[str, Any] | None:
        """Apply the stream map to a record; return None if the map drops it.

        Args:
            record: The record. The caller must not use it afterwards, because the map may change it.
            where: The stream and line, for the error message.

        Raises:
            InputError: The map fails.
        """
        try:
            mapped = self.map.transform(record)
            if isinstance(self.map, CustomStreamMap) and mapped is not None:
                # An expression may return a float or a time. Convert such values to what a JSON message would contain.
                mapped = values.from_json(values.json_text(mapped))
        except Exception as error:
            # Do not quarantine the record, because the quarantine would show a value that the map should hide.
            reason = error if isinstance(error, SingerSDKError) else type(error).__name__
            raise InputError(f"{where}: a stream map fails: {reason}") from error
        return mapped


@dataclass
class StoppedStream:
    """A stream that this run does not load any more."""

    reason: str
    skipped: int = 0
    """The number of the stream's records that were not loaded."""


class Router:
    """Holds the routes of a run. This class does not access the warehouse.

    Args:
        context: The objects that all sinks share.
        mapper: The stream maps from the settings.

    Attributes:
        routes: Stream → its routes, one for each stream map that applies to it.
        stopped: The streams that are no longer loaded.
        actions_sink: The sink for actions. None if no actions are loaded, or if a stream map applies to them.
    """

    def __init__(self, context: BatchContext, mapper: PluginMapper) -> None:
        self._context = context
        self._mapper = mapper
        self._schemas: dict[str, tuple[Any, Any]] = {}
        self.routes: dict[str, list[Route]] = {}
        self.stopped: dict[str, StoppedStream] = {}
        self.actions_sink: StreamSink | None = None

    @property
    def loads_actions(self) -> bool:
        """Whether Pepper's actions go to the ledger."""
        return any(isinstance(route.sink, LedgerSink) for route in self.routes.get("actions", ()))

    def needs_no_change(self, message: Mapping[str, Any]) -> bool:
        """Return whether a SCHEMA message can be ignored.

        It can be ignored if it equals the stream's last SCHEMA message, or if the stream is no longer loaded.
        """
        stream = message.get("stream")
        schema = message.get("schema"), message.get("key_properties")
        return isinstance(stream, str) and (stream in self.stopped or self._schemas.get(stream) == schema)

    def add(self, message: Mapping[str, Any], line_number: int) -> list[Route]:
        """Add the routes for the stream of a SCHEMA message, and return them.

        Raises:
            InputError: The SCHEMA message is unusable, or the stream has the name of one of the target's own tables.
        """
        stream, schema, keys = message.get("stream"), message.get("schema"), message.get("key_properties")
        if (
            not isinstance(stream, str)
            or not stream
            or not isinstance(schema, dict)
            or not isinstance(keys, list | None)
            or not all(isinstance(key, str) for key in keys or ())
        ):
            raise InputError(f"line {line_number}: a SCHEMA message needs a stream, a schema and a list of keys")
        if schema.get("properties") is None:
            # The SDK's stream maps need the keyword `properties`.
            schema = {**schema, "properties": {}}
        sinks = [route.sink for routes in self.routes.values() for route in routes]
        routes = []
        try:
            self._mapper.register_raw_stream_schema(stream, schema, keys)
            for each in self._mapper.stream_maps[stream]:
                if not isinstance(each, RemoveRecordTransform):
                    sink = self._sink(each, sinks)
                    sinks.append(sink)
                    routes.append(Route(each, sink))
        except InvalidSchema as reason:
            raise InputError(f"stream {stream!r}, in its SCHEMA message: {reason}") from None
        except RecursionError:
            raise InputError(f"stream {stream!r}: its SCHEMA message is nested too deeply") from None
        self.routes[stream], self._schemas[stream] = routes, (message.get("schema"), keys)
        self._choose_actions_sink()
        return routes

    def stop(self, stream: str, reason: str) -> None:
        """From now on, load no records of a stream."""
        del self.routes[stream]
        self.stopped[stream] = StoppedStream(reason)
        self._choose_actions_sink()

    def _sink(self, stream_map: StreamMap, sinks: Sequence[StreamSink]) -> StreamSink:
        """Return the sink of a mapped stream. Reuse an existing sink with the same stream and schema, or create one."""
        stream = stream_map.stream_alias
        schema, keys = stream_map.transformed_schema, stream_map.transformed_key_properties
        for sink in sinks:
            if (sink.stream, sink.schema, sink.key_properties) == (stream, schema, keys):
                return sink
        kind = sink_class(stream)
        if kind is TableSink:
            table = snake_case(stream, "stream")
            if table in self._context.warehouse.tables.reserved_names or table.startswith(WORK_PREFIX):
                raise InputError(
                    f"stream {stream!r}: table {table!r} is the target's own; rename the stream with a stream map"
                )
        return kind(self._context, stream, schema, keys)

    def _choose_actions_sink(self) -> None:
        actions = self.routes.get("actions", [])
        is_unmapped = [type(route.map) for route in actions] == [SameRecordTransform]
        self.actions_sink = actions[0].sink if is_unmapped else None
