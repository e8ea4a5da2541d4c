"""The plot of the overload benchmark."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from benchmarks.plot import svg_chart
from nats_backpressure.demo.summary import summarize
from tests.demo.run_data import run_data


def test_the_plot_names_every_system_and_its_lost_messages() -> None:
    lossy, clean = summarize(run_data(lost=1234)), summarize(run_data(latencies=[(3.0, 1.0)] * 100))
    text = svg_chart({1.0: {"us": clean, "<them>": lossy}, 10.0: {"us": clean, "<them>": lossy}})
    ET.fromstring(text)
    assert text.count("&lt;them&gt;") == 2 and text.count("1,234 lost") == 2 and "10x" in text
