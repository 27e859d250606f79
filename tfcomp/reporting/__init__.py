"""What a run bought, told honestly: the HTML report, the terminal tables, the plots."""

from tfcomp.reporting.html import render_html, write_html
from tfcomp.reporting.tables import edgetpu_table, latency_table, layer_table, stage_table

__all__ = [
    "edgetpu_table",
    "latency_table",
    "layer_table",
    "render_html",
    "stage_table",
    "write_html",
]
