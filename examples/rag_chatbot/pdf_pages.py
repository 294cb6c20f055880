"""The text of a PDF's pages, as a program of its own: python pdf_pages.py FILE PAGES CHARACTERS.

It prints JSON, {"pages": [text, ...]} or {"error": why}. A small PDF can keep its reader busy for
hours; another process can end this one.
"""

import json
import logging
import sys

from pypdf import PdfReader


def read_pages(path: str, *, pages: int, characters: int) -> dict[str, list[str] | str]:
    """What is printed for the file."""
    # its warnings about damaged files are for its developers
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader = PdfReader(path)
    if reader.is_encrypted:
        return {"error": "it is locked with a password."}
    if len(reader.pages) > pages:
        return {"error": f"it has {len(reader.pages):,} pages; the limit is {pages:,}."}
    texts: list[str] = []
    for page in reader.pages:
        texts.append(page.extract_text())
        if sum(map(len, texts)) > characters:
            return {"error": f"it has more than {characters:,} characters."}
    return {"pages": texts}


def main() -> None:
    """Read the file that the arguments name; any error is printed by its class."""
    path, pages, characters = sys.argv[1:]
    try:
        found = read_pages(path, pages=int(pages), characters=int(characters))
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything in its reader
        kind = type(error).__name__
        found = {
            "error": f"the PDF is damaged or cannot be read ({kind}). Open it in a viewer and save "
            "it again."
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
