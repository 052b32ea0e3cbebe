"""Messages to and from Anthropic: what is sent, and what is read of an answer."""

import pytest

from judging.records import Message, PreferencePair, Presentation
from synthesis.anthropic_batches import message_body, read_message
from synthesis.asking import TryFailed
from synthesis.records import Answer, TeacherRequest, Usage
from synthesis.settings import Teacher

PAIR = PreferencePair("0" * 16, (Message("user", "Which?"),), "this", "that")


def body(*messages, **parameters):
    request = TeacherRequest("k", Presentation(PAIR, "chosen_first"), messages, 0, 0.5, 64)
    return message_body(Teacher(uses="anthropic-batch", parameters=parameters), request)


def test_what_the_system_says_is_apart_from_the_messages():
    found = body(Message("system", "Judge."), Message("user", "a"), Message("assistant", "b"))
    assert found["system"] == "Judge."
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    assert "system" not in body(Message("user", "a"))


def test_a_parameter_replaces_a_setting_and_null_leaves_it_out():
    found = body(Message("user", "a"), temperature=None, max_tokens=5, top_k=3)
    assert (found["max_tokens"], found["top_k"]) == (5, 3)
    assert "temperature" not in found


def test_what_a_model_thought_is_kept_if_it_is_asked_for():
    message = {
        "content": [{"type": "thinking", "thinking": " hm "}, {"type": "text", "text": "A"}],
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    assert read_message(message, keep_reasoning=False) == Answer("A", False, Usage(1, 0, 2))
    assert read_message(message, keep_reasoning=True).text == "hm\n</think>\n\nA"


def test_what_was_cut_off_before_any_text_is_an_answer_and_is_paid_for():
    usage = {"input_tokens": 1, "cache_read_input_tokens": 8, "output_tokens": 2}
    message = {"content": [], "stop_reason": "max_tokens", "usage": usage}
    assert read_message(message, keep_reasoning=False) == Answer("", True, Usage(9, 8, 2))


def test_what_is_no_message_is_a_try_that_failed():
    with pytest.raises(TryFailed, match="no message"):
        read_message({"content": None}, keep_reasoning=False)
