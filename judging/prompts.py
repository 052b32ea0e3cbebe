"""How a presentation becomes a prompt: Jinja templates, chat messages and token ids.

Owns the built-in templates (`judging/templates/`), the loading and checking of a user's own, and
the one place where a prompt is tokenised. A template sees the conversation and the two answers in
the order shown, and nothing that tells which one is preferred, unless it is made to correct a
teacher (below).

A template is one file with a block `user` and, if it likes, a block `system`. It may extend a
built-in one and replace a block. Its variables:

- `question`: the client's text, or none when the conversation has more than that one turn;
- `answer_a`, `answer_b`: the two answers in the order shown;
- `conversation`: the turns before the answers, each with `role` and `content`;
- `conversation_a`, `conversation_b`: conversation and answer as speaker-labelled lines.

A template that corrects a teacher, such as `corrected`, is loaded with the judge's template as its
`parent`, which it extends by `{% extends parent %}`. It has two variables more:

- `verdict`: the gold letter;
- `failed_trace`: the teacher's failed judgment, or an empty text if it gave none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast, get_args

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    meta,
)
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from judging.errors import ConfigurationError, DataError
from judging.presentation import both_orders
from judging.records import JudgePrompt, Letter, Message, PreferencePair, Presentation

TEMPLATES = Path(__file__).parent / "templates"

_CORRECTING = frozenset({"corrected"})  # built-in templates that tell the verdict
_TOLD = frozenset({"verdict", "failed_trace"})  # the variables of such templates alone
_VERSION_DIGITS = 12

# What a template, as a small program of its user, can raise while it runs.
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    OSError,
)


class AddedToken(Protocol):
    content: str
    special: bool


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def chat_template(self) -> object: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        /,
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A checked template; made by `load_template`."""

    name: str
    template: Template = field(repr=False)
    sources: tuple[str, ...] = field(repr=False)  # its text and those of all that it extends
    parent: PromptTemplate | None = None  # the judge's template, of one that corrects a teacher

    def render(
        self,
        presentation: Presentation,
        *,
        verdict: Letter | None = None,
        failed_trace: str | None = None,
    ) -> tuple[Message, ...]:
        """The chat messages: a system message, if the template has one, and a user message.

        Args:
            presentation: the pair in the order shown.
            verdict: the gold letter, for a template that corrects a teacher alone.
            failed_trace: what that teacher wrote; empty or None if there is nothing to show.

        Raises:
            ConfigurationError: the template fails on this presentation; names file and line. Or it
                corrects a teacher and is given no verdict, or it does not and is given one.
        """
        variables = _variables(presentation)
        if self.parent is not None:
            if verdict is None:
                raise ConfigurationError(
                    f"{self.name}: the prompt template needs the verdict, for it corrects a"
                    f" teacher: give it, or take the judge's template, {self.parent.name}"
                )
            variables |= {
                "parent": self.parent.template,
                "verdict": verdict,
                "failed_trace": failed_trace or "",
            }
        elif verdict is not None or failed_trace is not None:
            raise ConfigurationError(
                f"{self.name}: the prompt template has no place for a verdict or a failed trace: to"
                " correct a teacher, load corrected with it as the parent"
            )
        return self._messages(variables)

    def _messages(self, variables: dict[str, object]) -> tuple[Message, ...]:
        context = self.template.new_context(variables)
        try:
            # Runs what stands outside the blocks too: parents, macros and variables.
            deque(self.template.root_render_func(context), maxlen=0)
            texts = {
                role: "".join(context.blocks[role][0](context)).strip()
                for role in ("system", "user")
                if role in context.blocks
            }
        except _TEMPLATE_ERRORS as error:
            raise ConfigurationError(
                f"{_place_in_template(error, self.name)}: the prompt template fails: {error};"
                " mend the template"
            ) from error
        if not texts.get("user"):
            raise ConfigurationError(
                f"{self.name}: the prompt template has no user message: put its text between"
                " {% block user %} and {% endblock %}"
            )
        system = (Message("system", texts["system"]),) if texts.get("system") else ()
        return (*system, Message("user", texts["user"]))


def load_template(family_or_path: str, *, parent: str | None = None) -> PromptTemplate:
    """A built-in template by its family's name, or a user's own Jinja file.

    It is tried on two samples, with one turn and with several, so that a fault shows here and not
    in the middle of a run.

    Args:
        family_or_path: `instruct`, `reasoning`, `compact` or a path; with a parent, `corrected` or
            a path.
        parent: the judge's template, by family or path, for one that corrects a teacher.

    Raises:
        ConfigurationError: no such family or file, a template that fails or leaves out an answer,
            one that tells the verdict without a parent, or one with a parent that does not tell it.
    """
    judge = None if parent is None else load_template(parent)
    name, path = _find(family_or_path, corrects=judge is not None)
    loaded, sources, variables = _compile(path)
    if judge is None and (told := sorted(variables & _TOLD)):
        raise ConfigurationError(
            f"{name}: the prompt template uses {' and '.join(told)}, which tells the judge the"
            " label: take a template that does not; this one can correct a teacher alone"
        )
    if judge is not None and "parent" in variables:
        sources += judge.sources
    template = PromptTemplate(name, loaded, sources, judge)
    _try_out(template)
    return template


def template_version(template: PromptTemplate) -> str:
    """A hash of the template's text and of all that it extends or includes: 12 hex digits.

    Answers to prompts of another version are answers to other prompts.
    """
    text = json.dumps(template.sources)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_VERSION_DIGITS]


def _find(family_or_path: str, *, corrects: bool) -> tuple[str, Path]:
    """The template's name in messages, and its file."""
    built_in = {path.stem for path in TEMPLATES.glob("*.jinja")}
    if family_or_path in built_in:
        return family_or_path, TEMPLATES / f"{family_or_path}.jinja"
    path = Path(family_or_path)
    if path.is_file():
        return str(path), path
    families = sorted(_CORRECTING if corrects else built_in - _CORRECTING)
    near = get_close_matches(family_or_path, {*families, *_CORRECTING}, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    if near and near[0] not in families:
        hint = f" (did you mean {near[0]}? It is for a pass with tells_verdict)"
    raise ConfigurationError(
        f"prompt template {family_or_path!r} is neither a family nor a file{hint}: use one of"
        f" {', '.join(families)} or the path of a Jinja file"
    )


def _compile(path: Path) -> tuple[Template, tuple[str, ...], frozenset[str]]:
    """The template, its text and those of all that it names, and the variables that they use."""
    loader = ChoiceLoader([FileSystemLoader(path.parent), FileSystemLoader(TEMPLATES)])
    environment = ImmutableSandboxedEnvironment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        loaded = environment.get_template(path.name)
        sources = _sources(environment, loader, path)
        variables = frozenset[str]().union(
            *(meta.find_undeclared_variables(environment.parse(source)) for source in sources)
        )
    except TemplateSyntaxError as error:
        raise ConfigurationError(
            f"{error.filename or path}:{error.lineno}: the prompt template is not valid Jinja:"
            f" {error.message}; mend the template"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the prompt template is not UTF-8: {error}") from error
    return loaded, sources, variables


def _sources(
    environment: ImmutableSandboxedEnvironment, loader: BaseLoader, path: Path
) -> tuple[str, ...]:
    """The texts of a template and of all that it names; one that is missing fails in the trial."""
    sources: dict[str, str] = {}
    names = deque([path.name])
    while names:
        name = names.popleft()
        if name in sources:
            continue
        try:
            source, filename, _ = loader.get_source(environment, name)
        except TemplateNotFound as error:
            if (TEMPLATES / f"{name}.jinja").is_file():
                raise ConfigurationError(
                    f"{path}: the prompt template names {name}, which is a family and no file:"
                    f' write "{name}.jinja"'
                ) from error
            continue
        sources[name] = source
        tree = environment.parse(source, name, filename)
        names.extend(found for found in meta.find_referenced_templates(tree) if found is not None)
    return tuple(sources.values())


def tokenize_prompt(
    presentation: Presentation, messages: Sequence[Message], tokenizer: ChatTokenizer
) -> JudgePrompt:
    """Apply the chat template once; its token ids are what the engine and the learner are given.

    The chat template alone writes control tokens: nothing is added to what it gives, and where a
    message spells one, as an answer may to end its turn and go on as the judge, a space breaks it.

    Raises:
        ConfigurationError: the tokenizer has no chat template, or it refuses these roles.
        DataError: the prompt has no tokens.
    """
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "the model's tokenizer has no chat template: put a chat_template.jinja into its folder"
            " or take the instruction-tuned version of the model"
        )
    try:
        token_ids = tokenizer.apply_chat_template(
            [
                {"role": turn.role, "content": _defused(turn.content, tokenizer)}
                for turn in messages
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ConfigurationError(
            f"the model's chat template refuses the messages ({roles}): {error}; choose a prompt"
            " template without a system message, such as reasoning"
        ) from error
    if not token_ids:
        raise DataError(
            f"the prompt of {presentation.uid} ({presentation.pair.source or 'unknown source'}) has"
            " no tokens: the model's chat template drops its messages"
        )
    return JudgePrompt(presentation, tuple(messages), tuple(cast(Iterable[int], token_ids)))


def _defused(text: str, tokenizer: ChatTokenizer) -> str:
    tokens = _control_tokens(tokenizer)
    return tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if tokens else text


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: ChatTokenizer) -> re.Pattern[str] | None:
    """The special tokens, and what else the chat template marks roles and turns with."""
    template = str(tokenizer.chat_template)
    texts = [
        re.escape(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content) > 1 and (token.special or token.content in template)
    ]
    return re.compile("|".join(sorted(texts, key=len, reverse=True))) if texts else None


def _variables(presentation: Presentation) -> dict[str, object]:
    conversation = presentation.pair.conversation
    is_single_turn = len(conversation) == 1
    return {
        "question": conversation[0].content if is_single_turn else None,
        "conversation": conversation,
        "answer_a": presentation.answer_a,
        "answer_b": presentation.answer_b,
        "conversation_a": _labelled(conversation, presentation.answer_a, "A"),
        "conversation_b": _labelled(conversation, presentation.answer_b, "B"),
    }


def _labelled(conversation: Sequence[Message], answer: str, letter: Letter) -> str:
    speakers = {"system": "System", "user": "User", "assistant": f"Chatbot {letter}"}
    turns = (*conversation, Message("assistant", answer))
    return "\n".join(f"{speakers[turn.role]}: {turn.content}" for turn in turns)


def _place_in_template(error: Exception, name: str) -> str:
    """File and line of the innermost template frame that the error passed through."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or name}:{error.lineno}"
    place = name
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, Template):
            line = template.get_corresponding_lineno(trace.tb_lineno)
            place = f"{template.filename or name}:{line}"
        trace = trace.tb_next
    return place


def _try_out(template: PromptTemplate) -> None:
    question = Message("user", "What is 2 + 2?")
    earlier = (Message("user", "Hello."), Message("assistant", "Hello, how can I help?"))
    answers = ("104729", "1299709")
    for conversation in ((question,), (*earlier, question)):
        pair = PreferencePair("sample", conversation, *answers)
        turns = "one turn" if len(conversation) == 1 else "several turns"
        for shown in both_orders(pair):
            text = _text_of_trial(template, shown)
            for name, answer in (("answer_a", shown.answer_a), ("answer_b", shown.answer_b)):
                if answer not in text:
                    raise ConfigurationError(
                        f"{template.name}: the prompt template does not show {name} for a"
                        f" conversation of {turns}: put {{{{ {name} }}}} into it"
                    )


def _text_of_trial(template: PromptTemplate, shown: Presentation) -> str:
    if template.parent is None:
        return _text(template.render(shown))
    _text(template.render(shown, verdict="A"))  # of a teacher that wrote nothing
    texts = [
        _text(template.render(shown, verdict=letter, failed_trace="x"))
        for letter in get_args(Letter)
    ]
    if texts[0] == texts[1]:
        raise ConfigurationError(
            f"{template.name}: the prompt template corrects a teacher, but is the same for both"
            " verdicts: put {{ verdict }} into its block user, or extend corrected.jinja"
        )
    return texts[0]


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)
