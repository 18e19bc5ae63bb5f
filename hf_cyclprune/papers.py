"""The papers that the methods come from, as the card and the README cite them: see papers.bib."""

import re
from pathlib import Path
from typing import NamedTuple


class Paper(NamedTuple):
    """One entry of a BibTeX file, of a paper that is on arXiv."""

    bibtex: str

    @property
    def key(self) -> str:
        """The name of the entry."""
        return self.bibtex.partition("{")[2].partition(",")[0]

    @property
    def url(self) -> str:
        """The address of the paper on arXiv."""
        return f"https://arxiv.org/abs/{self._field('eprint')}"

    @property
    def short(self) -> str:
        """Authors and year as in running text.

        >>> PAPERS["zhu2017prune"].short, PAPERS["han2015learning"].short
        ('Zhu & Gupta 2017', 'Han et al. 2015')
        """
        first, *others = [name.partition(",")[0] for name in self._field("author").split(" and ")]
        names = f"{first} et al." if len(others) > 1 else " & ".join([first, *others])
        return f"{names} {self._field('year')}"

    def _field(self, name: str) -> str:
        (value,) = re.findall(rf"^ *{name} *= *{{(.*)}},$", self.bibtex, re.MULTILINE)
        return str(value)


_ENTRIES = Path(__file__).with_suffix(".bib").read_text(encoding="utf-8").strip().split("\n\n")
PAPERS = {paper.key: paper for paper in map(Paper, _ENTRIES)}
"""The entries of papers.bib under their keys."""
