"""What `kubectl kustomize` makes of a folder, for where there is no kubectl.

It knows what the folders here use, and refuses everything else by name: `resources`, `namespace`, `images`,
`replicas`, `configMapGenerator` with `files` and `behavior: merge`, and `patches` with a `path`: strategic merges
of the object that they name. Where kubectl is there, the two are compared (check.py).
"""

import copy
import hashlib
import json
from pathlib import Path

import yaml

KNOWN = {
    "kustomization": {
        "apiVersion", "kind", "resources", "namespace", "images", "replicas", "configMapGenerator", "patches",
    },
    "image": {"name", "newName", "newTag"},
    "replicas": {"name", "count"},
    "configMapGenerator": {"name", "files", "behavior"},
    "patch": {"path"},
}

# Lists whose entries are told apart by a key. Any other list a patch replaces.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}


def render(folder):
    """The objects of a folder, with the names of their ConfigMaps as they are applied."""
    objects = build(Path(folder))
    hashed = {}
    for item in objects:
        if item.pop("generated", False):
            name = item["metadata"]["name"]
            hashed[name] = item["metadata"]["name"] = f"{name}-{content_hash(item)}"
    for item in objects:
        refer(item, hashed)
    return objects


def build(folder):
    settings = load_one(folder / "kustomization.yaml")
    known("kustomization", settings, folder)
    objects = []
    for name in settings.get("resources", []):
        path = folder / name
        objects += build(path) if path.is_dir() else load_all(path)
    for generator in settings.get("configMapGenerator", []):
        known("configMapGenerator", generator, folder)
        generate(objects, generator, folder)
    for patch in settings.get("patches", []):
        known("patch", patch, folder)
        change = load_one(folder / patch["path"])
        target = find(objects, change["kind"], change["metadata"]["name"])
        merge(target, change)
    for image in settings.get("images", []):
        known("image", image, folder)
        for container in containers(objects):
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
    for replicas in settings.get("replicas", []):
        known("replicas", replicas, folder)
        scaled = [item for item in objects
                  if item["metadata"]["name"] == replicas["name"] and item["kind"] in ("Deployment", "StatefulSet")]
        if not scaled:
            raise ValueError(f"{folder}: replicas of {replicas['name']}, which is not there")
        for item in scaled:
            item["spec"]["replicas"] = replicas["count"]
    if "namespace" in settings:
        for item in objects:
            key = "name" if item["kind"] == "Namespace" else "namespace"
            item["metadata"][key] = settings["namespace"]
    return objects


def load_all(path):
    return [item for item in yaml.safe_load_all(path.read_text()) if item]


def load_one(path):
    item, = load_all(path)
    return item


def known(what, settings, folder):
    unknown = set(settings) - KNOWN[what]
    if unknown:
        raise ValueError(f"{folder}: {what}: tests/k8s/kustomize.py does not know {', '.join(sorted(unknown))}")


def find(objects, kind, name):
    for item in objects:
        if (item["kind"], item["metadata"]["name"]) == (kind, name):
            return item
    raise ValueError(f"a patch of {kind} {name}, which is not there")


def containers(objects):
    for item in objects:
        yield from item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])


def generate(objects, generator, folder):
    data = {Path(name).name: (folder / name).read_text() for name in generator["files"]}
    behavior = generator.get("behavior", "create")
    if behavior == "merge":
        find(objects, "ConfigMap", generator["name"])["data"].update(data)
    elif behavior == "create":
        name = {"name": generator["name"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data, "generated": True})
    else:
        raise ValueError(f"{folder}: tests/k8s/kustomize.py does not know behavior {behavior}")


def merge(target, change):
    """A strategic merge. What is new in a list comes first, as kustomize has it."""
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        elif isinstance(value, list) and key in MERGE_KEYS and isinstance(target.get(key), list):
            merge_lists(target[key], value, MERGE_KEYS[key])
        else:
            target[key] = copy.deepcopy(value)


def merge_lists(target, changes, key):
    present = {item[key]: item for item in target}
    new = []
    for change in changes:
        if change[key] in present:
            merge(present[change[key]], change)
        else:
            new.append(copy.deepcopy(change))
    target[:0] = new


def content_hash(config_map):
    """As kustomize has it: of the JSON as Go writes it, the name left empty, in letters that spell no word."""
    text = json.dumps({"data": config_map["data"], "kind": "ConfigMap", "name": ""},
                      sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("013ae", "ghkmt"))


def refer(value, names):
    if isinstance(value, list):
        for item in value:
            refer(item, names)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("configMap", "configMapRef", "configMapKeyRef") and item.get("name") in names:
                item["name"] = names[item["name"]]
            refer(item, names)
