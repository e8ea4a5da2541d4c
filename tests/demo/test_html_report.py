"""The report is a complete page that needs no other file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from nats_backpressure.demo.html_report import html_page
from nats_backpressure.demo.summary import Row, summarize
from tests.demo.run_data import row, run_data


@pytest.mark.parametrize("rows", [[], [row(0.25)], [row(0.25), row(0.5, "active", 300, 450.0)]])
def test_the_page_is_complete_with_any_number_of_rows(rows: list[Row]) -> None:
    data = run_data(rows=rows, callers=Counter(offered=1))
    text = html_page(data, summarize(data))
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "nan" not in text and "http" not in text.replace("http://www.w3.org", "")
    for chart in text.split("<svg")[1:]:
        ET.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")
