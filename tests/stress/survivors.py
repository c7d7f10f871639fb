"""Mutants that may survive, because no test of behaviour can notice the change."""

_SIZED = "no column has a size on the engines of these tests; conformance/test_mariadb.py notices"
# The reason why each mutant may survive. A key is the module and the change, as `tests.stress.mutants` prints them.
SURVIVORS: dict[str, str] = {
    "target_crm.sql.coverage._interval_id: return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(): "
    "16 → 17": ("an id of another length is unique as well"),
    "target_crm.records.deletions.in_steps: if not any(row[-1] is not None and ABSENT in row for row in rows):: "
    "row[-1] is not None and ABSENT in row → row[-1] is not None or ABSENT in row": (
        "only saves time: a batch without partial deletions gives the same single step"
    ),
    "target_crm.records.deletions.in_steps: if key in newest and newest[key] > (at, arrival):: "
    "newest[key] > (at, arrival) → newest[key] >= (at, arrival)": "two rows never have the same arrival",
    "target_crm.records.deletions.in_steps: for at, arrival, row in sorted(partial, key=lambda each: each[:2]):: "
    "2 → 3": ("arrivals differ, so the third value is never compared"),
    "tap_pepper.state.audit.HourTally.add: count, fingerprint = self._hours.get(hour, (0, 0)): 0 → 1": (
        "a fingerprint may start from any number, if it is the same for both reads"
    ),
    "tap_pepper.state.audit.Audit.record: if self._age_hours and instant and instant >= self._next and "
    "instant[:-1] > self._tallied_until[:-1]:: instant >= self._next → instant > self._next": (
        "an hour has fewer characters than an instant, so the two are never equal"
    ),
    'tap_pepper.windows.parse_bound: instant = to_instant(text) or to_instant(f"{text}T00:00"): '
    "to_instant(text) or to_instant(f'{text}T00:00') → to_instant(text) and to_instant(f'{text}T00:00')": (
        "pendulum also reads these forms, but more slowly; `end_to_end/test_start.py` notices that"
    ),
    "target_crm.loader.batcher.Batcher.__init__: "
    'self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit"): 1 → 2': (
        "a batch is submitted only when the one before is committed, so a second thread would never have work"
    ),
    "target_crm.records.actions.: _Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]: 1 → 2": (
        "an id of one character is decoded in full, into the same row"
    ),
    'target_crm.records.actions._columns: effect, place = EFFECTS.get(action.type or "", (None, 0)): 0 → 1': (
        "without an effect, the place is not used"
    ),
    'target_crm.records.explanation._timeline: keyed.append(((snapshot.at, 1, b""), line)): 1 → 2': (
        "a deletion at the same instant is added later, so it still follows"
    ),
    'target_crm.records.names._is_kept: return character == "_" or (unicodedata.category(character)[0] in "LMN" and '
    "character <= \"\\uffff\"): character <= '\\uffff' → character < '\\uffff'": "U+FFFF is no letter, mark or number",
    "target_crm.records.schemas.Stored: is_unsigned: bool = False: False → True": (
        "columns of integers always say whether they have a sign"
    ),
    'target_crm.records.schemas.sized_kind: elif stored.kind == "integer":: '
    "stored.kind == 'integer' → stored.kind != 'integer'": _SIZED,
    'target_crm.records.schemas.sized_kind: if stored.kind == "text":: '
    "if stored.kind == 'text' → if not stored.kind == 'text'": _SIZED,
    "target_crm.records.schemas.Shape.of: if limits.sizes:: if limits.sizes → if not limits.sizes": (_SIZED),
    'target_crm.records.schemas._fitted: if stored.kind != "decimal" or limits.decimal_digits == 0:: '
    "0 → 1": "no engine has exact decimals of one digit",
    "target_crm.records.schemas._precision: return _Precision(max(map(_digits_below, bounds), default=0), places): "
    "0 → 1": "fewer than 20 digits before the point count as 20",
    "target_crm.records.values.decimal: rounded = exact.quantize(Decimal(1).scaleb(-places), "
    "context=Context(digits + 1)): 1 → 2": "the check before has limited the digits, so no value needs more",
}
