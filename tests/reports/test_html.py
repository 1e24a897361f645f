"""The page: complete, self-contained, and unharmed by names that an attacker chose."""

import dataclasses
import html.parser
import re

import pytest

from syscall_lm.reports import html as page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "\x1b[31mred\x1b[0m",
    "a\nb\rc\x00d\x07",
    "\u202egpj.exe",
    "{{ 7 * 7 }}{% raw %}",
    "</title></style></table><!--",
    "&lt;b&gt;&amp;",
    "\ud800",
    "javascript:alert(1)",
]
PNG = b"\x89PNG\r\n\x1a\nnot really"


def picture(name):
    return page.Picture(name, "a figure", PNG, PNG)


def suspect(text, **changes):
    info = dict.fromkeys(("id", "source", "command", "host", "label", "family", "split"), text)
    values = {
        "info": info,
        "length": 1000,
        "unknown": 3,
        "score": 1.5,
        "abnormal": True,
        "strip": picture("trace-01"),
        "calls_per_column": 3,
        "start": 10,
        "mean": 4.0,
        "stretch": [(text, 0.0), ("open", 4.5), ("<unknown>", 123.0)],
        "least_expected": (12, text, 123.0),
    }
    return page.Suspect(**{**values, **changes})


def report(text="name", **changes):
    summary = {
        "normal": 10,
        "attacks": 4,
        "auc": 0.9,
        "auc_interval": [0.8, 0.95],
        "false_alarms_at_detection": {"0.9": 0.1},
        "detection_at_false_alarms": {"0.01": 0.5},
        "families": {text: {"attacks": 4, "auc": 0.9, "detection_at_5_percent_false_alarms": 0.5}},
    }
    values = {
        "model": text,
        "archive": text,
        "notice": "",
        "traces": 100,
        "calls": 5000,
        "abnormal": 7,
        "score_meaning": "its surprisal",
        "method": "leaky_relu",
        "threshold": 1.25,
        "false_alarm_rate": 0.01,
        "needed": 99,
        "differ": 99,
        "held_out": 200,
        "learned_here": True,
        "calibration": text,
        "groups": [(text, text, 100, 5000, 7)],
        "kinds": text,
        "members": [{"name": text, "parameters": 10, "median": 1.0, "held_out_nll": text, "epochs": text}],
        "facts": {text: [(text, text)]},
        "evaluation": page.Evaluation(summary, summary, 3, 1, 2, {text: 2}, {text: 0.8}, True),
        "pictures": {"scores": picture("scores"), "roc": picture("roc")},
        "suspects": [suspect(text), suspect(text, same_as=1)],
        "unknown_calls": 3,
        "unknown_names": [(text, 3)],
        "counters": {text: [(text, 3)]},
        "environment": {"commit": text},
    }
    return page.Report(**{**values, **changes})


class Elements(html.parser.HTMLParser):
    """Collects tags, attributes, and the page's visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


ORDINARY = Elements(page.render(report()))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_changes_no_element_and_no_attribute_but_only_text(text):
    elements = Elements(page.render(report(text)))
    assert elements.tags == ORDINARY.tags
    assert [(tag, name) for tag, name, _ in elements.attributes] == [
        (tag, name) for tag, name, _ in ORDINARY.attributes
    ]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_shown_with_its_control_characters_visible(text):
    rendered = page.render(report(text))
    assert all(c.isprintable() or c in "\n\N{NO-BREAK SPACE}" for c in rendered)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert Elements(rendered).text.count(shown) >= 10
    rendered.encode("utf-8")


def test_an_endless_name_is_cut():
    elements = Elements(page.render(report("x" * 100_000 + "<b>")))
    assert "x" * (page.LONGEST_NAME + 1) not in elements.text
    assert "… and 99,763 characters more" in elements.text
    assert "b" not in elements.tags


def test_the_page_needs_nothing_else():
    rendered = page.render(report())
    elements = Elements(rendered)
    links = [value for _, name, value in elements.attributes if name in ("src", "srcset", "href", "action", "data")]
    assert links
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & set(elements.tags)
    assert not re.search(r"https?://|@import|url\(|javascript:", rendered)
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    assert "default-src 'none'" in rendered


def test_every_image_says_what_it_shows():
    alts = [value for tag, name, value in ORDINARY.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == ORDINARY.tags.count("img") == 4
    assert all(alts)


def test_a_call_is_coloured_by_its_surprisal_and_tells_its_nats():
    calls = re.findall(r'<li class="(l\d)" title="([^"]*)">', page.render(report(suspects=[suspect("x")])))
    assert calls == [("l0", "call 11: 0.00 nats"), ("l4", "call 12: 4.50 nats"), ("l9", "call 13: 123.00 nats")]


def test_without_labels_the_page_says_so():
    text = Elements(page.render(report(evaluation=None, pictures={"scores": picture("scores")}))).text
    assert "no labelled normal traces and attacks" in text
    assert "AUC" not in text


def test_an_archives_notice_is_shown():
    assert "It &amp; its notice." in page.render(report(notice="It & its notice."))
    assert "its notice" not in ORDINARY.text


def test_too_few_held_out_traces_are_admitted():
    assert "98 held-out traces cannot promise" in page.render(report(held_out=98))
    assert "cannot promise" not in page.render(report(held_out=99))
    assert "Of 200 held-out traces only 98 differ" in page.render(report(differ=98))
    assert "held-out traces only" not in page.render(report(differ=99))


@pytest.mark.parametrize(
    ("abnormal", "traces", "title"),
    [
        (0, 5, "None of 5 traces is abnormal"),
        (1, 5, "1 of 5 traces is abnormal"),
        (2, 5000, "2 of 5,000 traces are abnormal"),
        (0, 1, "The one trace is not abnormal"),
        (1, 1, "The one trace is abnormal"),
    ],
)
def test_the_headline_counts(abnormal, traces, title):
    assert f"<h1>{title}</h1>" in page.render(report(abnormal=abnormal, traces=traces))


def test_a_model_that_tells_nothing_of_its_making():
    members = [{"name": "1x2", "parameters": 1, "median": 0.0, "held_out_nll": "", "epochs": ""}]
    page.render(report(facts={"Recipe": []}, members=members, unknown_calls=0, unknown_names=[], counters={}))


def test_percentages_keep_small_shares_visible():
    shown = [page.percent(share).replace("&nbsp;", " ") for share in (0, 0.00001, 0.0012, 0.0123, 0.5, 1)]
    assert shown == ["0 %", "below 0.01 %", "0.12 %", "1.2 %", "50.0 %", "100.0 %"]


def test_no_field_is_left_out_of_the_page():
    """Each text field of the report, changed alone, changes the page."""
    ordinary = page.render(report())
    for field in dataclasses.fields(page.Report):
        if isinstance(getattr(report(), field.name), str):
            value = "average" if field.name == "method" else "another"
            assert page.render(report(**{field.name: value})) != ordinary, field.name
