"""One spelling for characters that look alike, so that a query finds the text of a PDF.

PDF files written by browsers hold Kangxi radicals for Chinese characters, and ligatures for "fi".
Unicode's NFKC replaces both. It leaves most of the block "CJK Radicals Supplement" as it is; those
with the shape of a whole character are replaced here, as Unicode's EquivalentUnifiedIdeograph.txt
says.
"""

import re
import unicodedata

RADICALS = str.maketrans(
    "\u2ea0\u2ec1\u2ec4\u2ec5\u2ec6\u2ec9\u2ecb\u2ed1\u2ed3\u2ed4\u2ed8\u2ed9\u2eda\u2edb\u2edc"
    "\u2edd\u2ee2\u2ee3\u2ee4\u2ee5\u2ee6\u2ee7\u2ee8\u2ee9\u2eea\u2eec\u2eee\u2ef0",
    "民虎西见角贝车長长门青韦页风飞食马骨鬼鱼鸟卤麦黄黾齐齿龙",
)
# Chinese punctuation keeps its width: sentences end at it
KEPT = re.compile("[^！？，：；（）]+")  # noqa: RUF001 - they are meant


def normalized(text: str) -> str:
    """The text in NFKC and without radicals; Chinese punctuation stays as it is."""
    return KEPT.sub(lambda part: unicodedata.normalize("NFKC", part[0]), text.translate(RADICALS))
