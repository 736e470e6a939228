"""What a conversion changed or could not carry: counted and listed, never silent."""

from typing import Any

_EXAMPLES = 5
_LISTED = 10_000


class Notes:
    """Counts what was changed or left out, by code, with every place up to a bound."""

    def __init__(self, words: dict[str, str]):
        """
        Args:
            words: what each code means, in words that follow a number and ``x``.
        """
        self._words = words
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, code: str, where: str, detail: str = "") -> None:
        """Count one case.

        Args:
            code: one of those in the words given.
            where: file and place in it.
            detail: the stranger's value, shortened (see ``coco_findings.show``).
        """
        if code not in self._words:
            raise KeyError(code)
        self._counts[code] = self._counts.get(code, 0) + 1
        places = self._places.setdefault(code, [])
        if len(places) < _LISTED:
            places.append(f"{where} ({detail})" if detail else where)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def count(self, code: str) -> int:
        """How often a code was noted."""
        return self._counts.get(code, 0)

    def lines(self) -> list[str]:
        """One line a code, with the first few places."""
        lines = []
        for code, count in self._counts.items():
            places = self._places[code][:_EXAMPLES]
            more = "; …" if count > len(places) else ""
            lines.append(f"{count} x {self._words[code]}: {'; '.join(places)}{more}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Code -> words, count and places (the first 10,000), for a JSON file."""
        return {
            code: {"what": self._words[code], "count": count, "places": self._places[code]}
            for code, count in self._counts.items()
        }
