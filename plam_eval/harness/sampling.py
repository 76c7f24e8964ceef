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
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from plam_eval.document_sets import write_by_task
from plam_eval.harness.task_row import Document
from plam_eval.harness.tasks import TASKS, cluster_of_document, has_clusters

_Clusters = TypeVar("_Clusters", bound=Sequence[Sequence[int]])
_TASKS_OF_COCO = re.compile(r"(pope|gqa|mme|vqav2|ok_vqa|refcoco|refcocog|coco|coco2014|coco2017)(?![a-z0-9])")
_COCO = re.compile(r"COCO_[a-z]+\d{4}_0*(\d{1,12})(?!\d)", re.ASCII)


Drawn = tuple[tuple[int, ...], ...]
"""Documents of a task, cluster by cluster, in the order in which they are drawn."""


@dataclass(frozen=True)
class Excluded:
    """Documents that are left out of what is drawn.

    Attributes:
        documents: task -> doc_ids.
        shared: names that other tasks know their images and questions by, as `shared_name` gives them.
        origins: where they come from, for messages.
        nameless: tasks of which there are doc_ids and nothing that names images and questions.
    """

    documents: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    shared: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()
    nameless: frozenset[str] = frozenset()

    def digest(self) -> str:
        """A short name of what is left out, equal where the same is."""
        text = json.dumps([write_by_task(self.documents), sorted(self.shared)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sample:
    """Which documents are asked about: so many of each task, and none that is left out.

    Attributes:
        size: documents of each task; None for all that are left.
        seed: of the drawing, and of the order that all documents have.
        excluded: what is left out.
    """

    size: int | None = None
    seed: int = 0
    excluded: Excluded = Excluded()

    @property
    def is_whole(self) -> bool:
        """Whether it takes all documents."""
        return self.size is None and not self.excluded.origins

    def to_dict(self) -> dict[str, Any]:
        """For records, JSON-able: size, seed, and what is left out by its names and digest."""
        told: dict[str, Any] = {"size": self.size, "seed": self.seed}
        if self.excluded.origins:
            told |= {"excluded": list(self.excluded.origins), "excluded_digest": self.excluded.digest()}
        return told


def named_as_before(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Settings whose `sample` has the names that a folder has for what is left out, if that is the same.

    A folder that was moved, or that is named from elsewhere, is no other exclusion.

    Args:
        before: settings of the folder, with `Sample.to_dict` as `sample` where it is of one.
        now: those that are asked for.
    """
    old, new = before.get("sample"), now.get("sample")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or "excluded" not in old:
        return now
    digest = old.get("excluded_digest")
    if digest is None or digest != new.get("excluded_digest"):
        return now
    return {**now, "sample": {**new, "excluded": old["excluded"]}}


def shared_name(task: str, cluster: str | None) -> str | None:
    """The image or question of a cluster by a name that other tasks know it by, too; None where it has none.

    That is a number of COCO, or its name in a collection that several tasks are over.

    Args:
        task: its task's name.
        cluster: its name, such as "image n1234.jpg" or "question 241".
    """
    if match := _COCO.search(cluster or ""):
        return f"COCO {match[1]}"
    collection = collection_of(task)
    kind, _, name = (cluster or "").partition(" ")
    return f"{collection} {name}" if collection and name and kind != "document" else None


def shared_names(task: str, documents: Sequence[Document], doc_ids: Sequence[int]) -> set[str]:
    """The names by which other tasks know some documents' images and questions.

    Args:
        task: its name.
        documents: rows of its dataset, without media, in order.
        doc_ids: which ones; those that it has not are none.
    """
    there = [doc_id for doc_id in doc_ids if doc_id < len(documents)]
    clusters = (cluster_of_document(task, documents[doc_id]) for doc_id in there)
    names = {shared_name(task, f"cluster {cluster}") for cluster in clusters if cluster is not None}
    return {name for name in names if name}


def may_share_clusters(one: str, other: str) -> bool:
    """Whether two tasks have images or questions in common that both have names for.

    Args:
        one: name of a task.
        other: of another.
    """
    same = collection_of(one) and collection_of(one) == collection_of(other)
    return one != other and bool(same or (_names_coco(one) and _names_coco(other)))


def collection_of(task: str) -> str:
    """What the names of a task's clusters are of, where other tasks have the same ones; "" where none is known to.

    Args:
        task: its name.
    """
    cluster = TASKS[task].cluster if task in TASKS else None
    return "" if cluster is None else cluster.collection


def may_share_images(one: str, other: str) -> bool:
    """Whether two tasks show images of COCO, of which no more is known than that.

    Args:
        one: name of a task.
        other: of another.
    """
    names = (one, other)
    return one != other and all(_TASKS_OF_COCO.match(name) for name in names) and not all(map(_names_coco, names))


def _names_coco(task: str) -> bool:
    return task.startswith(("pope", "refcoco"))


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
        documents: Sequence[Document],
        *,
        excluded: Collection[int] = (),
        shared: Collection[str] = (),
    ) -> Population:
        """The documents of a task.

        Args:
            task: its name.
            documents: rows of its dataset, without media, in order.
            excluded: doc_ids that must not be drawn, nor what shares a cluster with one of them.
            shared: names, as `shared_name` gives them, of images and questions of which no document must be drawn.
        """
        if not has_clusters(task) and not has_categories(task):
            documents = [{}] * len(documents)  # nothing of them would be read
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
            if barred.isdisjoint(ids) and (not shared or shared_name(task, name) not in shared)
        ]
        left = sum(len(cluster.doc_ids) for cluster in kept)
        return cls(task, tuple(kept), sum(map(len, doc_ids.values())) - left)

    @property
    def size(self) -> int:
        """Documents in all."""
        return sum(len(cluster.doc_ids) for cluster in self.clusters)

    def only(self, doc_ids: Collection[int]) -> Population:
        """Some of its documents, in the clusters that they are in.

        Args:
            doc_ids: which ones.
        """
        wanted = doc_ids if isinstance(doc_ids, range) else frozenset(doc_ids)
        kept = (replace(each, doc_ids=tuple(one for one in each.doc_ids if one in wanted)) for each in self.clusters)
        return replace(self, clusters=tuple(each for each in kept if each.doc_ids))

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

    def drawn(self, size: int | None, seed: int) -> Drawn:
        """A sample, cluster by cluster in the order in which it is drawn.

        It is as near to `size` as whole clusters allow, and all documents where there are no more.

        Args:
            size: documents that are wanted, at least 1; None for all.
            seed: of the drawing.
        """
        sequence = tuple(cluster.doc_ids for cluster in self.sequence(seed))
        return sequence if size is None else beginning(sequence, size)


def documents_in(drawn: Drawn) -> list[int]:
    """The doc_ids of some clusters, in order.

    Args:
        drawn: cluster by cluster.
    """
    return sorted(doc_id for doc_ids in drawn for doc_id in doc_ids)


def has_categories(task: str) -> bool:
    """Whether the rows of a task's dataset are known to say what kind of question they are.

    Args:
        task: its name.
    """
    return task in TASKS and TASKS[task].category is not None


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


def beginning(sequence: _Clusters, size: int) -> _Clusters:
    """The first clusters of a sequence that come as near to a number of documents as can be, one at least.

    Args:
        sequence: doc_ids of each cluster.
        size: documents that are wanted; of two numbers that are as near to it, the smaller one is taken.
    """
    count = 0
    for place, doc_ids in enumerate(sequence):
        if count and abs(count + len(doc_ids) - size) >= abs(count - size):
            return cast(_Clusters, sequence[:place])
        count += len(doc_ids)
    return sequence


def _commonest(categories: Counter[str]) -> str | None:
    return min(categories, key=lambda name: (-categories[name], name)) if categories else None


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
