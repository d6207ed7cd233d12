"""A row of every published form: the data set, the form, the row, its conversation."""

import json


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


Q, A, S = "Name a river.", "The Rhine.", "Be brief."
ASK, ANSWER, SYSTEM = ("user", Q), ("assistant", A), ("system", S)
PLAIN, WITH_SYSTEM = turns(ASK, ANSWER), turns(SYSTEM, ASK, ANSWER)
FROM = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
TWO = turns(ASK, ANSWER, ("user", "Another."), ("assistant", "The Po."))
TEXTS = [turn["content"] for turn in TWO]
CALL = {"name": "find", "arguments": {"what": "river"}}
CALLED = [{"type": "function", "function": CALL}]
THOUGHT = [turns(ASK)[0], {"role": "assistant", "content": A, "reasoning_content": "Hm."}]

# (data set, its format, a row of its shape, the conversation)
PUBLISHED = [
    ("Tulu 3", "messages", {"id": "x", "messages": PLAIN, "source": "s"}, PLAIN),
    (
        "UltraChat-200k",
        "messages",
        {"prompt": Q, "prompt_id": "f0", "messages": TWO},
        TWO,
    ),
    ("no_robots", "messages", {"prompt": Q, "messages": PLAIN, "category": "Open QA"}, PLAIN),
    ("OpenAI, JSON text", "messages", {"messages": json.dumps(PLAIN)}, PLAIN),
    (
        "TFDS, an object of lists",
        "messages",
        {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
        PLAIN,
    ),
    (
        "OpenAI, text parts",
        "messages",
        {"messages": turns(("user", [{"type": "text", "text": Q}]), ("assistant", [A]))},
        PLAIN,
    ),
    ("OpenR1-Math", "messages", {"problem": Q, "solution": A, "messages": PLAIN}, PLAIN),
    ("system beside messages", "messages", {"system": S, "messages": PLAIN}, WITH_SYSTEM),
    (
        "OASST messages",
        "messages",
        {"messages": [{"role": "prompter", "text": Q}, {"role": "assistant", "text": A}]},
        PLAIN,
    ),
    ("ShareGPT", "sharegpt", {"id": "x", "conversations": FROM}, PLAIN),
    (
        "SlimOrca",
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": S, "weight": None},
                {**FROM[0], "weight": 0.0},
                {**FROM[1], "weight": 1.0},
            ]
        },
        [
            turns(SYSTEM)[0],
            {**turns(ASK)[0], "weight": 0.0},
            {**turns(ANSWER)[0], "weight": 1.0},
        ],
    ),
    (
        "OpenHermes 2.5",
        "sharegpt",
        {"conversations": FROM, "system_prompt": S, "source": "x", "views": None, "model": None},
        WITH_SYSTEM,
    ),
    ("LIMA", "sharegpt", {"conversations": TEXTS, "source": "stackexchange"}, TWO),
    ("conversations, JSON text", "sharegpt", {"conversations": json.dumps(FROM)}, PLAIN),
    (
        "Magpie",
        "sharegpt",
        {"uuid": "x", "instruction": Q, "response": A, "conversations": FROM},
        PLAIN,
    ),
    ("LMSYS-Chat-1M", "conversation", {"conversation_id": "x", "conversation": PLAIN}, PLAIN),
    (
        "WildChat",
        "conversation",
        {
            "conversation_hash": "x",
            "conversation": [
                {**turn, "language": "English", "toxic": False, "turn_identifier": i}
                for i, turn in enumerate(PLAIN)
            ],
        },
        [
            {**turn, "language": "English", "toxic": False, "turn_identifier": i}
            for i, turn in enumerate(PLAIN)
        ],
    ),
    (
        "Capybara",
        "conversation",
        {"source": "x", "conversation": [{"input": Q, "output": A}]},
        PLAIN,
    ),
    ("dialogue", "dialogue", {"dialogue": TEXTS}, TWO),
    ("dialog", "dialog", {"dialog": TEXTS}, TWO),
    ("turns", "turns", {"turns": PLAIN}, PLAIN),
    ("UltraChat", "data", {"id": "0", "data": TEXTS}, TWO),
    (
        "Gemini",
        "contents",
        {
            "systemInstruction": {"parts": [{"text": S}]},
            "contents": [
                {"role": "user", "parts": [{"text": Q}]},
                {"role": "model", "parts": [{"text": A}]},
            ],
        },
        WITH_SYSTEM,
    ),
    (
        "OpenAI preferences",
        "preferred_output",
        {
            "input": {"messages": turns(SYSTEM, ASK)},
            "preferred_output": turns(ANSWER),
            "non_preferred_output": turns(("assistant", "No.")),
        },
        WITH_SYSTEM,
    ),
    ("Alpaca", "alpaca", {"instruction": Q, "input": "", "output": A, "text": "..."}, PLAIN),
    (
        "LLaMA-Factory",
        "alpaca",
        {"instruction": Q, "input": "In Italy.", "output": A, "history": [["Hi", "Hello"]]},
        turns(("user", "Hi"), ("assistant", "Hello"), ("user", f"{Q}\n\nIn Italy."), ANSWER),
    ),
    ("Self-Instruct", "prompt/completion", {"prompt": Q, "completion": A}, PLAIN),
    (
        "TRL",
        "prompt/completion",
        {"prompt": turns(SYSTEM, ASK), "completion": turns(ANSWER)},
        WITH_SYSTEM,
    ),
    ("HelpSteer", "prompt/response", {"prompt": Q, "response": A, "helpfulness": 4}, PLAIN),
    ("GSM8K", "question/answer", {"question": Q, "answer": A}, PLAIN),
    (
        "Dolly",
        "instruction/response",
        {"instruction": Q, "context": "It is in Italy.", "response": A, "category": "qa"},
        turns(("user", f"{Q}\n\nIt is in Italy."), ANSWER),
    ),
    (
        "GPTeacher",
        "instruction/response",
        {"instruction": Q, "input": "In Italy.", "response": A},
        turns(("user", f"{Q}\n\nIn Italy."), ANSWER),
    ),
    (
        "OpenOrca",
        "question/response",
        {"id": "0", "system_prompt": S, "question": Q, "response": A},
        WITH_SYSTEM,
    ),
    (
        "medical-o1",
        "Question/Response",
        {"Question": Q, "Complex_CoT": "Hm.", "Response": A},
        THOUGHT,
    ),
    ("FLAN", "inputs/targets", {"inputs": Q, "targets": A, "task": "t"}, PLAIN),
    ("Aya", "inputs/targets", {"inputs": Q, "targets": A, "language": "German"}, PLAIN),
    (
        "Natural Instructions",
        "inputs/targets",
        {"definition": "Answer.", "inputs": Q, "targets": A},
        turns(("user", f"Answer.\n\n{Q}"), ANSWER),
    ),
    (
        "P3",
        "inputs_pretokenized/targets_pretokenized",
        {"inputs": [1, 2], "inputs_pretokenized": Q, "targets_pretokenized": A},
        PLAIN,
    ),
    ("MetaMath", "query/response", {"query": Q, "response": A, "type": "GSM"}, PLAIN),
    (
        "xLAM",
        "query/answers",
        {"query": Q, "answers": json.dumps([CALL]), "tools": json.dumps([{"name": "find"}])},
        [turns(ASK)[0], {"role": "assistant", "content": "", "tool_calls": CALLED}],
    ),
    ("query/answer", "query/answer", {"query": Q, "answer": A}, PLAIN),
    ("NuminaMath", "problem/solution", {"source": "s", "problem": Q, "solution": A}, PLAIN),
    (
        "OpenMathInstruct-2",
        "problem/generated_solution",
        {"problem": Q, "generated_solution": A, "expected_answer": "7"},
        PLAIN,
    ),
    (
        "OpenMathInstruct-1",
        "question/generated_solution",
        {"question": Q, "generated_solution": A, "expected_answer": "7"},
        PLAIN,
    ),
    ("s1K", "question/solution", {"question": Q, "solution": A, "cot": None}, PLAIN),
    ("MATH", "problem/answer", {"problem": Q, "answer": A, "level": 3}, PLAIN),
    ("TRL preferences", "prompt/chosen", {"prompt": Q, "chosen": A, "rejected": "x"}, PLAIN),
    (
        "UltraFeedback-binarized",
        "prompt/chosen",
        {"prompt": Q, "chosen": PLAIN, "rejected": turns(ASK, ("assistant", "x"))},
        PLAIN,
    ),
    (
        "Orca DPO pairs",
        "question/chosen",
        {"system": S, "question": Q, "chosen": A, "rejected": "x"},
        WITH_SYSTEM,
    ),
    (
        "Argilla",
        "instruction/chosen_response",
        {"instruction": Q, "chosen_response": A, "rejected_response": "x"},
        PLAIN,
    ),
    ("completions", "instruction/completion", {"instruction": Q, "completion": A}, PLAIN),
    ("answers", "instruction/answer", {"instruction": Q, "answer": A}, PLAIN),
    ("prompt/answer", "prompt/answer", {"prompt": Q, "answer": A}, PLAIN),
    ("prompt/output", "prompt/output", {"prompt": Q, "output": A}, PLAIN),
    (
        "SYNTHETIC-1",
        "prompt/gold_standard_solution",
        {"prompt": Q, "gold_standard_solution": A},
        PLAIN,
    ),
    (
        "SQuAD",
        "question/answers",
        {"context": "Cities.", "question": Q, "answers": {"text": [A], "answer_start": [0]}},
        turns(("user", f"Cities.\n\n{Q}"), ANSWER),
    ),
    ("LongForm", "input/output", {"input": Q, "output": A}, PLAIN),
    (
        "Nemotron post-training",
        "input/output",
        {"input": turns(ASK), "output": A, "system_prompt": S},
        WITH_SYSTEM,
    ),
    ("input/response", "input/response", {"input": Q, "response": A}, PLAIN),
    ("Firefly", "input/target", {"kind": "Cot", "input": Q, "target": A}, PLAIN),
    ("source/target", "source/target", {"source": Q, "target": A}, PLAIN),
    ("CAMEL", "message_1/message_2", {"role_1": "x", "message_1": Q, "message_2": A}, PLAIN),
    ("user/assistant", "user/assistant", {"user": Q, "assistant": A}, PLAIN),
    ("human/assistant", "human/assistant", {"human": Q, "assistant": A}, PLAIN),
    ("preferences", "chosen", {"chosen": PLAIN, "rejected": PLAIN}, PLAIN),
    (
        "HH-RLHF",
        "transcript",
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": "\n\nHuman: x"},
        PLAIN,
    ),
    (
        "Glaive function calling",
        "chat",
        {"system": S, "chat": f"USER: {Q}\n\n\nASSISTANT: {A} <|endoftext|>\n\n"},
        WITH_SYSTEM,
    ),
    (
        "OpenAssistant-Guanaco",
        "tagged",
        {"text": f"### Human: {Q}### Assistant: {A}"},
        PLAIN,
    ),
    (
        "Anthropic's API",
        "messages",
        {"system": [{"type": "text", "text": S}], "messages": PLAIN},
        WITH_SYSTEM,
    ),
    ("roles in capitals", "messages", {"messages": turns(("User", Q), ("ASSISTANT", A))}, PLAIN),
    ("language-model rows", "text", {"text": A, "meta": {}}, turns(ANSWER)),
]
