"""croissant.json: what is in the shards, in MLCommons' Croissant 1.0, with the hash of each file.

Written as plain data, because the library that reads it isn't needed to write it; a test validates it with that library
and reads the records back. Paths are relative: it describes the folder it lies in, wherever that was downloaded to.
"""

from typing import Any

from oct_hf.hub.licences import REDISTRIBUTABLE

# The context that the specification gives, https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html
_OWN = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform"
)
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    **{word: f"cr:{word}" for word in _OWN.split()},
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}
_PARQUET = "application/x-parquet"


def croissant(facts: dict, url: str, date: str) -> dict:
    """The metadata of a published data set.

    Args:
        facts: the content of oct-hf.json.
        url: where the data set is published.
        date: when these shards were first published, `2026-01-31`.
    """
    sides, labels = list(facts["sides"]), facts["labels"]
    known = {"citeAs": facts["citation"], "sameAs": facts["homepage"]}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": facts["title"],
        "description": f"{facts['images']} retinal OCT B-scans of {facts['groups']} {facts['grouped_by']}s, "
        f"each labelled as one of {', '.join(labels)}; split by {facts['grouped_by']} into {', '.join(sides)}.",
        "license": REDISTRIBUTABLE[facts["license"]][1],
        "url": url,
        # Equal content has an equal version: the digits are those of the data's fingerprint.
        "version": f"1.0.0+{facts['fingerprint'][:12]}",
        "datePublished": date,
        "keywords": ["OCT", "optical coherence tomography", "retina", "ophthalmology", "image classification"],
        **{key: value for key, value in known.items() if value},
        "distribution": [*(_file(shard) for shard in facts["shards"]), _file_set()],
        "recordSet": [
            _enumeration("splits", "cr:Split", sides),
            _enumeration("labels", None, labels),
            {
                "@type": "cr:RecordSet",
                "@id": "default",
                "name": "default",
                "description": "One B-scan a record.",
                "field": [_field(name, sides) for name in ("split", *facts["columns"])],
            },
        ],
    }


def date_of(previous: dict | None, facts: dict) -> str | None:
    """When the same shards were first published, by an earlier croissant.json; None where they weren't."""
    if not previous:
        return None
    before = [item.get("sha256") for item in previous.get("distribution", []) if item.get("sha256")]
    return previous.get("datePublished") if before == [shard["sha256"] for shard in facts["shards"]] else None


def _file(shard: dict) -> dict:
    return {
        "@type": "cr:FileObject",
        "@id": shard["path"],
        "name": shard["path"],
        "contentUrl": shard["path"],
        "contentSize": f"{shard['size']} B",
        "encodingFormat": _PARQUET,
        "sha256": shard["sha256"],
    }


def _file_set() -> dict:
    return {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "All shards of all splits.",
        "encodingFormat": _PARQUET,
        "includes": "data/*.parquet",
    }


def _enumeration(name: str, kind: str | None, values: list[str]) -> dict:
    column = f"{name}/name"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        **({"dataType": kind} if kind else {}),
        "key": {"@id": column},
        "field": [{"@type": "cr:Field", "@id": column, "name": "name", "dataType": "sc:Text"}],
        "data": [{column: value} for value in values],
    }


def _field(name: str, sides: list[str]) -> dict:
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"default/{name}", "name": name, "dataType": "sc:Text"}
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": name}}
    if name == "split":
        pattern = rf"^(?:.*/)?({'|'.join(sides)})-\d+-of-\d+\.parquet$"
        source |= {"extract": {"fileProperty": "fullpath"}, "transform": {"regex": pattern}}
        field["references"] = {"field": {"@id": "splits/name"}}
    elif name == "image":
        field["dataType"] = "sc:ImageObject"
        source["transform"] = {"jsonPath": "bytes"}
    elif name == "label":
        field["dataType"] = "sc:Integer"
        field["description"] = "Position of the class in the record set labels, from 0."
    return field | {"source": source}
