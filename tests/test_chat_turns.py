"""What of a conversation reaches the model: ends of turns, reasoning, calls, weights, system turns.

The templates are written for these tests, after the ways in which those in use differ.
"""

import pytest

from pyids.chat.formats import Turns
from pyids.chat.render import Renderer, adapt_to_system, has_loss
from pyids.chat.template import encode, encode_prompt
from pyids.errors import DataError, ModelError
from pyids.models.generate import split_last
from pyids.models.limits import Limits
from pyids.pipeline.conversations import Located, check_rows

pytest.importorskip("transformers", reason="needs the train extra")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
)
# The last turn opens with a block of reasoning, empty or not; earlier turns have none.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + m.get('reasoning_content', '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n### End\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}"
)


def make(template, specials=("<|im_start|>", "<|im_end|>"), hidden=()):
    """A byte-level tokenizer; hidden tokens are special in it, but stand in no map of it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in hidden])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", additional_special_tokens=list(specials)
    )
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer, turns):
    """The rendered text with what has a loss in [[ ]]."""
    row, text, before = encode(turns, tokenizer), "", False
    for token, now in [*zip(row.input_ids.tolist(), row.response_mask.tolist(), strict=True)]:
        text += ("[[" if now and not before else "]]" if before and not now else "") + (
            tokenizer.decode([token])
        )
        before = now
    return text + ("]]" if before else "")


def turns(*contents, **last):
    roles = ("user", "assistant") * len(contents)
    made = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    made[-1].update(last)
    return made


@pytest.mark.parametrize(
    ("template", "specials", "hidden", "end"),
    [
        (CHATML, ("<|im_start|>", "<|im_end|>"), (), "<|im_end|>"),
        (CHATML, (), ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),  # added_tokens_decoder alone
        (CHATML, (), (), "<|im_end|>"),  # plain text of the template
        (WORDS, (), (), "\n### End"),
        (CHATML.replace("<|im_end|>", ""), (), (), ""),  # nothing ends a turn
        (None, (), (), "<eos>"),
    ],
)
def test_the_end_of_a_turn_is_learnt_however_it_is_marked(template, specials, hidden, end):
    text = learnt(make(template, specials, hidden), turns("Q", "one", "R", "two"))
    assert text.count(f"[[one{end}]]") == text.count(f"[[two{end}]]") == 1, text
    assert text.count("[[") == 2


def test_what_the_template_writes_into_the_answer_is_learnt():
    tokenizer = make(THINKING)
    assert "\n[[<think>\n\n</think>\n\nb<|im_end|>]]\n" in learnt(tokenizer, turns("a", "b"))
    text = learnt(tokenizer, turns("a", "b", "c", "d", reasoning_content="hm"))
    assert "assistant\n[[b<|im_end|>]]" in text
    assert "assistant\n[[<think>\nhm\n</think>\n\nd<|im_end|>]]" in text
    # Where the prompt holds the opening, it is given, not generated.
    tokenizer.chat_template = THINKING.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
    )
    text = learnt(tokenizer, turns("a", "b", reasoning_content="hm"))
    assert "assistant\n<think>\n[[hm\n</think>\n\nb<|im_end|>]]" in text
    # A template without such a prompt.
    tokenizer.chat_template = THINKING[: THINKING.index("{% if add_generation_prompt")]
    assert "assistant\n[[<think>\n\n</think>\n\nb<|im_end|>]]" in learnt(tokenizer, turns("a", "b"))


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("key", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_a_turn_of_weight_zero_is_context(template, key):
    tokenizer = make(template)
    rows = turns("Q", "BAD", "R", "good")
    rows[1].update(key)
    rows[3]["weight"] = 1
    text = learnt(tokenizer, rows)
    assert "BAD" in text
    assert text.count("[[") == 1
    assert "[[good<|im_end|>]]" in text
    assert [has_loss(turn) for turn in rows] == [False, False, False, True]
    rows[3]["weight"] = 0
    assert "[[" not in learnt(tokenizer, rows)
    assert split_last(rows) is None


@pytest.mark.parametrize("template", [CHATML, MARKED, WORDS, None])
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_that_a_template_does_not_know_is_written_into_the_text(template, key):
    text = learnt(make(template), turns("a", "b", **{key: "because"}))
    assert "[[<think>\nbecause\n</think>\n\nb" in text
    assert text.count("because") == 1
    said = turns("a", "<think>\nbecause\n</think>\n\nb", **{key: "because"})
    assert learnt(make(template), said).count("because") == 1


def test_calls_that_a_template_does_not_know_are_written_into_the_text():
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    rows = [*turns("a", "Let me look.", tool_calls=[call]), {"role": "tool", "content": "rain"}]
    shown = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    for template in (CHATML, MARKED, WORDS, None):
        text = learnt(make(template), rows)
        assert f"[[Let me look.\n{shown}" in text
        assert "]]" in text.partition("rain")[0]
    knowing = CHATML.replace(
        "+ m['content'] +", "+ m['content'] + (m.get('tool_calls') or '') | string +"
    )
    assert "tool_call>" not in learnt(make(knowing), rows)


def test_the_prompt_is_what_the_answer_follows():
    tokenizer = make(CHATML)
    rows = turns("a", "b", "c", reasoning_content="x")
    rows[1]["reasoning_content"] = "because"
    prompt = tokenizer.decode(encode_prompt(rows[:3], tokenizer, 1000))
    assert prompt.endswith(
        "because\n</think>\n\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


# ---- templates that refuse -----------------------------------------------------------------------

SYSTEM = [{"role": "system", "content": "Be brief."}, *turns("Q", "A", "R", "B")]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (
            "fold",
            "<|im_start|>user\nBe brief.\n\nQ<|im_end|>\n<|im_start|>assistant\n[[A<|im_end|>]]",
        ),
        ("drop", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n[[A<|im_end|>]]"),
    ],
)
def test_a_system_turn_is_folded_or_dropped_where_it_is_refused(how, text, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = make(NO_SYSTEM + CHATML)
    before = learnt(tokenizer, SYSTEM[1:])
    adapt_to_system(tokenizer, "error")
    with pytest.raises(ModelError, match=r"refuses the turns 'system user .*no system turns"):
        encode(SYSTEM, tokenizer)
    adapt_to_system(tokenizer, how)
    assert learnt(tokenizer, SYSTEM).startswith(text)
    assert learnt(tokenizer, SYSTEM).count("Be brief.") == (how == "fold")
    assert learnt(tokenizer, SYSTEM[1:]) == before
    tokenizer.save_pretrained(tmp_path)  # a checkpoint takes them, too
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert learnt(again, SYSTEM) == learnt(tokenizer, SYSTEM)
    takes = make(CHATML)
    adapt_to_system(takes, how)
    assert takes.chat_template == CHATML
    assert "system\nBe brief.<|im_end|>" in learnt(takes, SYSTEM)
    named = make({"default": NO_SYSTEM + CHATML, "tool_use": CHATML})
    adapt_to_system(named, how)
    assert named.chat_template["tool_use"] == CHATML
    assert learnt(named, SYSTEM) == learnt(tokenizer, SYSTEM)


def located(*conversations):
    return [Located(f"x.jsonl line {n}", row) for n, row in enumerate(conversations, start=1)]


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (NO_SYSTEM + CHATML, SYSTEM, "x.jsonl line 4: .*no system turns: --system fold puts"),
        (
            ALTERNATE + CHATML,
            [{"role": "user", "content": "a"}, *turns("b", "c")],
            "x.jsonl line 4: .*must alternate: mend the row's turns",
        ),
        (
            ALTERNATE + CHATML,
            [SYSTEM[0], {"role": "user", "content": "a"}, *turns("b", "c")],
            "x.jsonl line 4: .*must alternate: mend the row's turns",
        ),
    ],
)
def test_a_refused_row_is_named_with_its_remedy(template, row, message):
    good = turns("a", "b")
    with pytest.raises(DataError, match=message) as error:
        check_rows(
            located(good, turns("a", "b", "c", "d"), good, row, row),
            make(template),
            Limits("m", 10_000, None),
            max_length=100,
        )
    assert "\n" not in str(error.value)


def test_every_failure_of_a_template_is_one_line():
    for body in ("{{ 1 / 0 }}", "{{ messages[99]['x'] }}", "{{ none.x.y }}", "{% for %}"):
        with pytest.raises(ModelError, match="refuses the turns 'user assistant'") as error:
            encode(turns("a", "b"), make(body))
        assert "\n" not in str(error.value)


def test_what_a_template_leaves_out_is_said(caplog):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    silent = CHATML.replace(
        "+ m['content'] +",
        "+ (m['tool_calls'][0]['function']['name'] if m.get('tool_calls') else m['content']) +",
    )
    row = Turns(turns("a", "Let me look.", tool_calls=[call]), [{"function": {"name": "weather2"}}])
    check_rows(located(row), make(silent), Limits("m", 10_000, None), max_length=100)
    assert [record.message for record in caplog.records] == [
        "x.jsonl line 1: the chat template leaves out the text beside a tool call",
        "x.jsonl line 1: the chat template does not show the tool 'weather2'",
    ]


def test_rows_that_a_model_cannot_take_are_named():
    tokenizer = make(CHATML)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    vocabulary = len(tokenizer) - 1
    rows = located(turns("a", "b"), turns("see <new>", "b"), turns("a", "b" * 90))
    check_rows(rows[:1], tokenizer, Limits("m", vocabulary, 60), max_length=100)
    with pytest.raises(DataError, match=r"x.jsonl line 2: .*token \d+ .* beyond its embedding"):
        check_rows(rows, tokenizer, Limits("m", vocabulary, None), max_length=100)
    with pytest.raises(DataError, match=r"x.jsonl line 3: .*the 60 positions.*--max-length 60"):
        check_rows(rows[::2], tokenizer, Limits("m", vocabulary, 60), max_length=100)
    check_rows(rows[::2], tokenizer, Limits("m", vocabulary, 60), max_length=60)


def test_a_renderer_knows_a_template_once():
    tokenizer = make(CHATML)
    facts = Renderer.of(tokenizer, turns("a", "b")).facts
    assert Renderer.of(tokenizer, turns("c", "d")).facts is facts
    assert facts.closing == "<|im_end|>"
    assert facts.reasoning_key is None
    assert make(THINKING).chat_template != CHATML
