"""Score the candidates of many questions with a pool of Ray Data workers, as in a nightly job.

    python examples/ray_data_batch.py --output reranked --questions 100

It prints how many rows were scored in how many shards, and for how many questions the relevant
sentence is now first. Run again with the same `--output`, it scores nothing, because all is done.
"""

import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from first_stage import arguments, choose_model, open_first_stage, read_relevant, read_texts

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.batch.run import Columns, rerank_files


def write_candidates(file: Path, stage: str, questions: int) -> None:
    """A row for each question and candidate, the rows of a question together."""
    queries = read_texts("queries")[:questions]
    found = open_first_stage(stage).candidates([question.text for question in queries], 20)
    rows = [
        {
            "query_id": question.id,
            "query": question.text,
            "passage": candidate.passage.text,
            "passage_id": candidate.passage.id,
        }
        for question, candidates in zip(queries, found, strict=True)
        for candidate in candidates
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def main() -> None:
    """Write candidates, score them, and count the questions whose answer is now first."""
    parser = arguments("Rerank the candidates of many questions on Ray.")
    parser.add_argument("--questions", type=int, default=20, help="how many, of 100")
    parser.add_argument("--output", type=Path, help="folder of results; again, to go on")
    options = parser.parse_args()
    model = choose_model(options.model)
    with tempfile.TemporaryDirectory() as scratch:
        candidates = Path(scratch) / "candidates.parquet"
        write_candidates(candidates, options.first_stage, options.questions)
        output = options.output or Path(scratch) / "results"

        report = rerank_files(
            candidates,
            output,
            load=partial(load_scorer, model),
            columns=Columns(carry=("passage_id",)),
            shard_rows=100,
        )

        ranked = pq.read_table(output / "results").to_pylist()
    relevant = read_relevant()
    first = {row["query_id"]: row["passage_id"] for row in ranked if row["rank"] == 1}
    right = sum(relevant[question] == passage for question, passage in first.items())
    print(f"{report.rows} pairs in {report.shards} shards, {report.shards_before} done before")
    print(f"{report.failed} rows could not be scored")
    print(f"relevant sentence first: {right} of {len(first)} questions")


if __name__ == "__main__":
    main()
