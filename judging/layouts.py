"""The layouts of preference data: from one row of a file to one `PreferencePair`.

A layout is known by its columns. Each function here takes a row and where it stands, and either
gives a pair or raises `DataError` with that place, the field and the mend. Files, counting and
dropping are the readers' business. The benchmarks' readers build on the same fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_args

from judging.errors import DataError
from judging.records import Letter, Message, Order, PreferencePair, pair_uid
from judging.rendered import RenderedPromptError, parse_rendered
from judging.traces import parse_trace

Row = Mapping[str, Any]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Layout:
    name: str
    columns: frozenset[str]  # those that must be there
    # From row, place and default source; None for a trace without a clear verdict, since then
    # nothing says which answer is preferred.
    read: Callable[[Row, str, str], PreferencePair | None]


def detect_layout(row: Row, place: str) -> Layout:
    """The layout that a file's first row shows.

    Raises:
        DataError: no layout has these columns; names them and the layouts known.
    """
    for layout in LAYOUTS:
        if layout.columns <= row.keys():
            return layout
    known = "; ".join(f"{layout.name} ({', '.join(sorted(layout.columns))})" for layout in LAYOUTS)
    raise DataError(
        f"{place}: unknown layout with the columns {', '.join(sorted(row)) or '(none)'}; known are"
        f" {known}: rename the columns to one of these"
    )


def _read_rmb(row: Row, place: str, source: str) -> PreferencePair:
    conversation = message_list(row["conversation_input"], place, "conversation_input")
    return make_pair(
        conversation,
        rmb_answer(row["chosen"], place, "chosen"),
        rmb_answer(row["reject"], place, "reject"),
        place,
        source=source,
        category=_optional_text(row, "category_path", place),
    )


def rmb_answer(value: Any, place: str, name: str) -> str:
    """The text of an answer of RMB: an object with the model's name and the answer."""
    if not isinstance(value, Mapping):
        refuse_field(place, name, "an object with the field answer", value)
    return text_field(value.get("answer"), place, f"{name}.answer")


def _read_rm_r1(row: Row, place: str, source: str) -> PreferencePair | None:
    """RM-R1's rows: a rendered prompt, and a label or a trace that ends in the verdict."""
    messages = message_list(row["context_messages"], place, "context_messages")
    winner = text_field(row["winner"], place, "winner")
    labels: dict[str, Letter] = {"model_a": "A", "model_b": "B"}
    is_trace = "<" in winner or "\n" in winner
    if not is_trace and winner not in labels:
        raise DataError(
            f"{place}: winner is {winner!r}, not model_a or model_b (nor a trace that ends in a"
            " verdict): mend or remove the row"
        )
    letter = parse_trace(winner).verdict.letter if is_trace else labels[winner]
    if letter is None:
        return None
    users = [message.content for message in messages if message.role == "user"]
    try:
        rendered = parse_rendered(users[-1] if users else "")
    except RenderedPromptError as error:
        raise DataError(f"{place}: context_messages: {error}: mend or remove the row") from error
    answers = (rendered.answer_a, rendered.answer_b)
    chosen, rejected = answers if letter == "A" else answers[::-1]
    return make_pair(
        rendered.conversation,
        chosen,
        rejected,
        place,
        source=source,
        trace=winner if is_trace else None,
        trace_order=("chosen_first" if letter == "A" else "rejected_first") if is_trace else None,
    )


def _read_chosen_rejected(row: Row, place: str, source: str) -> PreferencePair:
    """Answers as text with a prompt, or as message lists that differ in their last turn only."""
    prompt = _prompt(row.get("prompt"), place)
    if isinstance(row["chosen"], str):
        if not prompt:
            raise DataError(
                f"{place}: chosen is text, so a column prompt with the conversation is needed:"
                " add it, or give chosen and rejected as message lists"
            )
        conversation = prompt
        chosen = row["chosen"]
        rejected = text_field(row["rejected"], place, "rejected")
    else:
        conversation, chosen = _last_turn(row["chosen"], place, "chosen")
        other, rejected = _last_turn(row["rejected"], place, "rejected")
        if conversation != other:
            raise DataError(
                f"{place}: chosen and rejected differ before their last turn; a pair is two"
                " answers to one conversation: cut both lists after the first turn that differs"
            )
        if not _holds_prompt(conversation, row.get("prompt"), prompt):
            conversation = (*prompt, *conversation)
    order = row.get("trace_order")
    if order is not None and order not in get_args(Order):
        refuse_field(place, "trace_order", " or ".join(get_args(Order)), order)
    return make_pair(
        conversation,
        chosen,
        rejected,
        place,
        source=_optional_text(row, "source", place) or source,
        category=_optional_text(row, "category", place),
        trace=_optional_text(row, "trace", place) or None,
        trace_order=cast("Order | None", order),
    )


def _read_code_preference(row: Row, place: str, source: str) -> PreferencePair:
    """Rows of Code-Preference-Pairs of Vezora."""
    question, chosen, rejected = (
        text_field(row[name], place, name) for name in ("input", "accepted", "rejected")
    )
    return make_pair((Message("user", question),), chosen, rejected, place, source=source)


def _read_step_dpo(row: Row, place: str, source: str) -> PreferencePair:
    """Rows of Math-Step-DPO-10K: the steps that both answers share, and how each goes on.

    Its columns chosen and rejected hold the next step only.
    """
    shared = text_field(row["initial_reason_steps"], place, "initial_reason_steps")
    chosen, rejected = (
        shared + text_field(row[name], place, name) for name in ("full_chosen", "full_rejected")
    )
    category = _optional_text(row, "dataset", place)
    conversation = _prompt(row["prompt"], place)
    return make_pair(conversation, chosen, rejected, place, source=source, category=category)


def _prompt(value: Any, place: str) -> tuple[Message, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (Message("user", text_field(value, place, "prompt")),)
    return message_list(value, place, "prompt")


def _holds_prompt(conversation: Sequence[Message], value: Any, prompt: Sequence[Message]) -> bool:
    """Whether the message lists repeat the prompt column, as UltraFeedback's do."""
    if isinstance(value, str):
        return any(turn.role == "user" for turn in conversation)
    return tuple(conversation[: len(prompt)]) == tuple(prompt)


def _last_turn(value: Any, place: str, name: str) -> tuple[tuple[Message, ...], str]:
    messages = message_list(value, place, name)
    if not messages or messages[-1].role != "assistant":
        raise DataError(
            f"{place}: {name} does not end with an assistant turn, which is the answer to judge:"
            " mend or remove the row"
        )
    return messages[:-1], messages[-1].content


def message_list(value: Any, place: str, name: str) -> tuple[Message, ...]:
    """Messages from a list of objects with role and content, checked."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        refuse_field(place, name, "a list of messages", value)
    messages = []
    for index, item in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(item, Mapping):
            refuse_field(place, where, "an object with role and content", item)
        role = item.get("role")
        if role not in _ROLES:
            refuse_field(place, f"{where}.role", "system, user or assistant", role)
        messages.append(Message(role, text_field(item.get("content"), place, f"{where}.content")))
    return tuple(messages)


def text_field(value: Any, place: str, name: str) -> str:
    """The value if it is text that a tokenizer can read; `place` and `name` are for the error."""
    if not isinstance(value, str):
        refuse_field(place, name, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {name} holds half of a surrogate pair at character {error.start}, which no"
            " tokenizer can read: mend or remove the row"
        ) from error
    return value


def _optional_text(row: Row, name: str, place: str) -> str:
    value = row.get(name)
    return "" if value is None else text_field(value, place, name)


def refuse_field(place: str, name: str, expected: str, value: Any) -> NoReturn:
    """Raises the DataError for a field that is missing or of another kind."""
    shown = repr(value) if isinstance(value, str) and len(value) <= 40 else type(value).__name__
    found = "missing or null" if value is None else shown
    raise DataError(f"{place}: {name} must be {expected}, it is {found}: mend or remove the row")


def make_pair(
    conversation: tuple[Message, ...],
    chosen: str,
    rejected: str,
    place: str,
    *,
    source: str,
    category: str = "",
    trace: str | None = None,
    trace_order: Order | None = None,
) -> PreferencePair:
    """A pair named by its content; the conversation must end with a user turn."""
    if not conversation or conversation[-1].role != "user":
        raise DataError(
            f"{place}: the conversation does not end with a user turn, so there is nothing that"
            " the answers reply to: mend or remove the row"
        )
    if (trace is None) != (trace_order is None):
        raise DataError(
            f"{place}: trace and trace_order go together, only one is given: add the other"
        )
    return PreferencePair(
        uid=pair_uid(conversation, chosen, rejected),
        conversation=conversation,
        chosen=chosen,
        rejected=rejected,
        source=source,
        category=category,
        trace=trace,
        trace_order=trace_order,
    )


LAYOUTS = (
    Layout("RMB", frozenset({"conversation_input", "chosen", "reject"}), _read_rmb),
    Layout("RM-R1", frozenset({"context_messages", "winner"}), _read_rm_r1),
    Layout(
        "Math-Step-DPO",
        frozenset({"prompt", "initial_reason_steps", "full_chosen", "full_rejected"}),
        _read_step_dpo,
    ),
    Layout(
        "Code-Preference-Pairs",
        frozenset({"input", "accepted", "rejected"}),
        _read_code_preference,
    ),
    Layout(
        "chosen/rejected, as text with prompt or as message lists",
        frozenset({"chosen", "rejected"}),
        _read_chosen_rejected,
    ),
)
