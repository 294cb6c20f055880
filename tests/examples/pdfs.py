"""PDF files for the tests, written as plainly as the format allows."""

import re
from io import BytesIO

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, IndirectObject, NameObject


def pdf_of(*pages: str) -> bytes:
    """A PDF with a line of text on each page, in ASCII without brackets."""
    writer = PdfWriter()
    for text in pages:
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode("ascii"))
        _add_page(writer, writer._add_object(content))
    return _written(writer)


def slow_pdf(*, pages: int) -> bytes:
    """A few kilobytes whose reading takes minutes: pages that share one stream of empty lines."""
    writer = PdfWriter()
    content = DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf " + b"T* " * 1_000_000 + b"ET")
    shared = writer._add_object(content.flate_encode())
    for _ in range(pages):
        _add_page(writer, shared)
    return _written(writer)


def pdf_with_negative_offsets(*pages: str) -> bytes:
    """A PDF whose table of objects makes pypdf raise a plain ValueError."""
    return re.sub(rb"\n0(?=\d{9} 00000 n)", b"\n-", pdf_of(*pages))


def _add_page(writer: PdfWriter, content: IndirectObject) -> None:
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    page = writer.add_blank_page(width=300, height=200)
    page[NameObject("/Contents")] = content
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})


def _written(writer: PdfWriter) -> bytes:
    written = BytesIO()
    writer.write(written)
    return written.getvalue()
