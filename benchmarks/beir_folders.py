"""A BEIR folder with candidates of BM25, from the files in which older collections are published.

    python -m benchmarks.beir_folders OUT --documents cacm.all --topics topics.txt --qrels qrels.txt
    python -m benchmarks.beir_folders OUT --hits retrieve_results_dl19.json --qrels qrels.txt

Documents are in SMART's format (CACM; title and abstract are used) or TREC's (Vaswani), topics and
judgements in TREC's. The first 100 candidates of a topic are found by bm25s. Hits are those of
rank_llm, as for TREC DL: candidates that were already retrieved, with their texts. UTF-8 that was
read as Latin-1 in these texts is repaired.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bge_rerank_integrations.evaluate.judged import read_grades

Texts = dict[str, str]
Run = dict[str, list[tuple[str, float]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--qrels", type=Path, required=True)
    parser.add_argument("--hits", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--topics", type=Path)
    asked = parser.parse_args(arguments)
    grades = read_grades(asked.qrels)
    if asked.hits is not None:
        topics, documents, run = read_hits(json.loads(asked.hits.read_text(encoding="utf-8")))
    elif asked.documents is not None and asked.topics is not None:
        documents = read_documents(asked.documents.read_text(encoding="latin-1"))
        topics = read_trec(asked.topics.read_text(encoding="latin-1"))
        # SMART numbers the documents 1, 2, ...; the judgements may name them CACM-1, CACM-2, ...
        prefix = re.match(r"\D*", next(iter(next(iter(grades.values())))))[0]  # type: ignore[index]
        documents = {prefix + key.removeprefix(prefix): text for key, text in documents.items()}
        run = search({key: text for key, text in topics.items() if key in grades}, documents)
    else:
        raise SystemExit("give --hits, or --documents and --topics")
    write(asked.out, topics, documents, run, grades)


def read_documents(text: str) -> Texts:
    """Documents by id, in SMART's or in TREC's format."""
    if not text.startswith(".I"):
        return read_trec(text)
    documents = {}
    for part in re.split(r"(?m)^\.I ", text)[1:]:
        number, *fields = re.split(r"(?m)^\.([A-Z])[ ]*\n", part)
        used = [body for name, body in zip(fields[::2], fields[1::2], strict=True) if name in "TW"]
        documents[number.strip()] = _in_a_line(" ".join(used))
    return documents


def read_trec(text: str) -> Texts:
    """Documents or topics by number: what follows <DOCNO> or <num>, without the tags."""
    found = re.findall(r"(?s)<(?:DOCNO|num)>(.*?)</(?:DOCNO|num)>(.*?)</(?:DOC|top)>", text)
    return {key.strip(): _in_a_line(re.sub("</?title>", "", body)) for key, body in found}


def read_hits(rows: Sequence[Mapping[str, object]]) -> tuple[Texts, Texts, Run]:
    """Topics, documents and run of rank_llm's rows of a query and its hits."""
    topics: Texts = {}
    documents: Texts = {}
    run: Run = {}
    for row in rows:
        hits: list[dict[str, object]] = row["hits"]  # type: ignore[assignment]
        key = str(hits[0]["qid"])
        topics[key] = _in_a_line(repaired(str(row["query"])))
        documents |= {str(hit["docid"]): _in_a_line(repaired(str(hit["content"]))) for hit in hits}
        run[key] = [(str(hit["docid"]), float(str(hit["score"]))) for hit in hits]
    return topics, documents, run


def repaired(text: str) -> str:
    """The text with UTF-8 that was read as Latin-1 read as UTF-8; other characters stay."""

    def read_again(found: re.Match[str]) -> str:
        try:
            return found[0].encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            return found[0]

    return re.sub("[\u00c2-\u00f4][\u0080-\u00bf]+", read_again, text)


def search(topics: Texts, documents: Texts) -> Run:
    """The first 100 documents of each topic by BM25: k1 0.9, b 0.4, English words stemmed."""
    import bm25s
    import Stemmer

    def words(texts: Texts) -> bm25s.tokenization.Tokenized:
        stemmer = Stemmer.Stemmer("english")
        return bm25s.tokenize(
            list(texts.values()), stopwords="en", stemmer=stemmer, show_progress=False
        )

    index, keys = bm25s.BM25(method="lucene", k1=0.9, b=0.4), list(documents)
    index.index(words(documents), show_progress=False)
    most = min(100, len(documents))
    places, scores = index.retrieve(words(topics), k=most, show_progress=False)
    return {
        topic: [(keys[p], s) for p, s in zip(*some, strict=True) if s > 0]
        for topic, *some in zip(topics, places.tolist(), scores.tolist(), strict=True)
    }


def write(
    out: Path, topics: Texts, documents: Texts, run: Run, grades: Mapping[str, Mapping[str, int]]
) -> None:
    """The four files, with the judged topics that were searched."""
    out.mkdir(parents=True, exist_ok=True)
    judged = [topic for topic in run if topic in grades]
    qrels = [(topic, *row) for topic in judged for row in grades[topic].items()]
    ranks = [
        (topic, "Q0", key, rank, f"{score:.6f}", "bm25")
        for topic in judged
        for rank, (key, score) in enumerate(run[topic], start=1)
    ]
    files = {
        "queries.jsonl": [json.dumps({"_id": key, "text": topics[key]}) for key in judged],
        "corpus.jsonl": [json.dumps({"_id": key, "text": documents[key]}) for key in documents],
        "qrels.tsv": ["\t".join(map(str, row)) for row in qrels],
        "run.bm25.top100.trec": [" ".join(map(str, row)) for row in ranks],
    }
    for name, lines in files.items():
        (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
