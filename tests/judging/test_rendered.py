import pytest

from judging.records import Message
from judging.rendered import RenderedPromptError, parse_rendered


def conversations(block_a: str, block_b: str) -> str:
    return (
        f"[The Start of the Conversation between Chatbot A and the Client]\n{block_a}\n"
        "[The End of the Conversation between Chatbot A and the Client]\n\n"
        f"[The Start of the Conversation between Chatbot B and the Client]\n{block_b}\n"
        "[The End of the Conversation between Chatbot B and the Client]"
    )


def question(text: str, answer_a: str, answer_b: str) -> str:
    return (
        f"[Client Question]\n{text}\n\n"
        f"[The Start of Chatbot A's Response]\n{answer_a}\n[The End of Chatbot A's Response]\n\n"
        f"[The Start of Chatbot B's Response]\n{answer_b}\n[The End of Chatbot B's Response]"
    )


def test_single_turn_with_text_around_and_blank_lines_within():
    text = "Judge these.\n\n" + question("a\n\nb", "\nx\n\ny ", "") + "\n\nAnswer now."
    rendered = parse_rendered(text)
    assert rendered.conversation == (Message("user", "a\n\nb"),)
    assert (rendered.answer_a, rendered.answer_b) == ("\nx\n\ny ", "")


def test_speaker_is_read_as_the_published_sets_spell_it():
    text = conversations(
        "User: hi\nChatbot A: hello\nUser: more\nChatbot A: x",
        "User: hi\nChabot B: hello\nUser: more\nChabot B: y",
    )
    rendered = parse_rendered(text)
    assert [turn.role for turn in rendered.conversation] == ["user", "assistant", "user"]
    assert (rendered.answer_a, rendered.answer_b) == ("x", "y")


def test_speaker_labels_within_an_answer_stay_in_it():
    drama = "A play:\nUser: to be\nChatbot A: or not"
    text = conversations(f"User: hi\nChatbot A: {drama}", "User: hi\nChatbot B: no")
    rendered = parse_rendered(text)
    assert rendered.conversation == (Message("user", "hi"),)
    assert (rendered.answer_a, rendered.answer_b) == (drama, "no")


def test_a_repeated_speaker_is_part_of_the_turn():
    text = conversations("User: hi\nUser: you\nChatbot A: x", "User: hi\nUser: you\nChatbot B: y")
    assert parse_rendered(text).conversation == (Message("user", "hi\nUser: you"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Client Question"),
        ("[Client Question]\nhi", "Start of Chatbot A's Response"),
        (question("q", "x", "y").replace("[The End of Chatbot B's Response]", ""), "End of"),
        (question("q", question("q", "x", "y"), "y"), "more than once"),
        (conversations("User: hi\nChatbot A: x", "User: ho\nChatbot B: y"), "share no user turn"),
        (conversations("hi", "User: hi\nChatbot B: y"), "begins with no speaker"),
    ],
)
def test_what_is_not_clear_is_refused(text, message):
    with pytest.raises(RenderedPromptError, match=message):
        parse_rendered(text)
