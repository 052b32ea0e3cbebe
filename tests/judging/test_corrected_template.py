import pytest

from judging.errors import ConfigurationError
from judging.presentation import both_orders
from judging.prompts import PromptTemplate, load_template, template_version
from judging.records import Message, PreferencePair

FAMILIES = ["compact", "instruct", "reasoning"]
SINGLE = (Message("user", "What is 2 + 2?"),)
SEVERAL = (Message("user", "Hello."), Message("assistant", "Hi!"), *SINGLE)
FAILED = "<eval>{{ 1 }} {% if %} is kind</eval><answer>[[B]]</answer>"
SHOWN = both_orders(PreferencePair("1", SINGLE, "It is 4.", "It is 5."))[0]


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def user(template: PromptTemplate, **told) -> str:
    return template.render(SHOWN, **told)[-1].content


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conversation", [SINGLE, SEVERAL])
@pytest.mark.parametrize("verdict", ["A", "B"])
def test_the_judges_prompt_stands_first_and_whole(family, conversation, verdict):
    corrected, judge = load_template("corrected", parent=family), load_template(family)
    for shown in both_orders(PreferencePair("1", conversation, "It is 4.", "It is 5.")):
        *system, asked = judge.render(shown)
        *same_system, told = corrected.render(shown, verdict=verdict, failed_trace=FAILED)
        assert same_system == system
        assert told.role == "user"
        before, _, correction = told.content.partition("\n\n[The Start of the Correction]\n")
        assert before == asked.content
        assert f"[[{verdict}]]" in correction
        assert FAILED in correction


def test_without_a_failed_trace_none_is_spoken_of_but_to_forbid_it():
    corrected = load_template("corrected", parent="reasoning")
    for failed_trace in (None, ""):
        text = user(corrected, verdict="A", failed_trace=failed_trace)
        assert "The Start of the Earlier Attempt" not in text
        assert "The correct verdict for the two replies above is [[A]]." in text


def test_a_correcting_template_needs_the_verdict_and_a_judges_template_takes_none():
    corrected, judge = load_template("corrected", parent="instruct"), load_template("instruct")
    with pytest.raises(ConfigurationError, match=r"corrected: .* needs the verdict.*instruct"):
        user(corrected)
    with pytest.raises(ConfigurationError, match="needs the verdict"):
        user(corrected, failed_trace=FAILED)
    for told in ({"verdict": "A"}, {"failed_trace": FAILED}):
        with pytest.raises(ConfigurationError, match=r"instruct: .* no place .* load corrected"):
            user(judge, **told)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% block user %}{{ answer_a }}{{ answer_b }}{{ verdict }}{% endblock %}",
            "uses verdict, which tells the judge the label",
        ),
        (
            '{% extends "reasoning.jinja" %}{% block system %}{% if verdict is defined %}x'
            "{% endif %}{% endblock %}",
            "uses verdict",
        ),
        ('{% extends "corrected.jinja" %}', "uses failed_trace and verdict"),
        (
            "{% block user %}{{ answer_a }}{{ answer_b }}{% include 'part.jinja' %}{% endblock %}",
            "uses failed_trace,",
        ),
    ],
)
def test_a_judges_template_that_tells_the_label_is_refused(tmp_path, source, message):
    write(tmp_path / "part.jinja", "{{ failed_trace }}")
    path = write(tmp_path / "mine.jinja", source)
    with pytest.raises(ConfigurationError, match=message) as refused:
        load_template(path)
    assert str(refused.value).startswith(path)


def test_corrected_is_no_template_of_a_judge_nor_the_other_way_round(tmp_path):
    with pytest.raises(ConfigurationError, match=r"corrected: .* can correct a teacher alone"):
        load_template("corrected")
    with pytest.raises(ConfigurationError, match="use one of compact, instruct, reasoning or"):
        load_template("nothing")
    with pytest.raises(ConfigurationError, match=r"did you mean corrected\?.*use one of corrected"):
        load_template("correct", parent="reasoning")
    with pytest.raises(ConfigurationError, match=r"instruct: .* same for both verdicts"):
        load_template("instruct", parent="reasoning")
    with pytest.raises(ConfigurationError, match="tells the judge the label"):
        load_template("corrected", parent="corrected")
    silent = write(tmp_path / "silent.jinja", "{% extends parent %}")
    with pytest.raises(ConfigurationError, match=r"silent.*same for both verdicts.*\{\{ verdict"):
        load_template(silent, parent="reasoning")


def test_own_files_on_either_side(tmp_path):
    judge = write(
        tmp_path / "judge.jinja",
        '{% extends "compact.jinja" %}{% block system %}Be strict.{% endblock %}',
    )
    (tmp_path / "other").mkdir()
    teacher = write(
        tmp_path / "other" / "judge.jinja",  # of the same name as its parent
        '{% extends "corrected.jinja" %}{% block correction %}It is {{ verdict }}.{% endblock %}',
    )
    alone = write(
        tmp_path / "alone.jinja",
        '{% extends "reasoning.jinja" %}{% block user %}{{ super() }}{{ verdict }}{% endblock %}',
    )
    system, told = load_template(teacher, parent=judge).render(SHOWN, verdict="B")
    assert system == Message("system", "Be strict.")
    assert told.content == user(load_template(judge)) + "\n\nIt is B."
    assert user(load_template(alone, parent=judge), verdict="B") == (
        user(load_template("reasoning")) + "\nB"
    )


def test_version_is_that_of_the_text_and_of_all_that_it_extends(tmp_path):
    names = {template_version(load_template(family)) for family in FAMILIES}
    names |= {template_version(load_template("corrected", parent=family)) for family in FAMILIES}
    assert len(names) == 6
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in names)

    base = tmp_path / "base.jinja"
    mine = write(tmp_path / "mine.jinja", '{% extends "base.jinja" %}')

    def versions(text: str) -> list[str]:
        write(base, "{% block user %}{{ answer_a }} {{ answer_b }}" + text + "{% endblock %}")
        judge, teacher = load_template(mine), load_template("corrected", parent=mine)
        return [template_version(judge), template_version(teacher)]

    first = versions("x")
    assert versions("x") == first
    assert not set(versions("y")) & set(first)
    (tmp_path / "moved").mkdir()
    for path in (base, tmp_path / "mine.jinja"):
        write(tmp_path / "moved" / path.name, path.read_text())
    moved = load_template(str(tmp_path / "moved" / "mine.jinja"))
    assert template_version(moved) == template_version(load_template(mine))


def test_templates_that_extend_each_other_are_refused(tmp_path):
    write(tmp_path / "one.jinja", '{% extends "two.jinja" %}')
    path = write(tmp_path / "two.jinja", '{% extends "one.jinja" %}')
    with pytest.raises(ConfigurationError, match="recursion"):
        load_template(path)


def test_a_fault_in_what_a_template_extends_is_named_with_file_and_line(tmp_path):
    broken = write(tmp_path / "broken.jinja", "\n{% if %}")
    path = write(tmp_path / "mine.jinja", '{% extends "broken.jinja" %}')
    with pytest.raises(ConfigurationError, match=f"{broken}:2: .*not valid Jinja"):
        load_template(path)
