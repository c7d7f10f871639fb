"""Mutation testing: change one expression of a pure module or the batcher, and check that a test notices the change.

`./dev mutate` tries a random sample, and `./dev mutate MODULE …` tries every mutant of these modules. The command lists
the mutants that survived. It fails if more than a tenth survived, or if a survivor has no explanation in `SURVIVORS`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.stress.seeded_faults import PROJECT, tests_fail
from tests.stress.survivors import SURVIVORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

SAMPLE = 240
SEED = 20261128
CAUGHT_MIN = 0.9
RUN_SECONDS_MAX = 300
SQLITE_ONLY = "not postgresql and not duckdb"

_BALANCES = (
    "target/test_balances.py",
    "conformance/test_conformance.py",
    "target/test_streams.py",
    "stress/test_deliveries.py",
    "target/test_activate_version.py",
    "balances_cli/test_as_of.py",
    "balances_cli/test_cli.py",
    "balances_cli/test_verify_columns.py",
)
_RECORDS = (
    "target/test_real_inputs.py",
    "conformance/test_real_inputs.py",
    "target/test_streams.py",
    "target/test_quarantine.py",
)
_WINDOWS = ("tap/test_windows.py", "tap/test_streams.py", "stress/test_tap_campaign.py")
# Parts of these modules are for engines other than SQLite. If a mutant survives on SQLite, tests on those engines must
# catch it.
OTHER_ENGINES = "postgresql or duckdb"
OF_OTHER_ENGINES = frozenset({"target_crm.records.schemas"})
# The tests for each module, the closest first, because the first failure ends a run.
TESTS: dict[str, tuple[str, ...]] = {
    "tap_pepper.windows": _WINDOWS,
    "tap_pepper.points": ("tap/test_points.py", "tap/test_streams.py"),
    "tap_pepper.raw_json": ("tap/test_raw_json.py", "tap/test_streams.py"),
    "tap_pepper.redaction": ("tap/test_redaction.py", "tap/test_cli.py"),
    "tap_pepper.state.dedupe": ("tap/test_dedupe.py", *_WINDOWS),
    "tap_pepper.state.audit": ("tap/test_audit.py", *_WINDOWS),
    "tap_pepper.state.coverage": ("tap/test_coverage.py", *_WINDOWS),
    "tap_pepper.state.input_state": ("tap/test_input_state.py", "tap/test_cli.py"),
    "target_crm.loader.activations": ("target/test_activate_version.py", "target/test_real_inputs.py"),
    "target_crm.loader.batcher": ("target/test_batcher.py", "target/test_state.py", "stress/test_failing_calls.py"),
    "target_crm.loader.malformed": ("target/test_reader.py", "target/test_quarantine.py", "target/test_real_inputs.py"),
    "target_crm.records.actions": ("target/test_actions.py", *_RECORDS),
    "target_crm.records.comparison": ("balances_cli/test_compare.py",),
    "target_crm.records.coverage": ("target/test_coverage.py", "balances_cli/test_coverage.py"),
    "target_crm.records.deletions": ("conformance/test_real_inputs.py", "target/test_real_inputs.py"),
    "target_crm.records.explanation": ("balances_cli/test_explain.py",),
    "target_crm.records.names": ("target/test_names.py", *_RECORDS),
    "target_crm.records.schemas": (
        *("target/test_schemas.py", "target/test_widening.py", *_RECORDS, "target/test_warehouse_errors.py"),
    ),
    "target_crm.records.tally": ("target/test_load_runs.py", *_RECORDS),
    "target_crm.records.values": ("target/test_values.py", "target/test_schemas.py", *_RECORDS),
    "target_crm.sql.balances": _BALANCES,
    "target_crm.sql.coverage": ("target/test_coverage.py", "balances_cli/test_coverage.py"),
    "target_crm.sql.load_runs": ("target/test_load_runs.py", "balances_cli/test_status.py"),
    "target_crm.sql.staging": _BALANCES,
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
}


class Mutant(NamedTuple):
    """One change of a module."""

    module: str
    number: int
    change: str
    """`function: source line: expression before → after`."""


class _Mutator(ast.NodeTransformer):
    """Numbers every possible change in the order of the source, and applies the chosen one."""

    def __init__(self, source: str, chosen: int | None = None) -> None:
        self.chosen = chosen
        self.changes: list[str] = []
        self._lines = source.splitlines()
        self._scope: list[str] = []

    def visit(self, node: ast.AST) -> Any:
        """Visit the parts of a node, then the node itself."""
        if _has_no_effect(node):
            return node
        name = getattr(node, "name", None) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
        if name:
            self._scope.append(name)
        result = self._visit_parts(node)
        for replacement in _replacements(node):
            if len(self.changes) == self.chosen:
                result = ast.copy_location(replacement, node)
            line = self._lines[node.lineno - 1].strip()
            self.changes.append(f"{'.'.join(self._scope)}: {line}: {_code(node)} → {_code(replacement)}")
        if name:
            self._scope.pop()
        return result

    def _visit_parts(self, node: ast.AST) -> ast.AST:
        # Leave these parts unchanged: annotations, which are never evaluated, decorators, and the options of a class.
        names = ["annotation", "returns", "decorator_list", *(["keywords"] if isinstance(node, ast.ClassDef) else [])]
        hidden = {name: getattr(node, name) for name in names if hasattr(node, name)}
        for name in hidden:
            setattr(node, name, None)
        self.generic_visit(node)
        for name, part in hidden.items():
            setattr(node, name, part)
        return node


def _has_no_effect(node: ast.AST) -> bool:
    """Return whether a node is a docstring, or an import for type checking."""
    return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )


def _replacements(node: Any) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            yield ast.Compare(node.left, [_COMPARISONS[type(operator)]()], node.comparators)
        case ast.BoolOp(op=operator):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), node.values)
        case ast.BinOp(op=operator) if type(operator) in _OPERATORS:
            yield ast.BinOp(node.left, _OPERATORS[type(operator)](), node.right)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.If():
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Return(value=value) if value and not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()


def _code(node: ast.AST) -> str:
    """Return the code of a node in one line. For a statement with a body, return only its condition."""
    text = f"if {ast.unparse(node.test)}" if isinstance(node, ast.If) else ast.unparse(ast.fix_missing_locations(node))
    return " ".join(text.split())


def mutate(source: str, chosen: int | None = None) -> tuple[ast.Module, list[str]]:
    """Parse a module, and apply the chosen change, if there is one. Also return the descriptions of all changes."""
    mutator = _Mutator(source, chosen)
    tree: ast.Module = mutator.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), mutator.changes


class _Loader(SourceFileLoader):
    """Loads a module with one change."""

    def __init__(self, name: str, path: str, number: int) -> None:
        super().__init__(name, path)
        self._number = number

    def get_code(self, fullname: str) -> Any:
        """Compile the changed source without reading or writing a cached bytecode file."""
        path = self.get_filename(fullname)
        tree, _ = mutate(self.get_data(path).decode(), self._number)
        return compile(tree, path, "exec", dont_inherit=True)


class MutantFinder(MetaPathFinder):
    """Makes this process import one module with one change."""

    def __init__(self, mutant: str) -> None:
        self._module, number = mutant.split(":")
        self._number = int(number)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Find the module to change. Leave other modules to the next finder."""
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.origin:
            spec.loader = _Loader(fullname, spec.origin, self._number)
        return spec


def mutants_of(module: str) -> list[Mutant]:
    """Return all mutants of a module."""
    source = PROJECT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    return [Mutant(module, number, change) for number, change in enumerate(mutate(source)[1])]


def is_caught(mutant: Mutant) -> bool:
    """Run the module's tests until the first failure. A run that does not end in time also counts as a failure."""
    tests = [f"tests/{test}" for test in TESTS[mutant.module]]
    # SQLite is the fastest engine, and most of the pure modules do not depend on the engine.
    selections = [SQLITE_ONLY, *([OTHER_ENGINES] if mutant.module in OF_OTHER_ENGINES else [])]
    name = f"{mutant.module}:{mutant.number}"
    try:
        return any(tests_fail([*tests, "-k", selected], RUN_SECONDS_MAX, MUTANT=name) for selected in selections)
    except subprocess.TimeoutExpired:
        return True


def sample() -> list[Mutant]:
    """Return a random selection of all mutants, which is the same in every run."""
    every = [mutant for module in TESTS for mutant in mutants_of(module)]
    print(f"{len(every):,} mutants in {len(TESTS)} modules, a sample of {SAMPLE}:", flush=True)
    return sorted(Random(SEED).sample(every, SAMPLE))


def main(modules: Sequence[str]) -> int:
    """Try the mutants, and list the survivors. Return 1 if there are too many, or if one has no explanation."""
    tests = dict.fromkeys(f"tests/{test}" for module in modules or TESTS for test in TESTS[module])
    if tests_fail([*tests, "-k", SQLITE_ONLY], RUN_SECONDS_MAX * len(tests)):
        sys.exit("the tests fail without a change")
    mutants = [mutant for module in modules for mutant in mutants_of(module)] if modules else sample()
    unexplained, survivors = 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (mutant, caught) in enumerate(zip(mutants, pool.map(is_caught, mutants), strict=True), start=1):
            if not caught:
                name = f"{mutant.module}.{mutant.change}"
                survivors += 1
                unexplained += name not in SURVIVORS
                print(f"survived: {mutant.number} {name}\n          {SURVIVORS.get(name, 'NOT EXPLAINED')}", flush=True)
            if done % 20 == 0:
                print(f"{done} of {len(mutants)} mutants, {survivors} survived", flush=True)
    caught = len(mutants) - survivors
    print(
        f"{caught} of {len(mutants)} mutants caught ({caught / len(mutants):.0%}), {unexplained} survivors unexplained"
    )
    return int(caught < CAUGHT_MIN * len(mutants) or unexplained > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
