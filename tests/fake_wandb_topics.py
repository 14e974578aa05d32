"""What the W&B server on loopback knows beside runs: artifacts, reports, sweeps."""

import base64
import itertools
import json
from typing import Any

import yaml

ME = "me"  # The account's own entity
DAY = "2026-01-01T00:00:00"


class Ids:
    "Names that the server gives, as opaque as the real ones"

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def new(self) -> str:
        return base64.b64encode(f"X:{next(self._next)}".encode()).decode()


def make_page(nodes: list[dict]) -> dict:
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)]
    info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"edges": edges, "pageInfo": info}


def make_project(name: str | None, entity: str | None = ME) -> dict:
    return {"__typename": "Project", "id": "UDox", "internalId": "UDox", "name": name, "entityName": entity,
            "createdAt": DAY, "isBenchmark": False, "user": None, "description": None, "access": None,
            "views": None, "entity": {"id": "RTox", "name": entity}}  # fmt: skip


class Artifacts:
    "Artifacts, by name and digest: the same content is the same version"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.found: dict[tuple[str, str], dict[str, Any]] = {}
        self.manifests: dict[str, str] = {}  # Address by id of the artifact

    def CreateArtifact(self, v: dict) -> dict:
        name = v.get("artifactCollectionName") or (v.get("artifactCollectionNames") or ["?"])[0]
        version = sum(found == name for found, _ in self.found)
        made = {"id": self.server.ids.new(), "state": "PENDING", "name": name, "digest": v["digest"],
                "aliases": [one.get("alias") for one in v.get("aliases") or []], "run": v.get("runName"),
                "type": v.get("artifactTypeName"), "version": version,
                "metadata": v.get("metadata") or "{}"}  # fmt: skip
        artifact = self.found.setdefault((name, v["digest"]), made)
        sequence = {"id": "s", "name": name, "latestArtifact": None}
        told = {"id": artifact["id"], "state": artifact["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": told}}

    def _upload(self, identity: str, name: str | None, address: str) -> dict:
        file = {"id": identity, "name": name, "displayName": name, "uploadUrl": address, "uploadHeaders": []}
        return {"artifactManifest": {"id": identity, "file": file}}

    def CreateArtifactManifest(self, v: dict) -> dict:
        identity = self.server.ids.new()
        address = self.server.files.address("manifest/" + identity.strip("="))
        self.manifests[v["artifactID"]] = address
        return {"createArtifactManifest": self._upload(identity, v.get("name"), address)}

    def UpdateArtifactManifest(self, v: dict) -> dict:
        identity = v["artifactManifestID"]
        address = self.server.files.address("manifest/u" + identity.strip("="))
        if v.get("artifactID"):
            address = self.manifests.setdefault(v["artifactID"], address)
        return {"updateArtifactManifest": self._upload(identity, "wandb_manifest.json", address)}

    def CreateArtifactFiles(self, v: dict) -> dict:
        nodes = [
            {"id": self.server.ids.new(), "name": file["name"], "displayName": file["name"],
             "storagePath": f"p/{file['md5']}", "uploadHeaders": [], "uploadMultipartUrls": None,
             "uploadUrl": self.server.files.address(f"art/{file['artifactID'].strip('=')}/{file['name']}"),
             "artifact": {"id": file["artifactID"]}}
            for file in v["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": make_page(nodes)}}

    def CommitArtifact(self, v: dict) -> dict:
        self._by_id(v["artifactID"])["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def UseArtifact(self, v: dict) -> dict:
        return {"useArtifact": {"artifact": {"id": v.get("artifactID")}}}

    def _by_id(self, identity: str) -> dict:
        return next(one for one in self.found.values() if one["id"] == identity)

    def _by_name(self, text: str) -> dict | None:
        name, _, alias = text.split("/")[-1].partition(":")
        alias = alias or "latest"
        fitting = [one for one in self.found.values()
                   if one["name"] == name and alias in [*one["aliases"], f"v{one['version']}"]]  # fmt: skip
        return fitting[-1] if fitting else None

    def _whole(self, one: dict) -> dict:
        home = {
            "__typename": "ArtifactSequence",
            "id": "s",
            "name": one["name"],
            "project": make_project("p"),
        }
        aliases = [
            {"__typename": "ArtifactAlias", "id": f"al{number}", "alias": alias, "artifactCollection": home}
            for number, alias in enumerate([*one["aliases"], f"v{one['version']}"])
        ]
        return {"__typename": "Artifact", "id": one["id"], "artifactSequence": home,
                "versionIndex": one["version"], "artifactType": {"name": one["type"]},
                "description": None, "metadata": one["metadata"],
                "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None,
                "state": one["state"], "size": 0, "digest": one["digest"], "commitHash": one["digest"][:20],
                "fileCount": 1, "createdAt": DAY, "updatedAt": None, "aliases": aliases,
                "currentManifest":
                    {"id": "m", "file": {"directUrl": self.manifests.get(one["id"])}}}  # fmt: skip

    def ArtifactType(self, v: dict) -> dict:
        one = self._by_name(v["name"].split(":")[0])
        return {"project": {"artifact": one and {"artifactType": {"name": one["type"]}}}}

    def ArtifactByID(self, v: dict) -> dict:
        return {"artifact": self._whole(self._by_id(v["id"]))}

    def ArtifactByName(self, v: dict) -> dict:
        one = self._by_name(v["name"])
        return {"project": {"artifact": one and self._whole(one)}}

    def ArtifactMembershipByName(self, v: dict) -> dict:
        one = self._by_name(v["name"])
        whole = one and self._whole(one)
        member = whole and {
            "__typename": "ArtifactCollectionMembership", "id": "mm" + whole["id"], "createdAt": DAY,
            "versionIndex": whole["versionIndex"], "aliases": whole["aliases"],
            "artifactCollection": whole["artifactSequence"], "artifact": whole,
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": member}}

    def FetchArtifactManifest(self, v: dict) -> dict:
        return {"artifact": {"currentManifest": {"file": {"directUrl": self.manifests[v["id"]]}}}}

    def GetArtifactMembershipFileUrls(self, v: dict) -> dict:
        one = self._by_name(f"{v['collection']}:{v['alias']}")
        start = f"art/{one['id'].strip('=')}/" if one else "none"
        files = self.server.files
        nodes = [{"__typename": "File", "name": path.removeprefix(start), "directUrl": files.address(path)}
                 for path in files.stored if path.startswith(start)]  # fmt: skip
        membership = {"artifactMembership": {"files": make_page(nodes)}}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", **membership}}}


class Views:
    "Reports, and the projects that they stand in"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.saved: dict[str, dict[str, Any]] = {}
        self.projects: set[str] = set()

    def ProjectInternalId(self, v: dict) -> dict:
        return {"project": {"id": "UDox", "internalId": "UDox"}}

    def GetProjects(self, v: dict) -> dict:
        names = {key[1] for key in self.server.runs.found} | {
            one.get("projectName") for one in self.saved.values()
        }
        return {
            "models": make_page([make_project(name) for name in sorted({*names, *self.projects} - {None})])
        }

    def CreateProject(self, v: dict) -> dict:
        self.projects.add(v["name"])
        made = make_project(v["name"], v.get("entityName") or ME)
        return {"result": {"project": made, "model": made, "inserted": True}}

    def UpsertModel(self, v: dict) -> dict:
        self.projects.add(v["name"])
        return {
            "upsertModel": {
                "project": make_project(v["name"]),
                "model": make_project(v["name"]),
                "inserted": True,
            }
        }

    def upsertView(self, v: dict) -> dict:
        identity = v.get("id") or self.server.ids.new()
        self.saved[identity] = v
        told = {key: v.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        view = {"id": identity, **told, "project": make_project(v.get("projectName"), v.get("entityName")),
                "createdAt": DAY, "updatedAt": DAY}  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}

    UpsertView = upsertView

    def ViewReport(self, v: dict) -> dict:
        return {"view": self.saved.get(v.get("reportId") or v.get("id") or "")}


class Sweeps:
    "Sweeps over a grid; an agent that has no run gets the next one with its heartbeat"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.found: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, str] = {}  # Sweep by agent
        self.told: list[dict[str, str]] = []  # What agents have said of their runs
        self.stops: set[str] = set()  # Runs that shall be stopped

    def make(self, config: str, entity: str = ME, project: str = "digits") -> str:
        "A sweep, as somebody else has made it; its path"
        made = self.UpsertSweep({"config": config, "projectName": project, "entityName": entity})
        return f"{entity}/{project}/{made['upsertSweep']['sweep']['name']}"

    def GetSweep(self, v: dict) -> dict:
        found = self.found.get(v["name"])
        config = yaml.safe_load(found["config"]) if found else {}
        told = found and {
            "__typename": "Sweep", "id": v["name"], "name": v["name"], "displayName": None,
            "state": "RUNNING",
            "method": config.get("method", "grid"), "description": None, "bestLoss": None, "createdAt": DAY,
            "config": found["config"], "updatedAt": None, "runCount": 0, "runCountExpected": found["n"],
        }  # fmt: skip
        return {"project": {"sweep": told}}

    GetSweepLegacy = GetSweep

    def UpsertSweep(self, v: dict) -> dict:
        axes = {name: said.get("values") or [said.get("value")]
                for name, said in yaml.safe_load(v["config"])["parameters"].items()}  # fmt: skip
        name = f"sw{len(self.found) + 1}"
        points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        self.found[name] = {"config": v["config"], "todo": points, "n": len(points),
                            "key": (v["entityName"], v["projectName"])}  # fmt: skip
        made = {"name": name, "project": make_project(v["projectName"], v["entityName"])}
        return {"upsertSweep": {"sweep": made, "configValidationWarnings": []}}

    def CreateAgent(self, v: dict) -> dict:
        agent = self.server.ids.new()
        self.agents[agent] = v.get("sweep") or ""
        return {"createAgent": {"agent": {"id": agent}}}

    def Heartbeat(self, v: dict) -> dict:
        states = v.get("runState") or {}
        states = json.loads(states) if isinstance(states, str) else states
        self.told.append(states)
        commands = [{"type": "stop", "run_id": run_id} for run_id in states if run_id in self.stops]
        commands += [] if states else [self._next_command(self.agents[v["id"]])]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    def _next_command(self, sweep: str) -> dict:
        if not (todo := self.found[sweep]["todo"]):
            return {"type": "exit"}
        values = {name: {"value": value} for name, value in todo.pop(0).items()}
        run_id = f"{sweep}trial{len(todo)}"
        self.server.runs.make((*self.found[sweep]["key"], run_id))  # whose sweep it is, the client must say
        return {"type": "run", "run_id": run_id, "args": values}
