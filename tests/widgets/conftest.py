"""What Markdown, and Streamlit after it, make of a text."""

import re

from markdown_it import MarkdownIt

#: What Streamlit looks for in the text that Markdown leaves: icons, emoji, addresses.
FOUND_LATER = re.compile(
    r":material/\w+:|:streamlit:|:\+1:|:-1:|:[\w-]+:|(https?://|www(?=\.))[-.\w]+|[-.\w+]+@[-\w]+(\.[-\w]+)+",
    re.IGNORECASE,
)
#: What it looks for beside Markdown: formulas, and directives such as colours.
FOUND_BEFORE = re.compile(r"(?<!\\)\$|:\w+\[")


def read(text):
    """What Markdown makes of a line: the kinds of its parts, and their text."""
    tokens = MarkdownIt("commonmark").enable("strikethrough").parse(text)
    inline = [part for token in tokens for part in token.children or ()]
    return {token.type for token in tokens}, {part.type for part in inline}, "".join(part.content for part in inline)
