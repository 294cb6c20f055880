"""The reader of input files: every kind gives the same passages, and no other kind is guessed."""

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bge_rerank_integrations.base.input_files import Passage, read_passages
from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate.judged import read_judged_lines

TEXTS = ["Pandas eat bamboo.", "A ship; of steel, floats."]
ROWS = [{"id": f"p{n}", "text": text} for n, text in enumerate(TEXTS, start=1)]
PASSAGES = [Passage(row["text"], {"id": row["id"]}) for row in ROWS]


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> list[Passage]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_passages(file, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comma.csv", 'id,text\np1,Pandas eat bamboo.\np2,"A ship; of steel, floats."\n'),
        ("bom.csv", '\ufeffid;text\r\np1;Pandas eat bamboo.\r\np2;"A ship; of steel, floats."\r\n'),
        ("tabs.csv", "id\ttext\np1\tPandas eat bamboo.\np2\tA ship; of steel, floats.\n"),
        ("tabs.TSV", "id\ttext\np1\tPandas eat bamboo.\n\np2\tA ship; of steel, floats."),
        ("lines.jsonl", ('{"id": "p1", "text": "Pandas eat bamboo."}\n'
         '{"id": "p2", "text": "A ship; of steel, floats."}\n')),
    ],
)  # fmt: skip
def test_every_kind_gives_the_same_passages(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, name, content) == PASSAGES


def test_parquet_gives_the_same_passages(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_passages(tmp_path / "rows.parquet") == PASSAGES
    with pytest.raises(UnreadableInput, match=r"fake\.parquet is not readable as Parquet"):
        read(tmp_path, "fake.parquet", "text\n")


def test_damaged_parquet_gives_its_rows_or_an_error_without_its_texts(tmp_path: Path) -> None:
    secret = "a secret passage"
    pq.write_table(pa.table({"text": [secret] * 50}), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    refused = []
    for place in range(4, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        try:
            read_passages(tmp_path / "damaged.parquet")
        except UnreadableInput as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("damaged.parquet" in said and "secret" not in said for said in refused)


def test_judged_queries_come_from_parquet_as_from_json_lines(tmp_path: Path) -> None:
    row = {"query": "q", "positive": ["a"], "negative": ["b", "c"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "judged.parquet")
    (query,) = read_judged_lines(tmp_path / "judged.parquet")
    assert list(query.candidates.values()) == ["b", "c", "a"]
    assert query.relevance.tolist() == [False, False, True]


def test_quotes_and_line_breaks_in_a_table(tmp_path: Path) -> None:
    (passage,) = read(tmp_path, "a.csv", 'text,n\n"He said ""yes"",\nthen left.",1\n')
    assert passage == Passage('He said "yes",\nthen left.', {"n": "1"})
    (passage,) = read(tmp_path, "a.tsv", 'n\ttext\n1\t"Yes" he said\n')
    assert passage.text == '"Yes" he said'


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.csv"])
def test_a_title_is_put_before_the_text(tmp_path: Path, name: str) -> None:
    content = {
        "corpus.jsonl": '{"_id": "d1", "title": "Panda", "text": "eats bamboo"}\n',
        "corpus.csv": "_id,title,text\nd1,Panda,eats bamboo\n",
    }[name]
    carried = {"_id": "d1", "title": "Panda"}
    assert read(tmp_path, name, content) == [Passage("Panda eats bamboo", carried)]
    assert read(tmp_path, name, content, text_field="text") == [Passage("eats bamboo", carried)]
    named = read(tmp_path, name, content, text_field="title", id_field="_id")
    assert named == [Passage("Panda", {"_id": "d1", "text": "eats bamboo", "id": "d1"})]


def test_a_passage_of_an_earlier_result_gets_no_second_title(tmp_path: Path) -> None:
    row = '{"passage": "Panda eats bamboo", "title": "Panda"}\n'
    assert read(tmp_path, "a.jsonl", row) == [Passage("Panda eats bamboo", {"title": "Panda"})]


@pytest.mark.parametrize("field", ["passage", "text", "content", "contents", "page_content"])
def test_the_usual_fields_are_known(tmp_path: Path, field: str) -> None:
    assert read(tmp_path, "a.jsonl", f'{{"{field}": "a"}}\n') == [Passage("a", {})]


GZIPPED = gzip.compress(b"a\n", mtime=0)  # the time would be in the test's id


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", GZIPPED, "a.txt is gzip-compressed: decompress it with gunzip -c"),
        ("a.xlsx", b"PK\x03\x04\n", "a zip archive or an Office file: save a spreadsheet as CSV"),
        ("a.csv", b"PK\x03\x04\n", "a zip archive or an Office file"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\n", "an old Office file"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF: extract its text first"),
        ("a.bin", b"PAR1\x15\n", r"Parquet: give the file a name that ends in \.parquet"),
        ("a.json", "[]", "is named as one JSON document"),
        ("a.trec", "q1 Q0 p1 1 1 x\n", "is named as a TREC run, which holds ids and no texts"),
        ("a.csv", "id,body\n1,secret\n", "line 2 of .*a.csv is not a passage: .*--text-field"),
        ("a.csv", "id,text\n1,a\n2\n", "line 3 of .* does not have the 2 fields of the header"),
        ("a.csv", "id,text\n1,a,b\n", "line 2 of .* does not have the 2 fields of the header"),
        ("a.csv", 'id,text\n1,"a" b\n', "line 2 of .* is not a row of a table"),
        ("a.jsonl", '{"query": "q", "passages": ["a"]}\n', "leave out the QUERY argument"),
        ("a.jsonl", "[1]\n", "is not a passage: it must be a text or an object"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_remedy(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(UnreadableInput, match=said) as error:
        read(tmp_path, name, content)
    assert "secret" not in str(error.value)


def test_a_spreadsheet_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(UnreadableInput, match="an Office file: save a spreadsheet as CSV"):
        read(tmp_path, "a.txt", packed.getvalue())


def test_a_field_that_an_option_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="has no text in the field 'body'"):
        read(tmp_path, "a.csv", "id,text\n1,a\n", text_field="body")
    with pytest.raises(UnreadableInput, match="has no field 'key', which --id-field names"):
        read(tmp_path, "a.csv", "id,text\n1,a\n", id_field="key")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_an_empty_input_is_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path, name, "\n") == []
    assert caplog.messages == [f"there are no passages in {tmp_path / name}"]
