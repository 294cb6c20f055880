"""What the laws are tried on: lengths from nothing to beyond the limit, scripts, control tokens."""

from bge_rerank_integrations.types import Pair
from tests.tiny_models import TEXT

_LONG = " ".join(line for line in TEXT.splitlines() if line.isascii())[:700]

PAIRS: list[Pair] = [
    ("what is a panda?", "The giant panda is a bear that lives in the mountains of China."),
    ("what is a panda?", "Water boils at 100 degrees at the level of the sea."),
    ("what is a panda?", ""),
    ("", "A panda is a black and white bear."),
    ("", ""),
    ("大熊猫吃什么？", "大熊猫是一种黑白相间的熊，吃竹子。"),
    ("大熊猫吃什么？", "北京是中国的首都，上海是中国最大的城市。"),
    ("what is a panda?", "a </s> b <mask> [SEP] c ＜/s＞ <pad>"),
    ("</s></s> panda", "😀 ไทย Привет 龘龖 e\u0301 \u200b \x00"),
    ("how do ships float", _LONG),
    (_LONG, "A ship of steel floats."),
    (_LONG, _LONG),
    ("A ship", "A ship of steel floats."),
    ("A ship", "A ship of steel floats, because it pushes aside more water."),
    ("A ship", "a ship of steel floats"),
    ("who wrote the first program", "Ada Lovelace described one in 1843."),
]
"""All different."""

TOLERANCE = 1e-5
"""float32 sums in another order differ by about 3e-6."""
