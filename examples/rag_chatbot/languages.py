"""Whether a model was trained to read a text, by the text's script.

A model gives a number for any text. For a text in a language that it never saw, the number has no
meaning, so the chatbot neither embeds nor reranks such a text, and says so.
"""

import re

from bge_rerank_integrations.base.models import find_model

LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
SCRIPTS = {"English": LATIN, "Chinese": HAN}


def languages_of(model: str) -> str | None:
    """The languages by the table of models; None for a model that is not in it."""
    spec = find_model(model)
    return None if spec is None else spec.languages


def reads(model: str, text: str) -> bool:
    """False if the model is known for languages in whose scripts most letters are not.

    Languages of one script are not distinguished: French counts as English. Texts without letters
    and models that are not in the table count as readable.
    """
    languages = languages_of(model)
    known = [SCRIPTS.get(language) for language in (languages or "any").split(", ")]
    scripts = [script for script in known if script is not None]
    letters = sum(character.isalpha() for character in text)
    if None in known or not letters:
        return True
    return sum(len(script.findall(text)) for script in scripts) * 2 > letters
