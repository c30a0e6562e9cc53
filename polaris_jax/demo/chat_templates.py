"""Chat templates that the package brings: ChatML, as the recipe's example input shows it."""

from __future__ import annotations

# One turn is `<|im_start|>ROLE\nTEXT<|im_end|>\n`; nothing is added that the messages do not hold
# (Qwen2.5's own template inserts a system turn).
# Source: POLARIS (blog, "example input").
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
