"""LangChain's `BaseCrossEncoder`, wherever the installed release has it."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

__all__ = ["BaseCrossEncoder"]

if TYPE_CHECKING:
    from langchain_core.cross_encoders import BaseCrossEncoder
else:
    try:
        from langchain_core.cross_encoders import BaseCrossEncoder
    except ModuleNotFoundError:  # langchain-core before 1.2.19: langchain_classic has its own

        class BaseCrossEncoder:
            """Registers its subclasses with langchain_classic's when they are first built.

            Not a subclass of that one: importing it can take seconds and load torch, in vain for
            who only wants `BGERerank`. Where it is not installed nobody asks for it.
            """

            def __new__(cls, *_args: object, **_fields: object) -> Self:
                if find_spec("langchain_classic"):
                    from langchain_classic.retrievers.document_compressors import cross_encoder

                    cross_encoder.BaseCrossEncoder.register(cls)
                return super().__new__(cls)
