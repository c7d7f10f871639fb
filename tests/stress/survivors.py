"""Why a mutant survives: what no test of behaviour can notice."""

# Module and change, as `tests.stress.mutants` prints them → the reason.
SURVIVORS: dict[str, str] = {
    "target_crm.sql.coverage._interval_id: return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(): "
    "16 → 17": ("an id of another length identifies as well"),
    "target_crm.records.deletions.in_steps: if not any(row[-1] is not None and ABSENT in row for row in rows):: "
    "row[-1] is not None and ABSENT in row → row[-1] is not None or ABSENT in row": (
        "only saves time: a batch without partial deletions gives the same single step"
    ),
    "target_crm.records.deletions.in_steps: for at, arrival, row in sorted(partial, key=lambda each: each[:2]):: "
    "2 → 3": ("arrivals differ, so the third value is never compared"),
}
