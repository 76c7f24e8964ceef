"""Drawing documents of a task: by category, whole clusters, the same ones on every machine.

A task's clusters (documents of one image, or one question) are put into one sequence, and a sample is the beginning of
it: a larger sample under the same seed has all documents of a smaller one.

- The sequence within a category is by the SHA-256 of the seed and the cluster's name, so no random generator of any
  library or version has a part in it. The task's name has none either: tasks over one dataset draw the same documents.
- Categories take turns by the method of Sainte-Lague (Webster): of a category with n documents, of which b stand in the
  sequence, the next cluster of size s comes at (b + s/2) / n. Each category's part of every beginning is its part of
  the task, rounded. (Largest remainders round alike, but may take back a document when a sample grows.)
- A cluster of several categories counts as one of the commonest among its documents; among equals, the first by name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from plam_eval.harness.task_row import Document
from plam_eval.harness.tasks import TASKS, cluster_of_document

_COCO = re.compile(r"COCO_\w*?0*(\d{1,12})(?!\d)", re.ASCII)


@dataclass(frozen=True)
class Excluded:
    """Documents that are left out of what is drawn.

    Attributes:
        documents: task -> doc_ids.
        images: names of images that these documents show, of collections that several tasks take images from.
        origins: where they come from, for messages.
    """

    documents: Mapping[str, frozenset[int]] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()

    def of(self, task: str) -> frozenset[int]:
        """A task's.

        Args:
            task: its name.
        """
        return self.documents.get(task, frozenset())


def shared_image(cluster: str | None) -> str | None:
    """The image of a cluster by a name that other tasks know it by, too: a number of COCO; None where it has none.

    Args:
        cluster: its name, such as that of an image's file.
    """
    match = _COCO.search(cluster or "")
    return f"COCO {match[1]}" if match else None


@dataclass(frozen=True)
class Cluster:
    """Documents that are drawn together, or not at all.

    Attributes:
        name: what they have in common, or of one alone which it is.
        doc_ids: in the order of the dataset.
        category: None where none is known.
    """

    name: str
    doc_ids: tuple[int, ...]
    category: str | None


@dataclass(frozen=True)
class Population:
    """What samples of a task are drawn from.

    Attributes:
        task: its name.
        clusters: in the order of the dataset.
        left_out: documents that are excluded, with those that share a cluster with one.
    """

    task: str
    clusters: tuple[Cluster, ...]
    left_out: int = 0

    @classmethod
    def of(
        cls,
        task: str,
        documents: Iterable[Document],
        *,
        excluded: Collection[int] = (),
        images: Collection[str] = (),
    ) -> Population:
        """The documents of a task.

        Args:
            task: its name.
            documents: rows of its dataset, without media, in order.
            excluded: doc_ids that must not be drawn, nor what shares a cluster with one of them.
            images: names of images, as `shared_image` gives them, of which no document must be drawn.
        """
        doc_ids: dict[str, list[int]] = defaultdict(list)
        categories: dict[str, Counter[str]] = defaultdict(Counter)
        for doc_id, document in enumerate(documents):
            cluster = cluster_of_document(task, document)
            name = f"document {doc_id}" if cluster is None else f"cluster {cluster}"
            doc_ids[name].append(doc_id)
            if (category := category_of_document(task, document)) is not None:
                categories[name][category] += 1
        barred = frozenset(excluded)
        kept = [
            Cluster(name, tuple(ids), _commonest(categories[name]))
            for name, ids in doc_ids.items()
            if barred.isdisjoint(ids) and (not images or shared_image(name) not in images)
        ]
        left = sum(len(cluster.doc_ids) for cluster in kept)
        return cls(task, tuple(kept), sum(map(len, doc_ids.values())) - left)

    @property
    def size(self) -> int:
        """Documents in all."""
        return sum(len(cluster.doc_ids) for cluster in self.clusters)

    @property
    def categories(self) -> list[str]:
        """Names of the categories, sorted; none where the task has no known ones."""
        return sorted({cluster.category for cluster in self.clusters if cluster.category is not None})

    def sequence(self, seed: int) -> list[Cluster]:
        """All clusters, in the order in which they are drawn.

        Args:
            seed: of the drawing.
        """
        strata: dict[str | None, list[tuple[str, Cluster]]] = defaultdict(list)
        for cluster in self.clusters:
            strata[cluster.category].append((_digest(seed, cluster.name), cluster))
        placed: list[tuple[float, str, Cluster]] = []
        for stratum in strata.values():
            total, before = sum(len(cluster.doc_ids) for _, cluster in stratum), 0
            for digest, cluster in sorted(stratum, key=lambda each: each[0]):
                size = len(cluster.doc_ids)
                # A quotient of whole numbers, which every machine rounds alike.
                placed.append(((2 * before + size) / (2 * total), digest, cluster))
                before += size
        return [cluster for *_, cluster in sorted(placed, key=lambda each: each[:2])]

    def draw(self, size: int, seed: int) -> tuple[int, ...]:
        """The doc_ids of a sample, in order: as near to `size` as whole clusters allow, all where there are no more.

        Args:
            size: documents that are wanted, at least 1.
            seed: of the drawing.
        """
        return tuple(sorted(beginning([cluster.doc_ids for cluster in self.sequence(seed)], size)))


def category_of_document(task: str, document: Document) -> str | None:
    """The kind of question that a document is of; None where the task has none that are known.

    Args:
        task: its name.
        document: its row of the task's dataset.
    """
    category = TASKS[task].category if task in TASKS else None
    try:
        return None if category is None else category(document)
    except (KeyError, TypeError):  # a copy of the dataset without that column
        return None


def beginning(sequence: Iterable[Sequence[int]], size: int) -> list[int]:
    """The documents of the first clusters of a sequence that come as near to a size as can be, the first one at least.

    Args:
        sequence: doc_ids of each cluster.
        size: documents that are wanted; of two numbers that are as near to it, the smaller one.
    """
    drawn: list[int] = []
    for doc_ids in sequence:
        if drawn and abs(len(drawn) + len(doc_ids) - size) >= abs(len(drawn) - size):
            break
        drawn += doc_ids
    return drawn


def _commonest(categories: Counter[str]) -> str | None:
    return min(categories, key=lambda name: (-categories[name], name)) if categories else None


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
