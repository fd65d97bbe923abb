"""What was found out of a kernel's outputs, for people and for programs."""

from __future__ import annotations

import html
import json as _json

#: Called with every report that is made.
listeners: list = []

_COLUMNS = (
    ("tensor", "name"),
    ("dtype", "dtype"),
    ("shape", "shape"),
    ("RMS error", "rel_rms"),
    ("ratio", "ratio"),
    ("largest error", "max_abs"),
    ("ratio", "max_ratio"),
)

_COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "not judged": "#9a6700"}


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if value is None:
        return "not finite"
    return str(value)


class Outcome:
    """What the program found out: its table, and what it says to programs.

    `str` is the table; true where all pass.
    """

    def __init__(self, table: str, json: str):
        self._table = table
        self._json = json
        self._data = _json.loads(json)
        for listener in listeners:
            listener(self)

    @property
    def verdict(self) -> str:
        """"pass"; "fail"; or "not judged", where none fails but of one nothing
        can be said, or not all were run."""
        return self._data["verdict"]

    @property
    def passed(self) -> bool:
        """All pass."""
        return self.verdict == "pass"

    def json(self) -> str:
        """The text that the program writes with `--json`."""
        return self._json

    def check(self):
        """Itself where all pass.

        Raises AssertionError with the table where not.
        """
        __tracebackhide__ = True
        if not self.passed:
            raise AssertionError("\n" + self._table)
        return self

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return self._table


class Relation(Outcome):
    """Whether dumps agree where a relation says that they must."""

    @property
    def passed(self) -> bool:
        """They do, bit for bit or within the unit."""
        return self._data["holds"] is True

    @property
    def bit_for_bit(self) -> bool:
        """All bits that must be the same are."""
        return self._data["bit_for_bit"]

    @property
    def tensors(self) -> list[dict]:
        """What the program's JSON report says of each tensor."""
        return self._data["tensors"]


class Stages(Outcome):
    """A verdict for each stage of a chunked kernel."""

    @property
    def first_wrong(self) -> str | None:
        """The first wrong stage in the order of computing."""
        return self._data["first_wrong"]

    @property
    def stages(self) -> dict[str, dict]:
        """By name, what the program's JSON report says of each stage."""
        return {s["name"]: s for s in self._data["stages"]}


class Report(Outcome):
    """A verdict for each output of a kernel, by the program `carve verify`."""

    def __init__(self, table: str, json: str, heat_map: str):
        self._heat_map = heat_map
        super().__init__(table, json)

    @property
    def family(self) -> str:
        return self._data["family"]

    @property
    def tensors(self) -> dict[str, dict]:
        """By name, what the program's JSON report says of each tensor."""
        return {t["name"]: t for t in self._data["tensors"]}

    @property
    def diagnosis(self) -> list[dict]:
        """Known mistakes that explain what fails, the best first: `id`,
        `tensors`, `ratio` and `text` of each; none where nothing does, nothing
        fails or none was looked for."""
        return self._data.get("diagnosis", [])

    def __repr__(self) -> str:
        return f"<carve.Report {self.family}: {self.verdict}>"

    def _repr_html_(self) -> str:
        def row(tag, cells):
            return "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"

        rows = [row("th", [title for title, _ in _COLUMNS] + ["verdict", ""])]
        for t in self._data["tensors"]:
            verdict = t["verdict"]
            colour = _COLOURS[verdict]
            cells = [html.escape(_cell(t.get(key))) for _, key in _COLUMNS]
            cells.append(f'<b style="color:{colour}">{html.escape(verdict)}</b>')
            why = [t[key] for key in ("reason", "where") if key in t]
            cells.append(html.escape("; ".join(why)))
            rows.append(row("td", cells))
        causes = "".join(f"<li>{html.escape(e['text'])}</li>" for e in self.diagnosis)
        title = html.escape(f"{self.family}: {self.verdict}")
        profile = html.escape(self._data["profile"])
        return (
            f"<table><caption>{title} (profile {profile})</caption>"
            + "".join(rows)
            + "</table>"
            + (f"<ol>{causes}</ol>" if causes else "")
            + self._heat_map
        )
