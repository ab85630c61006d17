"""What the demo model decides, from request bodies alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps.demo_model.commands import split
from apps.demo_model.schema import instance_of
from apps.demo_model.script import decide
from apps.demo_model.wire import Break, Hang, Part, Text, Thinking, ToolUse, Usage, Words, body, frames, message

PREFIX = "[demo model, scripted] "
TOOLS = ("Bash", "Read", "Write", "Edit", "Agent", "AskUserQuestion", "mcp__sums__double")
NOTICE = (
    "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\n<task-notification>\n<status>completed</status>\n"
    '<summary>Agent "x" finished</summary>\n<result>it rained</result>\n</task-notification>\n</system-reminder>'
)


def user(*content: Any) -> dict[str, Any]:
    blocks = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
    return {"role": "user", "content": blocks}


def assistant(*parts: Part) -> dict[str, Any]:
    return {"role": "assistant", "content": message(parts, "claude-x", 1)["content"]}


def answered(use: ToolUse, answer: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": use.id, "content": answer}


def request(*messages: dict[str, Any], tools: tuple[str, ...] = TOOLS, **more: Any) -> dict[str, Any]:
    offered = [{"name": name, "input_schema": {"type": "object"}} for name in tools]
    return {"model": "claude-x", "messages": list(messages), "tools": offered, **more}


def replies(prompt: str, tools: tuple[str, ...] = TOOLS) -> list[tuple[Part, ...]]:
    """Every model message of one turn, when tool number n answers `answer n`."""
    messages = [user(prompt)]
    seen: list[tuple[Part, ...]] = []
    answers = 0
    while len(seen) < 20:
        seen.append(decide(request(*messages, tools=tools)).parts)
        uses = [part for part in seen[-1] if isinstance(part, ToolUse)]
        if not uses:
            return seen
        numbered = [answered(use, f"answer {answers + number}") for number, use in enumerate(uses, 1)]
        answers += len(uses)
        messages += [assistant(*seen[-1]), user(*numbered)]
    raise AssertionError("the script never came to its end")


def shape(parts: tuple[Part, ...]) -> list[Any]:
    return [
        (p.name, p.input) if isinstance(p, ToolUse) else p.text.removeprefix(PREFIX) if isinstance(p, Text) else p
        for p in parts
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("say hello", ["hello"]),
        ("SAY Hello\nworld", ["Hello\nworld"]),
        ("stream 3 words", [Words(3)]),
        ("stream 3 words slowly", [Words(3, 0.1)]),
        ("Stream 3 words every 50 ms", [Words(3, 0.05)]),
        ("think", [Thinking("Let me think about it."), "I have thought about it."]),
        ("think about cheese", [Thinking("Let me think about cheese."), "I have thought about cheese."]),
        ("break the stream", [Break()]),
        ("hang", [Hang()]),
        ("hang after 2 words", [Words(2), Hang()]),
        ("remember the cat", ["I will remember: the cat"]),
        ("list tools", ["tools: Agent, AskUserQuestion, Bash, Edit, Read, Write, mcp__sums__double"]),
        ("answer without schema, please", ["I answer without the schema."]),
        ('answer by schema {"a": 1}', ['no schema was asked for; I would answer {"a": 1}']),
        ('tell usage {"input_tokens": 7}', ["I used what you say", Usage({"input_tokens": 7})]),
        ("tell usage nothing", ["this is not a JSON object: nothing"]),
        ("use tool Bash {not json", ["this is not a JSON object: {not json"]),
        ("say a then think then say b", ["a", Thinking("Let me think about it."), "I have thought about it.", "b"]),
    ],
)
def test_words_become_one_message(prompt: str, expected: list[Any]) -> None:
    [parts] = replies(prompt)
    assert shape(parts) == expected


@pytest.mark.parametrize(
    ("prompt", "name", "tool_input"),
    [
        ("run ls -l", "Bash", {"command": "ls -l"}),
        ("run: ls -l", "Bash", {"command": "ls -l"}),
        ("run the shell command ls -l", "Bash", {"command": "ls -l"}),
        ("run in background make", "Bash", {"command": "make", "run_in_background": True}),
        ("write a.txt: some: text", "Write", {"file_path": "a.txt", "content": "some: text"}),
        ('write "my file.txt": x', "Write", {"file_path": "my file.txt", "content": "x"}),
        ("read /etc/hosts", "Read", {"file_path": "/etc/hosts"}),
        ('use tool mcp__sums__double {"n": 2}', "mcp__sums__double", {"n": 2}),
        ("delegate say hi", "Agent", {"prompt": "say hi", "run_in_background": False}),
        ("delegate to rev: run ls", "Agent", {"prompt": "run ls", "subagent_type": "rev"}),
        ('delegate in background to rev: "say a then say b"', "Agent", {"prompt": "say a then say b"}),
    ],
)
def test_words_become_a_tool_call_whose_answer_is_quoted(prompt: str, name: str, tool_input: dict[str, Any]) -> None:
    [call], [quote] = replies(prompt)
    assert isinstance(call, ToolUse)
    assert call.name == name
    assert tool_input.items() <= call.input.items()
    assert quote == Text(PREFIX + "the tool answered: answer 1")


def test_steps_go_on_where_the_conversation_stands() -> None:
    first, second, last = replies("say one then run date then say two then use 2 tools at once then say three")
    assert [shape(first)[0], shape(first)[1][0]] == ["one", "Bash"]
    assert shape(second)[:2] == ["the tool answered: answer 1", "two"]
    assert [part.input["command"] for part in second if isinstance(part, ToolUse)] == ["echo 1", "echo 2"]
    assert shape(last) == ["the tool answered: answer 2\nanswer 3", "three"]
    assert [len(parts) for parts in replies("use 3 tools")] == [1, 1, 1, 1]
    together, _ = replies("run at once touch a & touch b")
    assert [part.input for part in together if isinstance(part, ToolUse)] == [
        {"command": "touch a"},
        {"command": "touch b"},
    ]
    assert [part.name for parts in replies("edit a: x => y") for part in parts if isinstance(part, ToolUse)] == [
        "Read",
        "Edit",
    ]


def test_what_the_cli_says_when_it_goes_on_with_a_tool_call_is_nobodys_prompt() -> None:
    use = ToolUse("Bash", {"command": "date"})
    going_on = user(answered(use, "now"), "Continue from where you left off.")
    assert shape(decide(request(user("run date then say fine"), assistant(use), going_on)).parts) == [
        "the tool answered: now",
        "fine",
    ]


def test_then_parts_steps_only_before_a_verb_and_outside_quotes() -> None:
    assert split("say now and then") == ["say now and then"]
    assert split("say if so then stop") == ["say if so then stop"]
    assert split("run a, then say b THEN recall") == ["run a", "say b", "recall"]
    assert split('delegate "run a then say b" then say c') == ['delegate "run a then say b"', "say c"]
    assert split('say 5" wide then say c') == ['say 5" wide', "say c"]


def test_unknown_words_are_echoed_with_the_attachments() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}
    [text] = decide(request(user(picture, picture, paper, "look\n", "[Image: source: 1.png]"))).parts
    assert isinstance(text, Text)
    assert text.text.startswith(PREFIX + 'You said: "look". I see 1 attachment(s) of type application/pdf. I see 2')
    [silent] = decide(request(user(picture))).parts
    assert isinstance(silent, Text)
    assert silent.text.startswith(PREFIX + "You sent no words. I see 1 attachment(s) of type image/png.")


def test_the_last_of_several_prompts_in_one_message_counts() -> None:
    merged = user("<system-reminder>x</system-reminder>\n", "hang\n", "[Request interrupted by user]\n", "recall")
    assert shape(decide(request(user("say a"), assistant(Text("a")), merged)).parts) == ["you said:\n1. say a\n2. hang"]
    assert shape(decide(request(user("do you remember me?"))).parts) == ["you have said nothing before."]


def test_relative_paths_start_in_the_stated_working_directory() -> None:
    stated = "# Environment\n - Primary working directory: /somewhere/else\n - Platform: linux"
    in_reminder = request(user(f"<system-reminder>{stated}</system-reminder>", "read a.txt"))
    in_message = request(user("read a.txt"), {"role": "system", "content": stated})
    in_system = request(user("read a.txt"), system=[{"type": "text", "text": stated}])
    for asked in (in_reminder, in_message, in_system):
        assert shape(decide(asked).parts) == [("Read", {"file_path": "/somewhere/else/a.txt"})]


def test_a_deferred_tool_is_searched_for_first_and_the_search_is_no_step() -> None:
    parts = [shape(reply) for reply in replies('use tool Cron {"a": 1} then say b', tools=("ToolSearch", "Bash"))]
    assert parts == [
        [("ToolSearch", {"query": "select:Cron", "max_results": 1})],
        [("Cron", {"a": 1})],
        ["the tool answered: answer 2", "b"],
    ]
    loading = ToolUse("ToolSearch", {"query": "select:Cron", "max_results": 1})
    loaded = user(answered(loading, [{"type": "tool_reference", "tool_name": "Cron"}]), "Tool loaded.")
    asked = request(user("use tool Cron {}"), assistant(loading), loaded, tools=("ToolSearch", "Cron"))
    assert shape(decide(asked).parts) == [("Cron", {})]


def test_a_background_task_is_reported_once_it_ended() -> None:
    use = ToolUse("Agent", {})
    talk = [user("delegate in background say x"), assistant(use), user(answered(use, "launched"))]
    alone = decide(request(*talk, assistant(Text("started")), user(NOTICE)))
    assert shape(alone.parts) == ['a background task ended: Agent "x" finished: it rained']
    together = decide(request(*talk, {"role": "system", "content": NOTICE}))
    assert shape(together.parts) == [*shape(alone.parts), "the tool answered: launched"]


def test_structured_output_is_called_when_asked_or_insisted_on() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    offered = [{"name": "StructuredOutput", "input_schema": schema}]

    def ask(prompt: str, *more: dict[str, Any]) -> list[Any]:
        return shape(decide({**request(user(prompt), *more), "tools": offered}).parts)

    nudge = (assistant(Text("words")), user("[structured-output-enforce] You MUST call the StructuredOutput tool."))
    assert ask('answer by schema {"n": 7}') == [("StructuredOutput", {"n": 7})]
    assert ask("answer by schema") == [("StructuredOutput", {"n": 0})]
    assert ask("hello", *nudge) == [("StructuredOutput", {"n": 0})]
    assert ask("answer without schema", *nudge) == ["I answer without the schema."]


def test_a_single_failure_is_marked_by_its_place_in_the_conversation() -> None:
    asked = request(user("fail with 529 once"), metadata={"user_id": "one"})
    failing = decide(asked)
    assert (failing.failure, shape(failing.parts)) == (529, ["recovered"])
    assert failing.once_key is not None
    assert decide(asked).once_key == failing.once_key
    other = request(user("fail with 529 once"), metadata={"user_id": "two"})
    assert decide(other).once_key not in (None, failing.once_key)
    always = decide(request(user("say a then fail with 400")))
    assert (always.failure, always.once_key) == (400, None)
    assert decide(request(user("fail with 200"))).failure is None


def test_requests_of_the_cli_itself_get_a_fitting_answer() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    titled = request(user("<session>\nhang\n</session>"), output_config={"format": {"schema": schema}})
    assert decide(titled).parts == (Text('{"title": "demo"}'),)
    compaction = "CRITICAL. Your task is to create a detailed summary of the conversation so far, paying"
    [summary] = decide(request(user("hang"), assistant(Text("a")), user(compaction))).parts
    assert summary == Text(f"<summary>\n{PREFIX}the user said so far:\nhang\n</summary>")


@pytest.mark.parametrize("odd", [{"messages": []}, {"messages": [3, {"role": "user", "content": 3}], "tools": "x"}])
def test_an_odd_request_gets_an_answer_all_the_same(odd: dict[str, Any]) -> None:
    [text] = decide(odd).parts
    assert isinstance(text, Text)
    assert text.text.startswith(PREFIX)


def test_big_numbers_are_bounded() -> None:
    [[filled]] = replies("reply with 999999999 bytes")
    assert isinstance(filled, Text)
    assert len(filled.text.encode()) == 4 * 1024 * 1024
    [[words]] = replies("stream 999999999 words")
    assert words == Words(20_000)
    assert len(replies("use 999 tools at once")[0]) == 50
    assert sum(step.seconds for step in body((Words(20_000, 1.0),), "m", 1) if hasattr(step, "seconds")) <= 600


def test_frames_and_body_carry_the_same_message() -> None:
    parts = (Thinking("hm"), Text("x" * 3_000), ToolUse("Bash", {"command": "ls"}))
    events = [json.loads(step.split(b"data: ")[1]) for step in frames(parts, "claude-x", 7) if isinstance(step, bytes)]
    [whole] = [json.loads(step) for step in body(parts, "claude-x", 7) if isinstance(step, bytes)]
    assert [event["type"] for event in events][:2] == ["message_start", "ping"]
    assert [event["type"] for event in events][-2:] == ["message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["input_tokens"] == events[-2]["usage"]["input_tokens"] == 7
    assert events[-2]["usage"] == whole["usage"]
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    written: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            fragment = [value for name, value in event["delta"].items() if name not in ("type", "signature")]
            written[event["index"]] = written.get(event["index"], "") + "".join(fragment)
    thinking, text, use = whole["content"]
    assert written == {0: thinking["thinking"], 1: text["text"], 2: json.dumps(use["input"])}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": "demo"}),
        ({"type": "array", "minItems": 2, "items": {"type": "boolean"}}, [False, False]),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 5}, 2),
        ({"type": "integer", "maximum": -4}, -4),
        ({"enum": ["x", "y"]}, "x"),
        ({"const": 9}, 9),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": "string", "minLength": 6}, "demo.."),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": ["integer", "null"]}}}, 0),
    ],
)
def test_the_least_instance_of_a_schema(schema: dict[str, Any], expected: Any) -> None:
    assert instance_of(schema) == expected


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert '"next": null' in json.dumps(instance_of(node))
