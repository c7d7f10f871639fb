"""Run programs in separate environments, measure them, and make tables and plots.

Other work on the machine changes the absolute times. So the programs run alternately for several rounds, and the tables
show the ratios of their median times.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PROJECT = Path(__file__).parent.parent
ENVIRONMENTS = PROJECT / ".dev" / "bench"
DOCUMENT = PROJECT / "docs" / "performance.md"
COLORS = ("#2a78b8", "#d9822b", "#4c9f70", "#a05195", "#8a8a8a", "#c0504d", "#6b8e23", "#5f6caf")


@dataclass(frozen=True)
class ServerUsage:
    """The resources that the database server used for a run. For an embedded engine, only the size of the file.

    Attributes:
        cpu_seconds: Processor time of all server processes.
        wal_bytes: Number of bytes that the server wrote to its write-ahead log.
        table_bytes: Size of all tables after the run, without indexes. For an embedded engine, the size of the file.
        index_bytes: Size of all indexes.
    """

    cpu_seconds: float = 0
    wal_bytes: int = 0
    table_bytes: int = 0
    index_bytes: int = 0


@dataclass(frozen=True)
class Run:
    """The resources that one run of a program or pipe used.

    Attributes:
        seconds: Elapsed time.
        cpu_seconds: Processor time of all programs in the pipe.
        peaks_mb: Peak memory of each program.
        server: The resources that the database server used.
    """

    seconds: float
    cpu_seconds: float
    peaks_mb: tuple[float, ...]
    server: ServerUsage | None = None

    @property
    def peak_mb(self) -> float:
        """The largest peak memory of any program in the pipe."""
        return max(self.peaks_mb)


def run(
    *commands: Sequence[str | Path],
    stdin: Path | None = None,
    stdout: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run a command or a pipe of commands, and measure it.

    Args:
        commands: Each command reads the output of the command before it.
        stdin: The input of the first command; empty by default.
        stdout: The file for the output of the last command; discarded by default.
        environment: Additional environment variables.

    Raises:
        RuntimeError: A command failed. The message contains the end of stderr.
    """
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        source = stack.enter_context((stdin or Path(os.devnull)).open("rb"))
        sink = stack.enter_context((stdout or Path(os.devnull)).open("wb"))
        started = time.perf_counter()
        processes: list[subprocess.Popen[bytes]] = []
        for place, command in enumerate(commands):
            before = processes[-1].stdout or source if processes else source
            process = subprocess.Popen(  # noqa: S603 - the commands of this package
                [str(word) for word in command],
                stdin=before,
                stdout=sink if place == len(commands) - 1 else subprocess.PIPE,
                stderr=errors,
                # Let Python store bytecode, as for an installed program. Compiling would double the start-up time.
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
                cwd=PROJECT,
            )
            if before is not source:
                before.close()
            processes.append(process)
        ends = [os.wait4(process.pid, 0) for process in processes]
        seconds = time.perf_counter() - started
        for process, (_, status, _) in zip(processes, ends, strict=True):
            process.returncode = os.waitstatus_to_exitcode(status)
        if any(process.returncode for process in processes):
            errors.seek(0)
            log = errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{commands[0][0]}: exit codes {[each.returncode for each in processes]}\n{log}")
    usages = [usage for _, _, usage in ends]
    return Run(
        seconds=seconds,
        cpu_seconds=sum(usage.ru_utime + usage.ru_stime for usage in usages),
        peaks_mb=tuple(usage.ru_maxrss / 1024 for usage in usages),
    )


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and its children, including ended children. Reads `/proc`."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        if int(path.parent.name) == pid or int(fields[1]) == pid:
            # utime and stime are the times of the process. cutime and cstime are the times of its ended children.
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def environment(name: str, *requirements: str) -> Path:
    """Return the `bin` folder of a virtual environment with these requirements; create it if they have changed."""
    folder = ENVIRONMENTS / name
    stamp = folder / "requirements"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = shutil.which("uv") or PROJECT / ".dev" / "uv" / "bin" / "uv"
        print(f"installing {', '.join(requirements)} …", flush=True)
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)  # noqa: S603
        install = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--python",
            folder / "bin" / "python",
            *requirements,
        ]
        subprocess.run(install, check=True)  # noqa: S603
        stamp.write_text(wanted)
    return folder / "bin"


def own_environment() -> Path:
    """Return the `bin` folder of an environment with only the packages that users install.

    In the environment of the tests, some packages find and import optional packages, so the measurements would differ.
    """
    return environment("pepper-crm", "--editable", f"{PROJECT}[duckdb,postgres]")


def in_turn(contenders: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run the contenders alternately, each once per round. Prepare them first, because the preparation would count."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, contender in contenders.items():
            print(f"  round {number}: {name} …", end=" ", flush=True)
            runs[name].append(contender())
            print(f"{runs[name][-1].seconds:.2f} s", flush=True)
    return runs


def seconds_of(runs: Iterable[Run]) -> float:
    """The median elapsed time of the runs."""
    return median(each.seconds for each in runs)


def table(results: Mapping[str, Sequence[Run]], *, rows: int, against: str) -> str:
    """Make a Markdown table of medians: times, their ratio to the time of `against`, memory, and the size of a row."""
    base = seconds_of(results[against])
    titles = ["", "seconds", f"time ÷ {against}", "rows/s", "CPU s", "server CPU s", "peak MB"]
    titles += [f"{each} bytes/row" for each in ("WAL", "table", "index")]
    lines = []
    for name, runs in results.items():
        seconds = seconds_of(runs)
        servers = [each.server or ServerUsage() for each in runs]
        lines.append(
            [
                name,
                f"{seconds:,.2f}",
                f"{seconds / base:,.2f}",
                f"{rows / seconds:,.0f}",
                f"{median(each.cpu_seconds for each in runs):,.2f}",
                f"{median(each.cpu_seconds for each in servers):,.2f}",
                f"{median(each.peak_mb for each in runs):,.0f}",
                f"{median(each.wal_bytes for each in servers) / rows:,.0f}",
                f"{median(each.table_bytes for each in servers) / rows:,.0f}",
                f"{median(each.index_bytes for each in servers) / rows:,.0f}",
            ]
        )
    # Leave out the columns in which all values are zero: the engine does not have such a value.
    used = [place for place in range(len(titles)) if any(line[place] not in {"0", "0.00"} for line in lines)]
    table = [titles, ["---"] + ["---:"] * (len(titles) - 1), *lines]
    return "\n".join(f"| {' | '.join(line[place] for place in used)} |" for line in table)


def write_section(name: str, text: str) -> None:
    """Replace the text between the markers of a section in `docs/performance.md`."""
    document = DOCUMENT.read_text()
    pattern = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(document):
        raise ValueError(f"{DOCUMENT.name} has no section {name!r}")
    DOCUMENT.write_text(pattern.sub(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", document))


def write_plot(name: str, svg: str, description: str) -> str:
    """Save a plot next to `docs/performance.md`; return the Markdown of the image."""
    DOCUMENT.with_name(f"performance-{name}.svg").write_text(svg)
    return f"![{description}](performance-{name}.svg)"


def bars(title: str, values: Mapping[str, float], unit: str) -> str:
    """Draw an SVG of horizontal bars, in the order of `values`."""
    label_px, bar_px, line_px, top_px = 260, 380, 26, 40
    largest = max(values.values())
    parts = []
    for place, (name, value) in enumerate(values.items()):
        y, width = top_px + place * line_px, max(1.0, value / largest * bar_px)
        parts += [
            f'<text x="{label_px - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{label_px}" y="{y}" width="{width:.1f}" height="18" fill="{COLORS[place % len(COLORS)]}"/>',
            f'<text x="{label_px + width + 6:.1f}" y="{y + 14}">{value:,.4g} {escape(unit)}</text>',
        ]
    return _svg(title, label_px + bar_px + 110, top_px + len(values) * line_px + 8, parts)


def curves(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw an SVG with one line per series. Both axes begin at zero."""
    left_px, top_px, width_px, height_px = 60, 40, 480, 240
    x_largest = max(x for points in series.values() for x, _ in points)
    y_largest = max(y for points in series.values() for _, y in points) * 1.05
    bottom_px = top_px + height_px
    parts = [
        f'<path d="M{left_px} {top_px}V{bottom_px}H{left_px + width_px}" stroke="#8a8a8a" fill="none"/>',
        f'<text x="{left_px + width_px / 2}" y="{bottom_px + 34}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{left_px}" y="{top_px - 6}">{escape(y_label)}</text>',
    ]
    for quarter in range(5):
        x, y = left_px + quarter * width_px / 4, bottom_px - quarter * height_px / 4
        parts += [
            f'<text x="{x}" y="{bottom_px + 16}" text-anchor="middle">{quarter * x_largest / 4:,.4g}</text>',
            f'<text x="{left_px - 6}" y="{y + 4}" text-anchor="end">{quarter * y_largest / 4:,.3g}</text>',
        ]
    for place, (name, points) in enumerate(series.items()):
        color = COLORS[place % len(COLORS)]
        placed = [
            (left_px + x / x_largest * width_px, bottom_px - y / y_largest * height_px) for x, y in sorted(points)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in placed),
            f'<text x="{left_px + width_px + 12}" y="{top_px + 14 + place * 20}" fill="{color}">{escape(name)}</text>',
        ]
    return _svg(title, left_px + width_px + 210, bottom_px + 44, parts)


def _svg(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """An SVG document. Its grey text is legible on a light and on a dark background."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">'
    style = "<style>text{font:13px sans-serif}text:not([fill]){fill:#777}.title{font-weight:bold}</style>"
    heading = f'<text class="title" x="8" y="18">{escape(title)}</text>'
    return "\n".join((head, style, heading, *parts, "</svg>\n"))
