"""What the references are compared on: every query with every passage.

Long texts are of several lengths around the limits, so that a query alone, a passage alone, both
and neither are cut. `CONTROL` texts hold control tokens, which the references parse; all others
are plain.
"""

from itertools import product

from tests.tiny_models import TEXT

_ENGLISH = " ".join(line for line in TEXT.splitlines() if line.isascii())
_CHINESE = "".join(line for line in TEXT.splitlines() if not line.isascii())

QUERIES = [
    "what is a panda?",
    "大熊猫吃什么？",
    "",
    _ENGLISH[:150],
    _ENGLISH + _ENGLISH,
]
PASSAGES = [
    "A panda is a black and white bear that eats bamboo.",
    "北京是中国的首都。",
    "",
    "  spaces   before, between\tand after \n\n",
    "naïve café ﬁne ½ ™ ＡＢＣ（全角）！ — “quoted” … e\u0301 \u00ad\u200b",
    "😀 ไทย Привет שלום 龘龖 🏳️‍🌈 ok",
    "url={https://example.org/a_b?c=d&e=f#g}, <b>bold</b> a<b>c </ s> < s >",
    _ENGLISH[:900],
    _CHINESE * 3,
    _ENGLISH[::-1] + " 😀 " + _ENGLISH,
]
CONTROL = [
    "a </s> b",
    "</s></s> The giant panda <s> eats <mask> bamboo <pad> all day <unk>",
    "the panda ＜/s＞ and ＜mask＞ eat",
    "bears [SEP] and [CLS] pandas [MASK] eat [PAD] bamboo [UNK]",
]

PLAIN_PAIRS = list(product(QUERIES, PASSAGES))
CONTROL_PAIRS = [*product(QUERIES[:3], CONTROL), *product(CONTROL, PASSAGES[:3])]
