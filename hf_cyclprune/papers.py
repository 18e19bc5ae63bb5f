"""The papers that the methods come from, as the card and the README cite them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """One reference; every paper here is on arXiv."""

    key: str
    """The entry's key in BibTeX."""
    short: str
    """As in running text: "Srinivas et al. 2022"."""
    title: str
    author: str
    """All authors in BibTeX's form."""
    year: int
    arxiv: str
    """The arXiv id, such as "2202.01290"."""
    venue: str | None = None
    """Where it was published beside arXiv."""

    @property
    def url(self) -> str:
        """The address of the paper on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """The entry in BibTeX.

        >>> print(ZHU_2017.bibtex)  # doctest: +ELLIPSIS
        @misc{zhu2017prune,
          title         = {To prune, or not to prune: exploring the efficacy of pruning ...},
          author        = {Zhu, Michael and Gupta, Suyog},
          year          = {2017},
          eprint        = {1710.01878},
          archivePrefix = {arXiv},
        }
        """
        fields = {
            "title": self.title,
            "author": self.author,
            "booktitle": self.venue,
            "year": self.year,
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        kind = "misc" if self.venue is None else "inproceedings"
        lines = [f"  {name:<13} = {{{text}}}," for name, text in fields.items() if text is not None]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


BLUMENSATH_2009 = Paper(
    key="blumensath2009iterative",
    short="Blumensath & Davies 2009",
    title="Iterative hard thresholding for compressed sensing",
    author="Blumensath, Thomas and Davies, Mike E.",
    year=2009,
    arxiv="0805.0510",
)
HAN_2015 = Paper(
    key="han2015learning",
    short="Han et al. 2015",
    title="Learning both Weights and Connections for Efficient Neural Networks",
    author="Han, Song and Pool, Jeff and Tran, John and Dally, William J.",
    year=2015,
    arxiv="1506.02626",
    venue="Advances in Neural Information Processing Systems",
)
ZHU_2017 = Paper(
    key="zhu2017prune",
    short="Zhu & Gupta 2017",
    title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
    author="Zhu, Michael and Gupta, Suyog",
    year=2017,
    arxiv="1710.01878",
)
PESTE_2021 = Paper(
    key="peste2021acdc",
    short="Peste et al. 2021",
    title="AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
    author="Peste, Alexandra and Iofinova, Eugenia and Vladu, Adrian and Alistarh, Dan",
    year=2021,
    arxiv="2106.12379",
    venue="Advances in Neural Information Processing Systems",
)
HUBENS_2022 = Paper(
    key="hubens2022onecycle",
    short="Hubens et al. 2022",
    title="One-Cycle Pruning: Pruning ConvNets Under a Tight Training Budget",
    author="Hubens, Nathan and Mancas, Matei and Gosselin, Bernard and Preda, Marius and "
    "Zaharia, Titus",
    year=2022,
    arxiv="2107.02086",
    venue="IEEE International Conference on Image Processing (ICIP)",
)
KURTIC_2022 = Paper(
    key="kurtic2022optimal",
    short="Kurtic et al. 2022",
    title="The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large "
    "Language Models",
    author="Kurtic, Eldar and Campos, Daniel and Nguyen, Tuan and Frantar, Elias and Kurtz, Mark "
    "and Fineran, Benjamin and Goin, Michael and Alistarh, Dan",
    year=2022,
    arxiv="2203.07259",
    venue="Conference on Empirical Methods in Natural Language Processing (EMNLP)",
)
SRINIVAS_2022 = Paper(
    key="srinivas2022cyclical",
    short="Srinivas et al. 2022",
    title="Cyclical Pruning for Sparse Neural Networks",
    author="Srinivas, Suraj and Kuzmin, Andrey and Nagel, Markus and van Baalen, Mart and "
    "Skliar, Andrii and Blankevoort, Tijmen",
    year=2022,
    arxiv="2202.01290",
    venue="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition "
    "(CVPR) Workshops",
)
GADHIKAR_2024 = Paper(
    key="gadhikar2024cyclic",
    short="Gadhikar et al. 2024",
    title="Cyclic Sparse Training: Is it Enough?",
    author="Gadhikar, Advait and Nelaturu, Sree Harsha and Burkholz, Rebekka",
    year=2024,
    arxiv="2406.02773",
)
