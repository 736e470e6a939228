"""The state of a review: particles, decisions on them, undo and redo."""

import contextlib
import dataclasses
import datetime
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microplastics.calibration import Calibration
from microplastics.data.coco import is_printable, show
from microplastics.measurement.table import combine_tables, images_table
from microplastics.review import outlines
from microplastics.review.log import DecisionLog, read_log
from microplastics.review.measures import Measures
from microplastics.review.outlines import Mask
from microplastics.review.source import ReviewSource, SourceImage, open_source
from microplastics.runs.images import RunOptions
from microplastics.runs.summaries import make_summaries
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError

LOG_FILE = "review.jsonl"

UNSEEN, ACCEPTED, REJECTED, REPLACED = "unseen", "accepted", "rejected", "replaced"
STATES = (UNSEEN, ACCEPTED, REJECTED, REPLACED)
MODEL, DRAWN, MERGED, SPLIT = "model", "drawn", "merged", "split"
_LONGEST_TEXT = 2000

Targets = Mapping[str, Sequence[int]]
"""Particles by the name of their image."""

Key = tuple[str, int | None]
"""Image and particle; None stands for the image itself."""


class Conflict(UserError):
    """A decision was made on a state that somebody has changed since."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "review_conflict")


@dataclasses.dataclass(frozen=True, eq=False)
class Particle:
    """A particle as the review has it now; never changed, but replaced by a new one.

    Attributes:
        id: its number on its image, as in particles.csv; new ones get the next.
        class_name: now.
        score: of the model; NaN without one.
        mask: (h, w) bool, read only.
        offset: x and y of the mask's first pixel in the image.
        state: ``unseen``; ``accepted``, also if it was drawn or changed; ``rejected``; or
            ``replaced`` by what it was merged or split into.
        origin: ``model`` (or the annotations given), ``drawn``, ``merged`` or ``split``.
        given_class: by the model; "" for what a person made.
        redrawn: the outline is not the model's.
        parents: numbers of the particles that it was merged or split from.
        reviewer, time: who decided last, and when (ISO 8601); "" if nobody did.
        comment: of a person.
    """

    id: int
    class_name: str
    score: float
    mask: np.ndarray
    offset: tuple[int, int]
    state: str = UNSEEN
    origin: str = MODEL
    given_class: str = ""
    redrawn: bool = False
    parents: tuple[int, ...] = ()
    reviewer: str = ""
    time: str = ""
    comment: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is in the tables."""
        return self.state in (UNSEEN, ACCEPTED)

    @property
    def changed(self) -> bool:
        """Whether class or outline differ from the model's."""
        return self.redrawn or self.class_name != self.given_class

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height in px."""
        return (*self.offset, self.mask.shape[1], self.mask.shape[0])

    def polygons(self) -> list[list[list[list[int]]]]:
        """Outline along the pixels' edges: polygons of rings of points x, y in px."""
        return outlines.polygons_of(self.mask, self.offset)


@dataclasses.dataclass(frozen=True)
class ReviewImage:
    """An image of a review.

    Attributes:
        name: what the outputs call it.
        path: of the photograph; "" without one.
        width, height: in px.
        calibration: its scale; None without one.
        finished: somebody looked at the whole image, so that nothing is missed on it.
        reviewer, time: who finished it, and when.
    """

    name: str
    path: str
    width: int
    height: int
    calibration: Calibration | None
    finished: bool = False
    reviewer: str = ""
    time: str = ""

    @property
    def um_per_px(self) -> float | None:
        """µm per pixel; None without a scale."""
        return self.calibration.um_per_px if self.calibration else None


@dataclasses.dataclass(frozen=True)
class Change:
    """What one operation changed.

    Attributes:
        version: of the review after it.
        op: its name in the log.
        reviewer: who did it.
        particles: numbers by image; those that are gone are no longer in ``Review.particles``.
        images: whose ``finished`` changed.
    """

    version: int
    op: str
    reviewer: str
    particles: dict[str, list[int]]
    images: list[str]


@dataclasses.dataclass(frozen=True)
class _Done:
    """An operation that can be taken back."""

    number: int
    before: dict[Key, Any]
    after: dict[Key, Any]


class Review:
    """Decisions of people on the particles of a run; open one with :meth:`open`.

    Every operation is one line of ``review.jsonl``, written to the disk before it is seen here. It
    names the ``version`` of the review that its person saw: if a particle has changed since, it
    is refused with :class:`Conflict`, and nothing happens. Reading the log again gives the same
    state. Threads may share a review; a second process is refused.

    Attributes:
        source: what it stands on.
        output: folder of the log and of the corrected files.
        options: by which particles become tables.
        version: number of operations; 0 at first.
        messages: sentences that a person should see, such as a torn line of the log.
    """

    def __init__(self, source: ReviewSource, output: Path, read_only: bool = False):
        """Read the log in ``output``, or begin one (see :meth:`open`)."""
        self.source, self.output, self.options = source, output, source.options
        self.version, self.messages = 0, []
        self._lock = threading.RLock()
        self._images = {each.name: _image(each) for each in source.images}
        self._particles = {each.name: _particles(each) for each in source.images}
        self._originals = {name: dict(own) for name, own in self._particles.items()}
        self._next = {name: 1 + max(own, default=0) for name, own in self._particles.items()}
        self._measures = {
            each.name: Measures(each, self.options, source.is_fiber) for each in source.images
        }
        self._versions: dict[Key, int] = {}
        self._undo: dict[str, list[_Done]] = {}
        self._redo: dict[str, list[_Done]] = {}
        self._changes: list[Change] = []
        self._log: DecisionLog | None = None
        path = output / LOG_FILE
        with contextlib.ExitStack() as stack:
            if read_only:
                content = read_log(path)
                content.check(path, source.fingerprint)
            else:
                basis = {"source": str(source.path), "sha256": source.fingerprint, "began": _now()}
                content = self._log = stack.enter_context(
                    contextlib.closing(DecisionLog(path, basis))
                )
            if content.torn:
                self.messages.append(
                    f"The last line of {path} was cut off ({content.torn} bytes) and is dropped: "
                    "one decision is lost."
                )
            for entry in content.entries:
                self._replay(entry, path)
            stack.pop_all()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        images: str | None = None,
        output: str | os.PathLike | None = None,
        options: RunOptions | None = None,
        read_only: bool = False,
    ) -> "Review":
        """Open a review, or begin one.

        Args:
            path: folder of a run of ``microplastics predict`` or ``measure``; or a COCO JSON.
            images: folder of the photographs, for a COCO JSON or a run whose images have moved.
            output: folder of the log and the corrected files; RUN/reviewed, or
                NAME_reviewed beside NAME.json, if None.
            options: scale and counts for a COCO JSON; a run has its own.
            read_only: look at a log that exists, even while another process appends to it.

        Raises:
            UserError: the run or the log cannot be used, or another process has it open.
        """
        source = open_source(path, images, options)
        folder = Path(output) if output is not None else source.folder
        return cls(source, folder, read_only)

    def close(self) -> None:
        """Give up the log; the review can still be looked at."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> "Review":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # What there is

    @property
    def classes(self) -> list[str]:
        """Class names: of the run in order, then those that reviewers added."""
        with self._lock:
            used = {p.class_name: None for own in self._particles.values() for p in own.values()}
        return list(dict.fromkeys([*self.source.classes, *sorted(used)]))

    @property
    def images(self) -> list[ReviewImage]:
        """All images, in the order of the run."""
        with self._lock:
            return list(self._images.values())

    def image(self, name: str) -> ReviewImage:
        """One image.

        Raises:
            UserError: there is none of this name.
        """
        with self._lock:
            return self._get((self._known(name), None))

    def particles(self, image: str) -> list[Particle]:
        """All particles of an image by number, rejected and replaced ones too."""
        with self._lock:
            own = self._particles[self._known(image)]
            return [own[id_] for id_ in sorted(own)]

    def particle(self, image: str, id_: int) -> Particle:
        """One particle.

        Raises:
            UserError: there is none of this number.
        """
        with self._lock:
            return self._here((self._known(image), id_))

    def changes_since(self, version: int) -> list[Change]:
        """What happened after a version, for other tabs to follow."""
        with self._lock:
            return self._changes[version:]

    def can_undo(self, reviewer: str) -> bool:
        """Whether the reviewer has an operation to take back."""
        with self._lock:
            return bool(self._undo.get(reviewer))

    def can_redo(self, reviewer: str) -> bool:
        """Whether the reviewer has an operation to do again."""
        with self._lock:
            return bool(self._redo.get(reviewer))

    def table(self, image: str | None = None, every: bool = False) -> pd.DataFrame:
        """Measure the particles of an image, or of all.

        Args:
            image: its name; None for all.
            every: rejected and replaced particles too, with the columns ``state``, ``origin``,
                ``changed``, ``reviewer``, ``time`` and ``comment``; else exactly the rows and
                columns of particles.csv.
        """
        with self._lock:
            names = list(self._images) if image is None else [self._known(image)]
            tables = [self._measures[name].table(self.particles(name), every) for name in names]
        if image is not None:
            return tables[0]
        return pd.concat(tables, ignore_index=True) if every else combine_tables(tables)

    def sizes(self, image: str, particles: Sequence[Particle]) -> pd.DataFrame:
        """Measure some particles of an image, whatever their state.

        Returns:
            A row for each in their order: the columns of particles.csv, but for ``nearest_um``,
            which takes all particles and is of the last time that it was asked for, if ever; and
            ``inside``, whether it lies in the region of interest.
        """
        with self._lock:
            return self._measures[self._known(image)].sizes(particles)

    def summary(self) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """Count as the run does: the tables summary.csv, and samples.csv or None."""
        images = images_table(
            (
                each.name,
                (each.height, each.width),
                each.calibration,
                *([each.region.area_px] if each.region else []),
            )
            for each in self.source.images
        )
        return make_summaries(self.table(), images, self.classes, self.options)

    def uncertain_first(self, states: Sequence[str] = (UNSEEN,)) -> list[tuple[str, int]]:
        """List particles, image and number, those first whose score is nearest to its threshold.

        Args:
            states: of the particles listed.
        """
        thresholds = self.source.thresholds
        with self._lock:
            keys = [
                (abs(each.score - thresholds.get(each.given_class, 0.5)), number, name, each.id)
                for number, name in enumerate(self._images)
                for each in self._particles[name].values()
                if each.state in states
            ]
        # Without a score they come last.
        keys.sort(key=lambda key: (math.inf if math.isnan(key[0]) else key[0], *key[1:]))
        return [(name, id_) for _, _, name, id_ in keys]

    # Operations

    def accept(self, targets: Targets, *, reviewer: str, version: int) -> Change:
        """Accept particles as they are.

        Args:
            targets: numbers by image.
            reviewer: who decides.
            version: of the review that the reviewer saw.

        Raises:
            Conflict: a particle has changed since, or is gone.
            UserError: nothing is named, or what is named does not exist.
            WriteError: the log cannot be written; nothing happened.
        """
        return self._do({"op": "accept", "on": _plain(targets)}, reviewer, version)

    def reject(self, targets: Targets, *, reviewer: str, version: int) -> Change:
        """Reject particles; arguments and errors as of :meth:`accept`."""
        return self._do({"op": "reject", "on": _plain(targets)}, reviewer, version)

    def reset(self, targets: Targets, *, reviewer: str, version: int) -> Change:
        """Mark particles as unseen again; arguments and errors as of :meth:`accept`."""
        return self._do({"op": "reset", "on": _plain(targets)}, reviewer, version)

    def set_class(
        self, targets: Targets, class_name: str, *, reviewer: str, version: int
    ) -> Change:
        """Change the class of particles, which accepts them.

        Args:
            targets: numbers by image.
            class_name: one of :attr:`classes`, or a new one.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        entry = {"op": "class", "on": _plain(targets), "class": class_name}
        return self._do(entry, reviewer, version)

    def comment(self, targets: Targets, text: str, *, reviewer: str, version: int) -> Change:
        """Write a comment to particles, or delete it ("") ; otherwise as :meth:`accept`."""
        return self._do({"op": "comment", "on": _plain(targets), "text": text}, reviewer, version)

    def set_outline(
        self,
        image: str,
        id_: int,
        polygons: Sequence[outlines.Polygon],
        *,
        reviewer: str,
        version: int,
    ) -> Change:
        """Give a particle another outline, which accepts it.

        Args:
            image: its image.
            id_: its number.
            polygons: of rings of points x, y in px, as :meth:`Particle.polygons` gives them.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        mask = outlines.mask_of(polygons, self._size(image))
        entry = {"op": "outline", "on": {image: [id_]}, "masks": [_packed(mask)]}
        return self._do(entry, reviewer, version)

    def draw(
        self,
        image: str,
        polygons: Sequence[outlines.Polygon],
        class_name: str,
        *,
        reviewer: str,
        version: int,
    ) -> Change:
        """Add a particle that was missed; the change names its number.

        Args:
            image: its image.
            polygons: as of :meth:`set_outline`.
            class_name: one of :attr:`classes`, or a new one.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        mask = outlines.mask_of(polygons, self._size(image))
        entry = {"op": "draw", "image": image, "masks": [_packed(mask)], "class": class_name}
        return self._do(entry, reviewer, version)

    def merge(
        self,
        image: str,
        ids: Sequence[int],
        class_name: str | None = None,
        *,
        reviewer: str,
        version: int,
    ) -> Change:
        """Replace particles by one of all their pixels; gaps between pieces of a fibre are filled.

        Args:
            image: of all of them.
            ids: at least two.
            class_name: of the new one; that of the largest if None.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        with self._lock:
            parts = [self.particle(image, id_) for id_ in _numbers(ids)]
            if len(parts) < 2:
                raise UserError(
                    "One particle cannot be merged; select at least two.", code="option_invalid"
                )
            largest = max(parts, key=lambda part: np.count_nonzero(part.mask))
            name = class_name or largest.class_name
            masks = [(part.mask, part.offset) for part in parts]
            if self.source.is_fiber(name):
                mask = outlines.join(masks, self._size(image))
            else:
                mask = outlines.unite(masks)
            entry = {
                "op": "merge",
                "on": {image: [part.id for part in parts]},
                "masks": [_packed(mask)],
                "class": name,
            }
            return self._do(entry, reviewer, version)

    def split(
        self,
        image: str,
        id_: int,
        *,
        line: Sequence[Sequence[float]] | None = None,
        pieces: Sequence[Sequence[outlines.Polygon]] | None = None,
        reviewer: str,
        version: int,
    ) -> Change:
        """Replace a particle by its pieces, which have its class.

        Args:
            image: its image.
            id_: its number.
            line: points x, y in px of a cut right across it; or
            pieces: the polygons of each piece, as :meth:`propose_split` gives them.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        with self._lock:
            whole = self.particle(image, id_)
            if (line is None) == (pieces is None):
                raise ValueError("a split takes a line or pieces")
            if line is not None:
                masks = outlines.split_by_line((whole.mask, whole.offset), line)
            else:
                masks = [outlines.mask_of(piece, self._size(image)) for piece in pieces]
            if len(masks) < 2:
                raise UserError(
                    "One piece is not a split; give at least two.", code="annotations_invalid"
                )
            packed = [_packed(mask) for mask in masks]
            entry = {"op": "split", "on": {image: [id_]}, "masks": packed}
            return self._do({**entry, "class": whole.class_name}, reviewer, version)

    def propose_split(self, image: str, id_: int) -> list[list[list[list[list[int]]]]]:
        """Propose pieces of touching particles: polygons of each; one piece if there is no neck."""
        whole = self.particle(image, id_)
        pieces = outlines.split_touching((whole.mask, whole.offset))
        return [outlines.polygons_of(*piece) for piece in pieces]

    def finish(self, images: Sequence[str], *, reviewer: str, version: int) -> Change:
        """Mark images as looked at whole; particles that are unseen on them are accepted.

        Args:
            images: names.
            reviewer, version: as of :meth:`accept`, like the errors.
        """
        with self._lock:
            unseen = {
                name: [p.id for p in self.particles(name) if p.state == UNSEEN] for name in images
            }
            return self._do({"op": "finish", "on": unseen}, reviewer, version)

    def reopen(self, images: Sequence[str], *, reviewer: str, version: int) -> Change:
        """Mark images as not looked at whole; arguments as of :meth:`finish`."""
        return self._do({"op": "reopen", "on": {name: [] for name in images}}, reviewer, version)

    def undo(self, *, reviewer: str) -> Change:
        """Take the reviewer's last operation back.

        Raises:
            Conflict: somebody has changed what it changed.
            UserError: there is none.
        """
        return self._turn("undo", reviewer)

    def redo(self, *, reviewer: str) -> Change:
        """Do what was taken back last again; errors as of :meth:`undo`."""
        return self._turn("redo", reviewer)

    # How

    def _turn(self, op: str, reviewer: str) -> Change:
        with self._lock:
            stack = (self._undo if op == "undo" else self._redo).get(reviewer)
            if not stack:
                raise UserError(f"There is nothing to {op}.", code="input_empty")
            return self._do({"op": op, "of": stack[-1].number}, reviewer, self.version)

    def _do(self, entry: dict[str, Any], reviewer: str, version: int) -> Change:
        """Check an operation, write it, then let it be."""
        with self._lock:
            if type(version) is not int or not 0 <= version <= self.version:
                raise UserError(
                    f"The version is {show(version)}; expected 0 to {self.version}, of the page "
                    "that was looked at.",
                    code="option_invalid",
                )
            if not is_printable(reviewer) or len(reviewer) > 100:
                raise UserError(
                    f"The reviewer is {show(reviewer)}; expected a name.", code="option_invalid"
                )
            entry = {"n": self.version + 1, "time": _now(), "reviewer": reviewer, **entry}
            if "masks" in entry and entry["op"] != "outline":
                name = entry.get("image") or [*entry["on"]][0]
                first = self._next[self._known(name)]
                entry["new"] = list(range(first, first + len(entry["masks"])))
            done = self._worked_out(entry, version)
            if self._log is None:
                raise UserError("The review is read-only; open it again.", code="not_writable")
            self._log.append(entry)
            return self._commit(entry, done)

    def _replay(self, entry: dict[str, Any], path: Path) -> None:
        try:
            if not isinstance(entry["reviewer"], str) or not isinstance(entry["time"], str):
                raise TypeError("reviewer and time are not texts")
            self._commit(entry, self._worked_out(entry, self.version))
        except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, line {self.version + 2} does not fit what it stands on ({error}); "
                "restore a copy of the log.",
                code="run_invalid",
            ) from error

    def _worked_out(self, entry: dict[str, Any], version: int) -> _Done:
        """What an entry of the log changes, without changing it."""
        if entry["op"] in ("undo", "redo"):
            return self._turned(entry)
        after = self._after(entry)
        if not after:
            raise UserError("Nothing is selected; select a particle.", code="input_empty")
        for key in after:
            self._check_version(key, version)
        return _Done(entry["n"], {key: self._get(key) for key in after}, after)

    def _turned(self, entry: dict[str, Any]) -> _Done:
        stacks = self._undo if entry["op"] == "undo" else self._redo
        last = stacks.get(entry["reviewer"], [])[-1:]
        if not last or last[0].number != entry["of"]:
            raise UserError(f"There is nothing to {entry['op']}.", code="input_empty")
        before, after = last[0].after, last[0].before
        if entry["op"] == "redo":
            before, after = after, before
        for key, thing in before.items():
            if self._get(key) is not thing:
                raise Conflict(f"{_words(key)} has been changed since by {self._who(key)}.")
        return _Done(last[0].number, before, after)

    def _after(self, entry: dict[str, Any]) -> dict[Key, Any]:
        """The things that an operation makes or changes, by key."""
        op = entry["op"]
        by = {"reviewer": entry["reviewer"], "time": entry["time"]}
        if op == "draw":
            return self._made(entry, by)
        keys = [(self._known(name), id_) for name, ids in entry["on"].items() for id_ in ids]
        if op in ("finish", "reopen"):
            after = {
                (name, None): dataclasses.replace(self._images[name], finished=op == "finish", **by)
                for name in map(self._known, entry["on"])
            }
            accepted = {
                key: dataclasses.replace(self._here(key), state=ACCEPTED, **by) for key in keys
            }
            return {**after, **accepted}
        olds = {key: self._here(key) for key in keys}
        for key, old in olds.items():
            if old.state == REPLACED and op != "comment":
                raise Conflict(f"{_words(key)} was merged or split; select what it became.")
        new = _fields(entry) if op not in ("merge", "split", "outline") else {}
        if op == "outline":
            (key,), (mask,) = olds, entry["masks"]
            crop, offset = _unpacked(mask, self._size(key[0]))
            new = {"mask": crop, "offset": offset, "redrawn": True, "state": ACCEPTED}
        elif op in ("merge", "split"):
            (name,) = entry["on"]
            made = self._made(entry, by, tuple(entry["on"][name]))
            gone = {k: dataclasses.replace(o, state=REPLACED, **by) for k, o in olds.items()}
            return {**gone, **made}
        return {key: dataclasses.replace(old, **new, **by) for key, old in olds.items()}

    def _made(
        self, entry: dict[str, Any], by: dict[str, str], parents: tuple[int, ...] = ()
    ) -> dict[Key, Particle]:
        """New particles."""
        name = self._known(entry["image"] if "image" in entry else [*entry["on"]][0])
        class_name, made = _checked_class(entry["class"]), {}
        origin = {"draw": DRAWN, "merge": MERGED, "split": SPLIT}[entry["op"]]
        for id_, packed in zip(entry["new"], entry["masks"], strict=True):
            if type(id_) is not int or id_ < self._next[name] or (name, id_) in made:
                raise ValueError(f"particle {show(id_)} of {name} is not new")
            crop, offset = _unpacked(packed, self._size(name))
            made[name, id_] = Particle(
                id_, class_name, math.nan, crop, offset, ACCEPTED, origin, parents=parents, **by
            )
        return made

    def _commit(self, entry: dict[str, Any], done: _Done) -> Change:
        self.version = entry["n"]
        particles: dict[str, list[int]] = {}
        images = []
        for key, thing in done.after.items():
            self._set(key, thing)
            self._versions[key] = self.version
            if key[1] is None:
                images.append(key[0])
            else:
                particles.setdefault(key[0], []).append(key[1])
                self._next[key[0]] = max(self._next[key[0]], key[1] + 1)
        self._remember(entry, done)
        change = Change(self.version, entry["op"], entry["reviewer"], particles, images)
        self._changes.append(change)
        return change

    def _remember(self, entry: dict[str, Any], done: _Done) -> None:
        undo = self._undo.setdefault(entry["reviewer"], [])
        redo = self._redo.setdefault(entry["reviewer"], [])
        if entry["op"] == "undo":
            redo.append(undo.pop())
        elif entry["op"] == "redo":
            undo.append(redo.pop())
        else:
            undo.append(done)
            redo.clear()

    def _known(self, image: str) -> str:
        if image not in self._images:
            raise UserError(f"{show(image)} is not an image of the review.", code="input_empty")
        return image

    def _size(self, image: str) -> tuple[int, int]:
        about = self._images[self._known(image)]
        return about.height, about.width

    def _get(self, key: Key) -> Any:
        name, id_ = key
        return self._images[name] if id_ is None else self._particles[name].get(id_)

    def _set(self, key: Key, thing: Any) -> None:
        name, id_ = key
        if id_ is None:
            self._images[name] = thing
        elif thing is None:
            del self._particles[name][id_]
        else:
            self._particles[name][id_] = thing

    def _here(self, key: Key) -> Particle:
        found = self._get(key) if type(key[1]) is int else None
        if found is None and key in self._versions:
            raise Conflict(f"{_words(key)} has been taken back by {self._who(key)}.")
        if found is None:
            raise UserError(f"{key[0]} has no particle {show(key[1])}.", code="input_empty")
        return found

    def _check_version(self, key: Key, version: int) -> None:
        if self._versions.get(key, 0) > version:
            raise Conflict(
                f"{_words(key)} has been changed since by {self._who(key)}; look at it again."
            )

    def _who(self, key: Key) -> str:
        return self._changes[self._versions[key] - 1].reviewer


def _image(source: SourceImage) -> ReviewImage:
    return ReviewImage(source.name, source.path, source.width, source.height, source.calibration)


def _particles(source: SourceImage) -> dict[int, Particle]:
    found = source.particles
    columns = zip(
        found.ids.tolist(),
        found.classes,
        found.scores.tolist(),
        found.masks,
        found.offsets.tolist(),
        strict=True,
    )
    return {
        id_: Particle(id_, name, score, mask, tuple(offset), given_class=name)
        for id_, name, score, mask, offset in columns
    }


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def _words(key: Key) -> str:
    return key[0] if key[1] is None else f"Particle {key[1]} of {key[0]}"


def _plain(targets: Targets) -> dict[str, list[int]]:
    return {str(name): _numbers(ids) for name, ids in targets.items() if len(ids)}


def _numbers(ids: Iterable[Any]) -> list[int]:
    return list(dict.fromkeys(int(id_) for id_ in ids))


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """What an operation of no mask sets."""
    op = entry["op"]
    if op == "class":
        return {"class_name": _checked_class(entry["class"]), "state": ACCEPTED}
    if op == "comment":
        text = entry["text"]
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
            raise UserError(
                f"The comment is too long; expected at most {_LONGEST_TEXT} characters.",
                code="option_invalid",
            )
        return {"comment": text}
    states = {"accept": ACCEPTED, "reject": REJECTED, "reset": UNSEEN}
    if op not in states:
        raise ValueError(f"operation {show(op)} is unknown")
    return {"state": states[op]}


def _checked_class(name: Any) -> str:
    if not is_printable(name) or len(name) > 100:
        raise UserError(
            f"The class is {show(name)}; expected a name of at most 100 characters.",
            code="option_invalid",
        )
    return name


def _packed(mask: Mask) -> dict[str, Any]:
    """A mask as the log has it."""
    crop, (x, y) = mask
    (rle,) = CropMasks([crop], [(0, 0)], crop.shape).to_rles(as_str=True)
    return {"x": x, "y": y, "size": list(crop.shape), "counts": rle["counts"]}


def _unpacked(packed: dict[str, Any], image_size: tuple[int, int]) -> Mask:
    x, y, (height, width) = packed["x"], packed["y"], packed["size"]
    sound = all(type(value) is int for value in (x, y, height, width))
    if not sound or x < 0 or y < 0 or y + height > image_size[0] or x + width > image_size[1]:
        raise ValueError("a mask reaches outside the image")
    masks = CropMasks.from_rles([{"size": [height, width], "counts": packed["counts"]}])
    found = outlines.trimmed(masks.crops[0], masks.offsets[0] + (x, y))
    if found is None:
        raise ValueError("a mask is empty")
    return found
