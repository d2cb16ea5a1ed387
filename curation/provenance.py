"""What shaped a file, and how to tell its content from another file's.

The *provenance* of a file names all that its content depends on: the spec's hash, the options, the inputs, and the
format number of this toolkit. It is stored in the file, and compared before work is resumed: boxes of two origins
never end in one file. The *fingerprint* of a file is a hash of what it holds; whatever is made from the file has that
hash in its own provenance.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

Provenance = Mapping[str, Any]

FORMAT = 2
"""Rises with every change of arithmetic or storage after which the same inputs give other stored bytes."""

_FORMAT_KEY = "toolkit_format"

EXCLUSION = "exclusion"
"""The part that says which pairs of the spec were excluded; it is there only if some were."""

WHICH_PAIRS = ("spec_sha256", "min_valid", EXCLUSION, "start", "sections")
"""The parts that say which pairs a file holds, but not what is in a box."""

WITH_QUALITY = "quality"
"""The part that says whether a file holds the numbers of its pairs; it says nothing of what is in a box either."""

_SPEC, _CUT = "spec_sha256", "spec_without_pairs_sha256"


def provenance(**parts: Any) -> Provenance:
    """The provenance of what is made from `parts`, plain JSON values by name."""
    return {_FORMAT_KEY: FORMAT, **parts}


def as_text(made_of: Provenance) -> str:
    """A provenance as JSON, the same text for the same provenance."""
    return json.dumps(dict(made_of), sort_keys=True)


def parsed(text: str) -> Provenance:
    """A provenance from its JSON."""
    found: Provenance = json.loads(text)
    return found


def stored_in(attributes: Mapping[str, Any]) -> str:
    """The provenance in a file's attributes, as JSON; `KeyError` where there is none."""
    # Toolkit 0.1 called the attribute "identity".
    return str(attributes["provenance" if "provenance" in attributes else "identity"])


def before_joining(made_of: Provenance) -> Provenance:
    """What shaped the shards that a file was joined of, and so all of its content; of other files their provenance."""
    return parsed(made_of["origin"]) if "shards" in made_of else made_of


def differences(wanted: Provenance, found: Provenance) -> str:
    """What differs between two provenances, for messages: the names of the parts."""
    if not found:
        return "origin, of which nothing is recorded"
    absent = object()  # is not None, which either may hold
    names = {*wanted, *found}
    differ = [name for name in sorted(names) if wanted.get(name, absent) != found.get(name, absent)]
    if _FORMAT_KEY in differ:
        return f"version of the toolkit (format {found.get(_FORMAT_KEY, 'unknown')}; this one makes format {FORMAT})"
    if _SPEC in differ:
        said = "spec" if _CUT in differ else "list of pairs"
        differ = [said, *(name for name in differ if name not in (_SPEC, _CUT))]
    return ", ".join(differ)


def alike_apart_from(names: Iterable[str], one: Provenance, other: Provenance) -> bool:
    """Whether two provenances agree in all parts but those of these names."""
    left_out = set(names)
    kept = [{name: value for name, value in made_of.items() if name not in left_out} for made_of in (one, other)]
    return kept[0] == kept[1]


def sha256(text: str) -> str:
    """The hash by which specs and the files made from them recognise each other."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """A hash of what a file holds, from those of its parts that tell it from another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
