"""Tables as Markdown and as a plot."""

from __future__ import annotations

from typing import Any

Tables = dict[str, list[dict[str, Any]]]


def markdown(
    tables: Tables,
    ahead: dict[str, dict[str, dict[str, float]]],
    along: dict[str, dict[str, list[dict[str, Any]]]],
) -> str:
    """Return a table a pool, how much more `iterative` closes than each method, and the axes."""
    lines = []
    for pool, rows in tables.items():
        lines += [
            f"\n### {pool}\n",
            "| method | share of the gap closed | over random | exact match | worst skill | "
            "lost skills | response tokens | garbage | select s | train s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            lines.append(
                f"| {row['label']} | {row['share']:.3f} ± {row['share_half_width']:.3f} | "
                f"{row['over']:+.1%} ± {row['over_half_width']:.1%} | {row['exact_match']:.3f} | "
                f"{row['worst_skill']} {row['worst_share']:.2f} | "
                f"{', '.join(row['lost_skills']) or '-'} | {row['response_tokens']:,.0f} | "
                f"{sum(row['garbage'].values()):.1%} | {row['select_seconds']:.0f} | "
                f"{row['train_seconds']:.0f} |"
            )
        lines.append(
            "\niterative beside the others: "
            + ", ".join(
                f"{label} {one['difference']:+.3f} ± {one['half_width']:.3f}"
                for label, one in ahead[pool].items()
            )
        )
        for row in rows:
            if row["forgotten"]:
                worse = ", ".join(
                    f"{skill} {one['loss']:+.3f}"
                    + (f" ({one['rows']:.0f} rows of it)" if "rows" in one else "")
                    for skill, one in row["forgotten"].items()
                )
                lines.append(f"\n{row['label']}, worse than before training: {worse}")
            if row["last_number"] == row["last_number"]:
                lines.append(f"\n{row['label']}, last numbers right: {row['last_number']:.3f}")
        for row in rows:
            for n, round_ in enumerate(row.get("rounds", []), start=1):
                kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in round_["drawn"].items())
                if kinds:
                    lines.append(f"\n{row['label']}, round {n}, drawn: {kinds}")
        for axis, values in along.get(pool, {}).items():
            lines += [f"\n| {axis} | share of the gap closed | silhouette |", "|---|---|---|"]
            for one in values:
                silhouette = f"{one['silhouette']:.3f}" if "silhouette" in one else "-"
                lines.append(
                    f"| {one[axis]} | {one['share']:.3f} ± {one['half_width']:.3f} | {silhouette} |"
                )
    return "\n".join(lines)


def plot(tables: Tables) -> str:
    """Draw each method's share of the gap closed, with its 95% interval, as SVG."""
    left, width, step = 190, 420, 20
    parts, y = [], 0
    for pool, rows in tables.items():
        y += 28
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{pool}</text>')
        low = min(row["share"] - _half(row) for row in rows)
        high = max(row["share"] + _half(row) for row in rows)

        def at(value: float, low: float = low, high: float = high) -> float:
            return left + width * (value - low) / max(high - low, 1e-9)

        for row in rows:
            y += step
            color = "#0072b2" if row["label"].startswith("iterative") else "#777777"
            ends = at(row["share"] - _half(row)), at(row["share"] + _half(row))
            parts.append(
                f'<text x="{left - 10}" y="{y}" text-anchor="end">{row["label"]}</text>'
                f'<line x1="{ends[0]:.0f}" x2="{ends[1]:.0f}" y1="{y - 4}" y2="{y - 4}" '
                f'stroke="{color}" stroke-width="2"/>'
                f'<circle cx="{at(row["share"]):.0f}" cy="{y - 4}" r="4" fill="{color}"/>'
                f'<text x="{left + width + 20}" y="{y}">{row["share"]:.3f}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{y + 14}" '
        'font-family="sans-serif" font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _half(row: dict[str, Any]) -> float:
    half = row["share_half_width"]
    return float(half) if half == half else 0.0
