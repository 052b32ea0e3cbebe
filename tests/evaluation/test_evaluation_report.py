import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from evaluation_samples import gold, item, judge, uids

from evaluation.flips import find_flips
from evaluation.items import Comparison
from evaluation.report import EvaluationReport, HeatMap, Row, Table, report_page
from evaluation.statistics import Estimate, judge_statistics, votes_curve, weighted_mean
from evaluation.verdicts import tabulate
from judging.records import Message

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x1b[2J\ud83d $x_{$"
ITEMS = [item(f"{subset}{number}", subset=subset) for subset in "abc" for number in range(8)]


def often_first(pair, order, vote):
    return "A" if vote == 1 or int(pair.uid, 16) % 2 else gold(order)


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    judgments = judge(ITEMS, often_first, votes=3)
    verdicts = tabulate(uids(ITEMS), judgments, protocol="both", votes=3, seed=0)
    flips, found = find_flips(ITEMS, judgments, verdicts, limit=5)
    chat = weighted_mean({"chat": [1.0, 0.0, 1.0]}, seed=0)
    return EvaluationReport(
        model="model-7b",
        facts=(("protocol", "both orders"), ("votes", "3")),
        judges={"RMB": judge_statistics(ITEMS, verdicts, seed=0)},
        tables=(Table("RMB", "by subset", (Row("chat", chat), Row("empty", None))),),
        heat_maps=(
            HeatMap(
                "Styles", "m", "chosen", "rejected", ("p", "q"), ("r", "s"), ((1, 0), (0.25, 1))
            ),
        ),
        curves={"RMB": votes_curve(ITEMS, verdicts, seed=0)},
        own={"rm-bench": {"chat": 0.1234, "total": 0.5678}},
        flips=tuple(flips),
        flips_found=found,
    )


@pytest.fixture(scope="module")
def drawn(report) -> str:
    return report_page(report)


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_page_has_every_part(report, drawn):
    titles = re.findall(r"<figcaption><b>(.*?)</b>", drawn)
    assert titles == ["Position", "Length", "Votes", "Styles"]
    assert drawn.count("<svg") == 5
    for shown in ("model-7b", "both orders", "0.667", "0.123", "0.568", "table 7", "766.2"):
        assert shown in drawn
    assert drawn.count("this evaluation") == 2
    assert drawn.count("published, baseline") == 6
    assert f"5 of {report.flips_found} pairs" in drawn
    for flip in report.flips:
        for judgment in (flip.chosen_first, flip.rejected_first):
            assert judgment.text.replace("<", "&lt;").replace(">", "&gt;") in drawn


def test_page_loads_nothing_and_its_pictures_do_not_clash(drawn):
    page = Page(drawn)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base"}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    clips = re.findall(r'<clipPath id="([^"]+)"', drawn)
    assert len(clips) == len(set(clips)) > 0


def test_text_of_a_model_and_of_a_benchmark_is_escaped(report):
    flip = report.flips[0]
    pair = replace(flip.pair, conversation=(Message("user", EVIL),), chosen=EVIL, rejected=EVIL)
    evil = replace(
        report,
        model=EVIL,
        facts=((EVIL, EVIL),),
        judges={EVIL: report.judges["RMB"]},
        tables=(Table(EVIL, EVIL, (Row(EVIL, Estimate(0.5, 0.4, 0.6, 9)),)),),
        heat_maps=(HeatMap(EVIL, EVIL, "c", "r", (EVIL,), (EVIL,), ((0.5,),)),),
        curves={EVIL: report.curves["RMB"]},
        flips=(
            replace(
                flip, subset=EVIL, pair=pair, chosen_first=replace(flip.chosen_first, text=EVIL)
            ),
        ),
    )
    text = report_page(evil)
    tags = {tag for tag, _ in Page(text).elements}
    assert not tags & {"script", "img"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    text.encode("utf-8")  # no lone surrogate


def test_page_of_an_evaluation_in_one_order_with_one_vote(report):
    judgments = judge(ITEMS, often_first)
    verdicts = tabulate(uids(ITEMS), judgments, protocol="published", votes=1, seed=0)
    flips, found = find_flips(ITEMS, judgments, verdicts, limit=5)
    assert (flips, found) == ([], 0)
    single = EvaluationReport(
        model="m",
        facts=(),
        judges={"RMB": judge_statistics(ITEMS, verdicts, seed=0)},
        tables=(Table("nothing", "", (Row("empty", None),)),),
        curves={"RMB": votes_curve(ITEMS, verdicts, seed=0)},
    )
    text = report_page(single)
    assert re.findall(r"<figcaption><b>(.*?)</b>", text) == ["Position", "Length"]
    assert "Verdicts that changed" not in text
    assert text.count('<td class="n">-</td>') == 3


def test_flips_come_from_the_subsets_in_turn_with_the_votes_that_flipped():
    judgments = judge(ITEMS, lambda _, order, vote: gold(order) if vote == 0 else "B", votes=3)
    verdicts = tabulate(uids(ITEMS), judgments, protocol="both", votes=3, seed=0)
    flips, found = find_flips(ITEMS, judgments[::-1], verdicts, limit=4)
    assert found == len(ITEMS)
    assert [flip.subset for flip in flips] == ["a", "b", "c", "a"]
    for flip in flips:
        assert flip.letter == "B"
        assert (flip.chosen_first.vote, flip.rejected_first.vote) == (1, 0)
        assert flip.chosen_first.pair_uid == flip.rejected_first.pair_uid == flip.pair.uid
    again = Comparison("0/1", flips[0].pair)
    doubled = [*ITEMS, replace(ITEMS[0], uid="again", comparisons=(again,))]
    assert find_flips(doubled, judgments, verdicts, limit=4) == (flips, found)


def test_page_leaves_no_global_plotting_state():
    code = (
        "import sys\n"
        "from evaluation.report import EvaluationReport, Row, Table, report_page\n"
        "from evaluation.statistics import Estimate\n"
        "assert 'matplotlib' not in sys.modules\n"
        "table = Table('t', '', (Row('r', Estimate(0.5, 0.4, 0.6, 9)),))\n"
        "report_page(EvaluationReport('m', (), {}, (table,)))\n"
        "sys.exit('pyplot' if 'matplotlib.pyplot' in sys.modules else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
