"""Pages as a test reads them."""

import base64
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "circle", "path", "polygon", "rect", "input"}


class Page(HTMLParser):
    """What a page says, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.downloads, self.words, self.tags = [], [], {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if "download" in named:
            self.downloads[named["download"]] = base64.b64decode(named["href"].partition(",")[2])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
