"""Why a mutant survives: what no test of behaviour can notice."""

# Module and change, as `tests.stress.mutants` prints them → the reason.
SURVIVORS: dict[str, str] = {}
