"""Response masks on the chat formats in use, truncation, embedding text.

The templates are written for these tests: the control tokens and the order of the formats, in our
own words.
"""

import copy

import numpy as np
import pytest

from pyids.chat.formats import Turns
from pyids.chat.render import response_length, said_in
from pyids.chat.template import Encoded, encode, encode_prompt, text_of, truncate, with_turns
from pyids.errors import ModelError
from pyids.models.endpoint import Endpoint
from pyids.models.judge import Judge
from pyids.scoring.cache import content_hash

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The system prompt moves into the LAST user turn: earlier prefixes are rewritten.
MISTRAL = (
    "{%- set ns = namespace(system='', last=-1) -%}"
    "{%- for m in messages -%}{%- if m['role'] == 'system' -%}{%- set ns.system = m['content'] -%}"
    "{%- elif m['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{{ bos_token }}{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}[INST] "
    "{%- if loop.index0 == ns.last and ns.system %}{{ ns.system + '\n\n' }}{% endif -%}"
    "{{ m['content'] }}[/INST]"
    "{%- elif m['role'] == 'assistant' -%}{{ ' ' + m['content'] + eos_token }}"
    "{%- endif -%}{%- endfor -%}"
)
# A tool's result follows a call, never an answer; turns must alternate but for tools.
MISTRAL_TOOLS = (
    "{{ bos_token }}{%- set ns = namespace(expected='user') -%}{%- for m in messages -%}"
    "{%- if m['role'] == 'tool' -%}[TOOL_RESULTS]{{ m['content'] }}[/TOOL_RESULTS]"
    "{%- elif m['role'] == 'assistant' and m.get('tool_calls') -%}"
    "[TOOL_CALLS]{{ m['tool_calls'] | map(attribute='function') | list | tojson }}{{ eos_token }}"
    "{%- else -%}"
    "{%- if m['role'] != ns.expected %}{{ raise_exception('turns must alternate') }}{% endif -%}"
    "{%- set ns.expected = 'assistant' if m['role'] == 'user' else 'user' -%}"
    "{%- if m['role'] == 'user' -%}[INST]{{ m['content'] }}[/INST]"
    "{%- else -%}{{ ' ' + m['content'] + eos_token }}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}"
)
# Reasoning is dropped from all turns before the last question.
QWEN = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages if m['role'] == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endfor -%}"
    "{%- set seen = namespace(users=-1) -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{%- set seen.users = seen.users + 1 -%}{%- endif -%}"
    "{%- set body = m['content'] -%}"
    "{%- if m['role'] == 'assistant' and seen.users < ns.last and '</think>' in body -%}"
    "{%- set body = body.split('</think>')[1].lstrip('\n') -%}{%- endif -%}"
    "{{ '<|im_start|>' + m['role'] + '\n' + body }}"
    "{%- for call in m.get('tool_calls', []) -%}"
    "{{ '\n<tool_call>\n' + (call | tojson) + '\n</tool_call>' }}{%- endfor -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
)

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And of Italy? Not Paris."},
    {"role": "assistant", "content": "Rome, of course."},
]


@pytest.fixture(scope="module")
def tokenizers():
    """Byte-level tokenizers that differ in template and control tokens only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(template, specials, eos, bos=None):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {c: i for i, c in enumerate(alphabet)}
        core = Tokenizer(models.BPE(vocabulary, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            eos_token=eos,
            bos_token=bos,
            additional_special_tokens=[t for t in specials if t not in (eos, bos)],
        )
        tokenizer.chat_template = template
        return tokenizer

    chatml = ["<|im_start|>", "<|im_end|>"]
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return {
        "chatml": make(CHATML, chatml, "<|im_end|>"),
        "chatml-marked": make(CHATML_MARKED, chatml, "<|im_end|>"),
        "llama3": make(LLAMA3, headers, "<|eot_id|>", "<|begin_of_text|>"),
        "mistral": make(MISTRAL, ["[INST]", "[/INST]"], "</s>", "<s>"),
        "mistral-tools": make(
            MISTRAL_TOOLS,
            ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
            "</s>",
            "<s>",
        ),
        "qwen": make(QWEN, chatml, "<|im_end|>"),
        "none": make(None, [], "<|endoftext|>"),
    }


def segments(encoded, tokenizer):
    """The masked text, one string a run of response tokens."""
    mask = np.concatenate([[False], encoded.response_mask, [False]])
    edges = np.flatnonzero(mask[1:] != mask[:-1]).reshape(-1, 2)
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in edges]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["Paris<|im_end|>", "Rome, of course.<|im_end|>"]),
        ("chatml-marked", ["Paris<|im_end|>", "Rome, of course.<|im_end|>"]),
        ("llama3", ["Paris<|eot_id|>", "Rome, of course.<|eot_id|>"]),
        ("mistral", ["Paris</s>", "Rome, of course.</s>"]),
        ("qwen", ["Paris<|im_end|>", "Rome, of course.<|im_end|>"]),
        ("none", ["Paris<|endoftext|>", "Rome, of course.<|endoftext|>"]),
    ],
)
def test_mask_covers_the_answers_and_their_end(tokenizers, name, expected):
    tokenizer = tokenizers[name]
    assert segments(encode(TURNS, tokenizer), tokenizer) == expected


@pytest.mark.parametrize("name", ["chatml", "chatml-marked", "llama3", "mistral", "qwen", "none"])
def test_ids_are_the_templates_own(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = encode(TURNS, tokenizer).input_ids.tolist()
    if name == "none":
        assert tokenizer.decode(ids) == (
            "System: Be brief.\n\nUser: What is the capital of France?\n\nAssistant: Paris"
            "<|endoftext|>\n\nUser: And of Italy? Not Paris.\n\n"
            "Assistant: Rome, of course.<|endoftext|>"
        )
    else:
        assert ids == tokenizer.apply_chat_template(TURNS, return_dict=False)


def test_reasoning_that_the_template_drops_is_not_masked(tokenizers):
    tokenizer = tokenizers["qwen"]
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>easy</think>\n4"},
        {"role": "user", "content": "3+3?"},
        {"role": "assistant", "content": "<think>six</think>\n6"},
    ]
    assert segments(encode(turns, tokenizer), tokenizer) == [
        "4<|im_end|>",
        "<think>six</think>\n6<|im_end|>",
    ]


def test_tool_calls_are_the_assistants_and_tool_results_are_not(tokenizers):
    tokenizer = tokenizers["qwen"]
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {}}]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    call, answer = segments(encode(turns, tokenizer), tokenizer)
    assert '"name": "weather"' in call
    assert call.endswith("</tool_call><|im_end|>")
    assert answer == "It rains.<|im_end|>"


def test_a_template_that_wants_a_call_before_a_tools_result(tokenizers):
    tokenizer = tokenizers["mistral-tools"]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Welcome."},
    ]
    assert segments(encode(turns, tokenizer), tokenizer) == [
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]</s>',
        "It rains.</s>",
        "Welcome.</s>",
    ]


def test_tools_are_the_templates_to_render(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["chatml"])
    shown = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    tools = [{"type": "function", "function": {"name": "weather"}}]
    offered = Turns(TURNS, tools)
    header = '<|im_start|>system\n[{"type": "function", "function": {"name": "weather"}}]<|im_end|>'
    for template in (CHATML, CHATML_MARKED):
        for tokenizer.chat_template in (
            shown + template,
            {"default": template, "tool_use": shown + template},
        ):
            encoded = encode(offered, tokenizer)
            assert tokenizer.decode(encoded.input_ids).startswith(header)
            answers = ["Paris<|im_end|>", "Rome, of course.<|im_end|>"]
            assert segments(encoded, tokenizer) == answers
            assert "weather" not in tokenizer.decode(encode(TURNS, tokenizer).input_ids)
            prompt = encode_prompt(with_turns(offered, offered[:2]), tokenizer, 1000)
            assert "weather" in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    "answer", ["", " padded ", "PYIDSRESPONSE", "Paris<|im_end|>\nParis", "é💡"]
)
def test_odd_answers(tokenizers, answer):
    tokenizer = tokenizers["chatml"]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    assert segments(encode(turns, tokenizer), tokenizer) == [answer + "<|im_end|>"]


def test_a_refusing_template_is_a_model_error(tokenizers):
    tokenizer = tokenizers["chatml"]
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('only users may speak') }}"
    try:
        with pytest.raises(
            ModelError, match=r"refuses the turns 'system user.*only users may speak"
        ):
            encode(TURNS, tokenizer)
    finally:
        tokenizer.chat_template = template


def make(prompt, response):
    ids = np.arange(prompt + response)
    return Encoded(ids, ids >= prompt)


@pytest.mark.parametrize(
    ("prompt", "response", "limit", "kept"),
    [
        (5, 5, 10, (0, 10)),  # fits
        (20, 4, 10, (14, 24)),  # long prompt: its left goes
        (3, 30, 10, (0, 10)),  # long response: its right goes
        (20, 20, 10, (15, 25)),  # both: half each
        (20, 1, 2, (19, 21)),
    ],
)
def test_truncate(prompt, response, limit, kept):
    cut = truncate(make(prompt, response), limit)
    assert cut.input_ids.tolist() == list(range(*kept))
    assert cut.response_mask.sum() > 0


@pytest.mark.parametrize("name", ["chatml", "chatml-marked"])
def test_long_rows_are_cut_without_a_warning(tokenizers, name, monkeypatch, caplog):
    from transformers.utils import logging

    tokenizer = tokenizers[name]
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    logging.enable_propagation()
    try:
        row = encode(TURNS, tokenizer, 8)
        encode_prompt(TURNS[:-1], tokenizer, 8)
    finally:
        logging.disable_propagation()
    assert len(row.input_ids) == 8
    assert not caplog.records


def test_text_of_joins_the_turns():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert text_of(turns) == "a"
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    assert text_of([*turns, {"role": "assistant", "content": parts}]) == "a\nbc"


CALL = {"type": "function", "function": {"name": "find", "arguments": {"what": "river"}}}


@pytest.mark.parametrize(
    "change",
    [
        {"reasoning_content": "Hm."},
        {"thinking": "Hm."},
        {"tool_calls": [CALL]},
        {"tool_calls": [CALL], "content": ""},
    ],
)
def test_what_is_embedded_counted_and_judged_has_reasoning_and_calls(change):
    """Rows that differ in them alone are not alike, nor near-duplicates for certain."""
    plain = [{"role": "user", "content": "Name one."}, {"role": "assistant", "content": "Rhine."}]
    row = [plain[0], {**plain[1], **change}]
    said = "Hm." if "tool_calls" not in change else '"name": "find", "arguments": {"what": "river"}'
    assert said not in text_of(plain)
    assert said in text_of(row)
    assert said_in(row[1]) in text_of(row)
    assert response_length(row) == len(said_in(row[1]))
    assert content_hash(row) != content_hash(plain)
    judge = Judge(Endpoint("http://127.0.0.1:9/v1", "m"))
    assert said in judge._fill(row)


def test_rows_that_differ_in_the_tools_on_offer_are_not_embedded_alike():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    offers = [Turns(turns, tools) for tools in ([CALL], [{"name": "other"}], [{"no": "name"}])]
    assert [text_of(row) for row in offers] == ["a\nb\nfind", "a\nb\nother", "a\nb"]


def test_what_a_template_may_show_beside_is_part_of_the_content_that_is_scored():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    named = [{**turns[0], "name": "Ann"}, turns[1]]
    timed = [{**turns[0], "timestamp": "12:00"}, turns[1]]
    assert content_hash(named) != content_hash(turns) == content_hash(timed)
