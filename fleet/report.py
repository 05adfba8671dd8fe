"""A folder of finished cells → results.parquet, times.parquet and report.html.

results.parquet and report.html are the same, byte for byte, for the same cells and results, whoever did them, and when."""

from __future__ import annotations

import html
import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..tools.console import Failure
from .cells import Cell, Failed, Result
from .store import Store, write

PLAN = "plan.json"
STYLE = (
    "body{font:14px sans-serif;margin:2em;background:#fff;color:#222}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top;text-align:left}"
    "img{max-width:256px}.pictures{display:flex;flex-wrap:wrap;gap:4px;min-width:30em}.failed{color:#a00}"
)


def plan(folder: Path, cells: Sequence[Cell], failed: Sequence[Failed] = ()) -> None:
    """Note which cells a run is about, in their order, and which of them failed, for later reports."""
    reasons = {one.cell.id: one.reason for one in failed}
    rows = [{"id": c.id, "kind": c.kind, "labels": dict(c.labels), "failed": reasons.get(c.id, "")} for c in cells]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / PLAN, json.dumps(rows, ensure_ascii=False, indent=1).encode())


def planned(folder: Path) -> list[dict[str, Any]]:
    """The rows that `plan` has noted. Raises Failure where there are none."""
    try:
        return json.loads((folder / PLAN).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(f"{folder} holds no run of the fleet (no {PLAN}).") from None
    except ValueError:
        raise Failure(f"{folder / PLAN} is damaged; the same run again writes it anew.") from None


def write_report(folder: Path) -> list[Path]:
    """Write the tables and the page of what is finished; where they are."""
    import pyarrow
    import pyarrow.parquet

    store, rows = Store(folder), planned(folder)
    found, pictures = [], []
    for row in rows:
        result = store.get(row["id"])
        count = len(result.pictures) if result else 0
        found.append(replace(result, pictures=()) if result else None)  # a run may have more pictures than memory holds
        pictures.append([_picture(store, row["id"], at) for at in range(count)])
    labels = [*dict.fromkeys(name for row in rows for name in row["labels"])]
    values = [*dict.fromkeys(name for result in found if result for name in sorted(result.values))]
    columns: dict[str, list] = {"cell": [row["id"] for row in rows]}
    columns |= {name: _column([row["labels"].get(name) for row in rows]) for name in labels}
    for name in values:
        title = f"{name} (value)" if name in columns else name
        columns[title] = _column([result.values.get(name) if result else None for result in found])
    columns["failed"] = [row["failed"] if one is None else "" for row, one in zip(rows, found, strict=True)]
    table = pyarrow.table(columns).append_column("pictures", pyarrow.array(pictures, pyarrow.list_(pyarrow.string())))
    paths = [folder / name for name in ("results.parquet", "times.parquet", "report.html")]
    pyarrow.parquet.write_table(table, paths[0])
    done = [(row["id"], result) for row, result in zip(rows, found, strict=True) if result]
    times = {
        "cell": pyarrow.array([name for name, _ in done], pyarrow.string()),
        "seconds": pyarrow.array([result.seconds for _, result in done], pyarrow.float64()),
        "worker": pyarrow.array([result.worker for _, result in done], pyarrow.string()),
    }
    pyarrow.parquet.write_table(pyarrow.table(times), paths[1])
    write(paths[2], page(rows, found, pictures, labels, values).encode())
    return paths


def _picture(store: Store, name: str, at: int) -> str:
    return store.picture(name, at).relative_to(store.folder).as_posix()


def _column(values: list) -> list:
    """One type for a column: numbers, or texts where one value is a text."""
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    return [None if value is None else float(value) for value in values]


def page(
    rows: list[dict], found: Sequence[Result | None], pictures: list[list[str]], labels: list[str], values: list[str]
) -> str:
    """The page. All that came from elsewhere is escaped, and the page may load nothing but its pictures."""
    missing = sum(one is None for one in found)
    head = "".join(f"<th>{_safe(name)}</th>" for name in (*labels, *values, "pictures"))
    lines = []
    for row, result, files in zip(rows, found, pictures, strict=True):
        cells = "".join(f"<td>{_shown(row['labels'].get(name))}</td>" for name in labels)
        if result is None:
            said = row["failed"] or "not finished"
            lines.append(f'<tr>{cells}<td class="failed" colspan="{len(values) + 1}">{_safe(said)}</td></tr>')
            continue
        cells += "".join(f"<td>{_shown(result.values.get(name))}</td>" for name in values)
        images = "".join(f'<img loading="lazy" src="{_safe(urllib.parse.quote(file))}" alt="">' for file in files)
        lines.append(f'<tr>{cells}<td><div class="pictures">{images}</div></td></tr>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Fleet report</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file:; "
        "style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>Fleet report</h1><p>{len(rows)} cells, {missing} of them not finished.</p>"
        f"<table><tr>{head}</tr>{''.join(lines)}</table></html>\n"
    )


def _safe(text: str) -> str:
    return html.escape(str(text), quote=True)


def _shown(value: Any) -> str:
    return "" if value is None else _safe(f"{value:g}" if isinstance(value, float) else str(value))
