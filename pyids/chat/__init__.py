"""A row as a conversation: formats, digest, chat template."""

from pyids.chat.template import encode as encode
