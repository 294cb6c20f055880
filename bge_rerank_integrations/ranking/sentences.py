"""Split a text into sentences by punctuation, line breaks, mark-up and length, in any script.

Sentence terminators, closing marks and marks after which a sentence goes on are Unicode's
properties (UAX #29, Sentence_Break), as the `regex` library knows them. One set of rules covers all
languages and mixtures, because a passage does not name its language. In doubt, two sentences stay
together.
"""

import unicodedata

import regex

from bge_rerank_integrations.base.deadline import cancellable, check_time

Span = tuple[int, int]
"""Start and end in the characters of a text, the end exclusive."""

MAX_CHARACTERS = 600
"""Longer sentences are divided, such as a transcript without full stops."""

WRAPPED_COLUMNS = 60
"""A line of at least this many columns was wrapped, unless it ends a sentence."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A sentence continues after these.
_TITLES = _words(
    """
    adm capt cf col dr e.g esp gen gov hon i.e lt maj messrs mr mrs ms prof rep rev sen sgt vs viz
    """
)
# It continues after these if a number follows.
_NUMBERED = _words(
    """
    approx art ca ch cl eq eqs fig figs no nos op p para pp ref refs sec sect v vol vols
    """
)
# It continues after these, initials and acronyms unless one of the openers follows.
_SHORT = _words(
    """
    al apr assoc aug ave bldg blvd bros co corp dec dept div ed eds est etc feb ft govt hr hrs inc
    jan jr jul jun kg km lb lbs ltd mfg misc mph mt nov oct rd sep sept sq sr st tel univ wk yr yrs
    """
)
_INITIALS = regex.compile(r"[^\W\d_]|(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,2}")  # J, U.S, p.m, Ph.D
_OPENERS = _words(
    """
    After All Although An And As At Because But By During Each Every For From He Her Here His How
    However If In It Its Many More Most My No On One Our Several She Since So Some That The Their
    Then There These They This Those To Under Until We What When Where Which While Who Why With You
    Your
    """
)

# Scripts without spaces between sentences.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_CLOSERS = r"[\p{Sentence_Break=Close}--\p{Ps}--\p{Pi}]*"
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}\"'*_]*", regex.V1)
_GOES_ON = regex.compile(r"[\p{Sentence_Break=SContinue}\p{Pe}]")
_BULLETS = "\u2022\u2023\u25cf\u25aa\u25e6\u25a0\u25cb"
_BREAKS = r"\n\r\v\f\x85\u2028\u2029"
_BLOCKS = "article|blockquote|caption|dd|div|dl|dt|h[1-6]|li|ol|p|pre|section|table|title|tr|ul"
_END = regex.compile(
    # a row of a table, whole: of Markdown, and of HTML with the end tags that follow it
    rf"(?P<row>^[ \t]*\|[^{_BREAKS}]*"
    r"|(?i:<tr)\b[^<]*+(?:<(?!(?i:/?tr)\b)[^<]*+)*+(?i:</tr)\s*>(?:\s*</\w+\s*>)*+)"
    rf"|(?P<block>(?i:</(?:{_BLOCKS})\s*>|<[bh]r\s*/?>)(?:\s*</\w+\s*>)*+)"
    rf"|(?P<full>[\p{{Sentence_Break=STerm}}--[!?]]+{_CLOSERS})"
    rf"|(?P<dots>(?:\.{{2,}}|\u2026+){_CLOSERS})"
    rf"|(?P<mark>[!?][.!?]*{_CLOSERS})"
    rf"|(?P<stop>\p{{Sentence_Break=ATerm}}{_CLOSERS})"
    rf"|(?P<line>\r\n|[{_BREAKS}])"
    rf"|(?P<bullet>\s(?=[{_BULLETS}]\s))",
    regex.V1 | regex.MULTILINE,
)
_LINE = rf"[^{_BREAKS}]*"
_LINE_BEFORE, _LINE_AFTER = regex.compile(_LINE, regex.REVERSE), regex.compile(_LINE)
_ITEM = regex.compile(
    rf"\s*(?:[-*+\u2013\u2014\u00b7#>|{_BULLETS}]|\(?(?:\d{{1,3}}|[A-Za-z]|[ivx]+)[.)\u3001]\s"
    r"|[\u2460-\u2473]|[\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341]+\u3001)"
)
_WORD_BEGINS = regex.compile(r"[\s()\[\]{}\"'\u2018\u201c/\u2013\u2014]")
# A long text is divided after a clause, otherwise at a space: the nearest before or after a place.
_WEAK = [
    (regex.compile(weak, regex.REVERSE), regex.compile(weak))
    for weak in (r"[;:]\s|[\uff1b\uff1a]", r",\s|[\uff0c\u3001]", r"\s")
]
DIVIDING = "passages were divided into sentences"


def split_sentences(text: str) -> list[Span]:
    """The start and end of each sentence, in order, without surrounding white space.

    Sentences do not overlap, and every other character belongs to one. An abbreviation, decimal,
    enumeration or quotation does not end a sentence; a blank line, a list item or a line break
    other than wrapping does. A sentence longer than `MAX_CHARACTERS` is divided near its middle,
    at a semicolon, comma or space. Raises `ScoringTimeout` if a time limit passes.
    """
    cased = text != text.lower()
    starts = [0]
    for match in cancellable(_END.finditer(text), DIVIDING):
        if _ends(text, starts[-1], match, cased=cased):
            starts.append(match.end())
    return [
        part
        for start, end in cancellable(zip(starts, [*starts[1:], len(text)], strict=True), DIVIDING)
        for part in _short_enough(text, *_stripped(text, start, end))
    ]


def _ends(text: str, begin: int, match: regex.Match[str], *, cased: bool) -> bool:
    """Whether a sentence that begins at `begin` ends with this mark."""
    kind, end = match.lastgroup, match.end()
    if kind == "line":
        return _line_ends(text, match.start(), end, cased=cased)
    if kind in ("row", "block", "bullet"):
        return True
    if kind == "full" or _GOES_ON.match(text, end):
        return not _GOES_ON.match(text, end)
    following = _OPENING.sub("", text[end : end + 60].lstrip(), count=1)
    wide = match[0].startswith("\uff0e") and not text[end : end + 1].isalnum()
    if wide or _UNSPACED.match(text, end):
        return kind != "dots" and not _abbreviates(text, begin, match, following)
    if not text[end : end + 1].isspace() or (cased and following[:1].islower()):
        return False
    return not _abbreviates(text, begin, match, following)


def _abbreviates(text: str, begin: int, match: regex.Match[str], following: str) -> bool:
    """Whether the full stop belongs to the word before it: "Dr.", "U.S.", the "1." of a list."""
    if match.lastgroup != "stop":
        return False
    before = text[max(begin, match.start() - 40) : match.start()]
    word = _WORD_BEGINS.split(before)[-1].lower()
    if word.isdigit():
        return len(word) <= 3 and not text[begin : match.start() - len(word)].strip()
    if word in _TITLES or (word in _NUMBERED and following[:1].isdigit()):
        return True
    opener = regex.match(r"[A-Za-z]*", following)
    return (word in _SHORT or _INITIALS.fullmatch(word) is not None) and not (
        opener is not None and opener.group() in _OPENERS
    )


def _line_ends(text: str, start: int, end: int, *, cased: bool) -> bool:
    """Whether the line break from `start` to `end` ends a sentence rather than wraps it."""
    line = _LINE_BEFORE.match(text, max(0, start - 4 * WRAPPED_COLUMNS), start)[0].rstrip()
    following = _LINE_AFTER.match(text, end, end + 40)[0]
    if not line or not following.strip() or _ITEM.match(following):
        return True
    if (cased and following.lstrip()[0].islower()) or line[-1] in ",\uff0c\u3001":
        return False
    return _columns(line) < WRAPPED_COLUMNS


def _columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in line)


def _short_enough(text: str, start: int, end: int) -> list[Span]:
    """The span, divided into parts of at most `MAX_CHARACTERS`; nothing for an empty span."""
    if end - start <= MAX_CHARACTERS:
        return [(start, end)] if start < end else []
    check_time(DIVIDING)
    middle, quarter = (start + end) // 2, (end - start) // 4
    for before, after in _WEAK:
        near = (
            before.search(text, middle - quarter, middle),
            after.search(text, middle - 1, middle + quarter),  # of one or two characters
        )
        if found := [match.end() for match in near if match]:
            cut = min(found, key=lambda place: abs(place - middle))
            break
    else:
        cut = middle
        while cut < middle + quarter and unicodedata.category(text[cut])[0] in "MC":
            cut += 1  # neither between a letter and its accents nor inside a joined emoji
    return [
        part
        for first, last in ((start, cut), (cut, end))
        for part in _short_enough(text, *_stripped(text, first, last))
    ]


def _stripped(text: str, start: int, end: int) -> Span:
    """The span without surrounding white space."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())
