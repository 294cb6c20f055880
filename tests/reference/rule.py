"""FlagEmbedding's rule for a model's input, said again in the plainest way, and one forward."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

TOLERANCE = 2e-5
"""float32 sums in another order differ by this much; a wrong token by 0.01 and more."""

Options = dict[str, Any]


class OneByOne:
    """transformers' own model on one sequence at a time: no batch, no padding, no mask."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.bert = "[CLS]" in self.tokenizer.get_vocab()
        self.folder = folder

    def logit(self, query: str, passage: str, options: Options) -> float:
        """A cross-encoder's raw score by the rule of `FlagReranker.compute_score`."""
        length = options.get("max_length", 512)
        first = self._ids(options.get("query_instruction", "") + query)
        first = first[: options.get("query_max_length", length * 3 // 4)]
        second = self._ids(options.get("passage_instruction", "") + passage)[:length]
        over = len(first) + len(second) + (3 if self.bert else 4) - length
        if 0 < over < len(second):
            second = second[:-over]
        if self.bert:
            cls, sep = self._id("[CLS]"), self._id("[SEP]")
            ids = [cls, *first, sep, *second, sep]
            types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        else:
            bos, eos = self._id("<s>"), self._id("</s>")
            ids = [bos, *first, eos, eos, *second, eos]
            types = [0] * len(ids)
        model = self._model(AutoModelForSequenceClassification)
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        return float(output.logits[0, 0])

    def cosine(self, query: str, passage: str, options: Options, *, pooling: str) -> float:
        """A bi-encoder's raw score: the cosine of the two texts' vectors."""
        length = options.get("max_length", 512)
        vectors = []
        model = self._model(AutoModel)
        for text in (options.get("query_instruction", "") + query, passage):
            body = self._ids(text)[: length - 2]
            ends = ("[CLS]", "[SEP]") if self.bert else ("<s>", "</s>")
            ids = torch.tensor([[self._id(ends[0]), *body, self._id(ends[1])]])
            with torch.inference_mode():
                states = model(input_ids=ids).last_hidden_state[0]
            vectors.append(states[0] if pooling == "cls" else states.mean(dim=0))
        return float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        assert number is not None
        return number

    def _model(self, kind: Any) -> PreTrainedModel:
        if not hasattr(self, "_loaded"):
            self._loaded: PreTrainedModel = kind.from_pretrained(self.folder).eval()
        return self._loaded
