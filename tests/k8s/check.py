"""Checks of k8s/ that need no cluster. Arguments: the path of the program `unisono`."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import kubernetes_validate
import yaml

import kustomize

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

K8S = Path("k8s")
OVERLAYS = ["development", "production"]
# The oldest one in which everything here is on by default, and the newest ones that there are schemas of.
VERSIONS = ["1.30", "1.34", "1.35", "1.36", kubernetes_validate.latest_version()]
# Kinds that extensions bring, which kubernetes-validate has no schemas of.
EXTENSIONS = {"HTTPRoute", "ServiceMonitor"}
PROGRAM = sys.argv[1]

broken = []


def hold(where, condition, message):
    if not condition:
        broken.append(f"{where}: {message}")


# === rendering ===


def render_all():
    rendered = {}
    kubectl = shutil.which("kubectl")
    for path in sorted(K8S.rglob("kustomization.yaml")):
        folder = path.parent
        objects = kustomize.render(folder)
        if kubectl:
            text = subprocess.run([kubectl, "kustomize", folder], check=True, capture_output=True, text=True).stdout
            theirs = list(yaml.safe_load_all(text))
            hold(folder, by_name(theirs) == by_name(objects), "tests/k8s/kustomize.py renders it unlike kubectl")
            objects = theirs
        rendered[str(folder.relative_to(K8S))] = objects
    print(f"rendered with {'kubectl and ' if kubectl else ''}tests/k8s/kustomize.py: {', '.join(rendered)}")
    return rendered


def by_name(objects):
    return sorted(objects, key=lambda item: (item["kind"], item["metadata"]["name"]))


def check_reached():
    """No file lies about that no kustomization names."""
    named = set()
    for path in K8S.rglob("kustomization.yaml"):
        settings = kustomize.load_one(path)
        names = [*settings.get("resources", []), *(patch["path"] for patch in settings.get("patches", []))]
        names += [name for generator in settings.get("configMapGenerator", []) for name in generator["files"]]
        named |= {path, *((path.parent / name).resolve().relative_to(Path.cwd()) for name in names)}
    # For Prometheus and Grafana, which load them by themselves; tests/e2e/alarms.rs looks at these.
    named |= {K8S / "alerts.yaml", K8S / "grafana-dashboard.json"}
    for path in K8S.rglob("*"):
        if path.is_file() and K8S / "image" not in path.parents:
            hold(path, path in named, "no kustomization names it")


def check_schemas(folder, objects):
    for item in objects:
        name = f"{folder}: {item['kind']} {item['metadata']['name']}"
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(step) for step in error.path)
                hold(name, False, f"not as Kubernetes {version} has it: {path}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError:
                hold(name, item["kind"] in EXTENSIONS, f"Kubernetes {version} has no such kind")


# === one overlay ===


class Overlay:
    def __init__(self, name, objects):
        self.name = name
        self.objects = objects
        self.nodes = self.one("Deployment", "unisono")
        self.nats = self.one("StatefulSet", "unisono-nats")
        self.config = effective(self.config_file())
        self.nats_conf = self.config_map(self.nats)["nats.conf"]

    def kind(self, kind):
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind, name):
        return kustomize.find(self.objects, kind, name)

    def config_file(self):
        # Not under the name that a program without `--config` looks for.
        path = Path(scratch, f"{self.name}.toml")
        path.write_text(self.config_map(self.nodes)["unisono.toml"])
        return path

    def config_map(self, workload):
        name, = (volume["configMap"]["name"] for volume in pod(workload)["volumes"] if "configMap" in volume)
        return self.one("ConfigMap", name)["data"]

    def hold(self, condition, message):
        hold(self.name, condition, message)

    def check(self):
        for workload in (self.nodes, self.nats):
            self.check_confined(workload)
            self.check_volumes(workload)
            self.check_variables(workload)
            self.check_probes(workload)
        self.check_references()
        self.check_secrets()
        self.check_ports()
        self.check_stop()
        self.check_resources()
        self.check_nats()
        if self.kind("HorizontalPodAutoscaler"):
            self.check_autoscaling()
        if any(policy["spec"]["podSelector"] == {} for policy in self.kind("NetworkPolicy")):
            self.check_policies()

    # Pods

    def check_confined(self, workload):
        """What the profile `restricted` of the Pod Security Standards asks for, and more."""
        name, spec = workload["metadata"]["name"], pod(workload)
        security, own = spec["securityContext"], container(workload)["securityContext"]
        self.hold(security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, f"{name} may be root")
        self.hold(security.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{name}: seccomp is off")
        self.hold(own.get("allowPrivilegeEscalation") is False, f"{name} may gain privileges")
        self.hold(own.get("capabilities") == {"drop": ["ALL"]}, f"{name} has capabilities")
        self.hold(own.get("readOnlyRootFilesystem") is True, f"{name} may write to its image")
        self.hold(spec.get("automountServiceAccountToken") is False, f"{name} has a token of Kubernetes")
        for volume in spec["volumes"]:
            kinds = set(volume) - {"name"}
            self.hold(kinds <= {"configMap", "secret", "projected", "emptyDir"}, f"{name} has a volume {kinds}")
        enforced = {item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] for item in self.kind("Namespace")}
        self.hold(enforced == {"restricted"}, "its namespace is not restricted")

    def check_volumes(self, workload):
        mounted = sorted(mount["name"] for mount in container(workload)["volumeMounts"])
        volumes = sorted(volume["name"] for volume in pod(workload)["volumes"])
        self.hold(mounted == volumes, f"{workload['metadata']['name']} has volumes {volumes} and mounts {mounted}")

    def check_variables(self, workload):
        """Kubernetes puts into a variable only those that stand before it."""
        before = set()
        for variable in container(workload)["env"]:
            for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                self.hold(used in before, f"the variable {variable['name']} uses {used} before it is there")
            before.add(variable["name"])

    def check_probes(self, workload):
        ports = named_ports(workload)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = container(workload)[probe]["httpGet"]["port"]
            self.hold(port in ports, f"{workload['metadata']['name']}: {probe} asks the port {port}, which it has not")

    # What names what

    def check_references(self):
        workloads = (self.nodes, self.nats)
        labels = {item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"] for item in workloads}
        for item in workloads:
            name, wanted = item["metadata"]["name"], item["spec"]["selector"]["matchLabels"]
            self.hold(wanted.items() <= labels[name].items(), f"{name} does not select its own pods")
        for service in self.kind("Service"):
            name, spec = service["metadata"]["name"], service["spec"]
            wanted = spec["selector"].items()
            behind = [item for item in workloads if wanted <= labels[item["metadata"]["name"]].items()]
            self.hold(len(behind) == 1, f"the Service {name} is for {len(behind)} workloads")
            for port in spec["ports"]:
                found = any(port["targetPort"] in named_ports(item) for item in behind)
                self.hold(found, f"the Service {name} leads to the port {port['targetPort']}, which is not there")
        self.one("Service", self.nats["spec"]["serviceName"])
        for budget in self.kind("PodDisruptionBudget"):
            wanted = budget["spec"]["selector"]["matchLabels"].items()
            held = any(wanted <= of.items() for of in labels.values())
            self.hold(held, f"the budget {budget['metadata']['name']} is for no pods")
        for route in self.kind("HTTPRoute"):
            for rule in route["spec"]["rules"]:
                for backend in rule["backendRefs"]:
                    port = self.service_port(backend["name"], port=backend["port"])
                    kind = port and port.get("appProtocol")
                    self.hold(kind == "kubernetes.io/ws", f"the HTTPRoute leads to {backend}, no port for WebSockets")
        for monitor in self.kind("ServiceMonitor"):
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            services = [item for item in self.kind("Service") if wanted <= item["metadata"]["labels"].items()]
            self.hold(len(services) == 1, f"the ServiceMonitor is for {len(services)} Services")
            for endpoint in monitor["spec"]["endpoints"]:
                found = all(self.service_port(item["metadata"]["name"], name=endpoint["port"]) for item in services)
                self.hold(found, f"the ServiceMonitor asks the port {endpoint['port']}, which is not there")

    def service_port(self, service, **wanted):
        for port in self.one("Service", service)["spec"]["ports"]:
            if wanted.items() <= port.items():
                return port
        return None

    def check_secrets(self):
        """Each one is applied with the rest, or docs/kubernetes.md says how to make it."""
        documented = set(re.findall(r"create secret \S+ (\S+)", Path("docs/kubernetes.md").read_text()))
        applied = {item["metadata"]["name"] for item in self.kind("Secret")}
        for name in secrets((self.nodes, self.nats)):
            self.hold(name in documented | applied, f"nobody makes the secret {name}")

    # Numbers

    def check_ports(self):
        ports = named_ports(self.nodes)
        for name, address in (("http", self.config["listen"]), ("admin", self.config["admin"]["listen"])):
            host, port = address.rsplit(":", 1)
            self.hold(host == "0.0.0.0", f"{name} is served at {host} only")
            self.hold(int(port) == ports[name], f"{name} is served at {port}, and the pod names {ports[name]}")

    def check_stop(self):
        """The time that a pod is given is enough for preStop, the whole drain, and what may hang at its end."""
        given = pod(self.nodes)["terminationGracePeriodSeconds"]
        needed = container(self.nodes)["lifecycle"]["preStop"]["sleep"]["seconds"] + drain(self.config)
        self.hold(given > needed, f"a node gets {given} s to stop, and may take {needed:g} s")
        rollout = self.nodes["spec"]["strategy"]["rollingUpdate"]
        self.hold(rollout["maxUnavailable"] == 0, "a rollout takes nodes away before new ones are there")

    def check_resources(self):
        resources = container(self.nodes)["resources"]
        cores = quantity(resources["requests"]["cpu"])
        workers = self.config["workers"]
        self.hold(workers == math.ceil(cores), f"{workers} workers for {cores:g} cores")
        for workload in (self.nodes, self.nats):
            memory = container(workload)["resources"]
            same = memory["requests"]["memory"] == memory["limits"]["memory"]
            self.hold(same, f"{workload['metadata']['name']} asks for less memory than it may take")

    def check_autoscaling(self):
        scaler, = self.kind("HorizontalPodAutoscaler")
        spec = scaler["spec"]
        target = spec["scaleTargetRef"]
        self.one(target["kind"], target["name"])
        self.hold("replicas" not in self.nodes["spec"], "each `apply` would undo what autoscaling did")
        self.hold(spec["minReplicas"] >= 3, "fewer than three nodes")
        most = self.config["sockets"]["max"]
        sockets = quantity(self.socket_metric()["target"]["averageValue"])
        self.hold(0.5 <= sockets / most <= 0.75, f"it aims at {sockets:g} sockets of {most} that a node takes")
        self.hold(any(metric["type"] == "Resource" for metric in spec["metrics"]), "autoscaling has no fallback")
        down = spec["behavior"]["scaleDown"]
        given = pod(self.nodes)["terminationGracePeriodSeconds"]
        self.hold(down["stabilizationWindowSeconds"] >= 600, "it takes nodes away after a short calm")
        for policy in down["policies"]:
            self.hold(policy["periodSeconds"] > given, "it takes a node away while another one may still drain")

    def socket_metric(self):
        scaler, = self.kind("HorizontalPodAutoscaler")
        metric, = (metric["pods"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods")
        return metric

    def check_nats(self):
        text, ports = self.nats_conf, named_ports(self.nats)
        top, inside = re.search(r"^port: (\d+)", text, re.M), re.search(r"^  port: (\d+)", text, re.M)
        monitor = re.search(r"^http_port: (\d+)", text, re.M)
        for name, found in (("nats", top), ("routes", inside), ("monitor", monitor)):
            self.hold(int(found[1]) == ports[name], f"NATS has {name} at {found[1]}, and its pod names {ports[name]}")
        routes = re.findall(r"nats://(\S+):(\d+)", text)
        name, service = self.nats["metadata"]["name"], self.nats["spec"]["serviceName"]
        servers = [f"{name}-{index}.{service}" for index in range(len(routes))]
        self.hold([host for host, _ in routes] == servers, f"routes lead to {routes}, servers are {servers}")
        self.hold({int(port) for _, port in routes} == {ports["routes"]}, "routes lead to other ports than theirs")
        self.hold(len(routes) >= self.nats["spec"]["replicas"], "a server has no route to it")
        scheme = "tls" if re.search(r"^tls \{", text, re.M) else "nats"
        wanted = [f"{scheme}://{service}:{ports['nats']}"]
        self.hold(self.config["cluster"]["nats"] == wanted, f"cluster.nats is not {wanted}")
        duck = int(re.search(r"^lame_duck_duration: (\d+)s", text, re.M)[1])
        given = pod(self.nats)["terminationGracePeriodSeconds"]
        self.hold(given > duck, f"NATS gets {given} s to stop, and takes {duck} s")

    # Policies

    def check_policies(self):
        everyone = [item for item in self.kind("NetworkPolicy") if item["spec"]["podSelector"] == {}]
        for policy in everyone:
            self.hold(policy["spec"]["policyTypes"] == ["Ingress", "Egress"], "the default is not to deny both ways")
        nodes, nats = named_ports(self.nodes), named_ports(self.nats)
        self.hold(self.admitted(self.nodes, "ingress") == {nodes["http"], nodes["admin"]}, "who may speak to nodes")
        self.hold(self.admitted(self.nodes, "egress") == {nats["nats"], 53}, "whom nodes may speak to")
        self.hold(self.admitted(self.nats, "ingress") == set(nats.values()), "who may speak to NATS")
        self.hold(self.admitted(self.nats, "egress") == {nats["routes"], 53}, "whom NATS may speak to")
        text = str(self.one("NetworkPolicy", "unisono")["spec"]["ingress"])
        for route in self.kind("HTTPRoute"):
            for parent in route["spec"]["parentRefs"]:
                self.hold(f"'{parent['namespace']}'" in text, f"no policy lets the Gateway in {parent['namespace']} in")
        labels = self.nodes["spec"]["template"]["metadata"]["labels"]
        bus = [rule["from"] for rule in self.one("NetworkPolicy", "unisono-nats")["spec"]["ingress"]
               if {"port": nats["nats"]} in rule["ports"]]
        for rule in bus:
            wanted = rule[0]["podSelector"]["matchLabels"].items()
            self.hold(wanted <= labels.items(), "the policy of NATS keeps the nodes out")

    def admitted(self, workload, direction):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        ports = set()
        for policy in self.kind("NetworkPolicy"):
            spec = policy["spec"]
            wanted = spec["podSelector"].get("matchLabels")
            if wanted and wanted.items() <= labels.items():
                ports |= {port["port"] for rule in spec.get(direction, []) for port in rule["ports"]}
        return ports


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    one, = pod(workload)["containers"]
    return one


def named_ports(workload):
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def secrets(value):
    """The names of all secrets that something refers to."""
    found = set()
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("secretKeyRef", "secret"):
                found.add(item.get("name") or item.get("secretName"))
            found |= secrets(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            found |= secrets(item)
    return found


def quantity(text):
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def drain(config):
    """The longest that a node takes from SIGTERM to its end: `Server::drain`, number by number."""
    text = Path("server/src/server.rs").read_text()
    leave, flush, kept = (int(re.search(rf"const {name}_TIMEOUT: Duration = Duration::from_secs\((\d+)\)", text)[1])
                          for name in ("LEAVE", "FLUSH", "KEPT"))
    sockets = config["sockets"]
    closing = max(2 * seconds(sockets["close_timeout"]), seconds(sockets["handler_timeout"]))
    window = max(seconds(config["drain"]["window"]), int(sockets["max"]) / int(config["drain"]["rate"]))
    sockets_gone = seconds(config["drain"]["delay"]) + window + closing
    return max(sockets_gone, kept) + 3 * leave + flush


# === the program ===


def unisono(*arguments, **variables):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=scratch,
                          env={**os.environ, **variables})


def effective(path, **variables):
    """The whole configuration, defaults and all, of a node with this file."""
    arguments = ["--config", str(path)] if path else []
    checked = unisono("check-config", *arguments, **variables)
    if checked.returncode != 0:
        sys.exit(f"{path or 'compose.yaml'}: {checked.stderr.strip()}")
    return tomllib.loads(unisono("config", *arguments, **variables).stdout)


def check_order():
    """Our files have the reference's keys in the reference's order."""
    reference = keys(Path("server/src/unisono.toml").read_text())
    for path in sorted(K8S.rglob("unisono.toml")):
        # Those of [[rooms]] stand in comments there, and what is no key at all `check-config` finds.
        places = [reference.index(key) for key in keys(path.read_text()) if key in reference]
        hold(path, places == sorted(places), "its keys are in another order than those of server/src/unisono.toml")


def keys(text):
    section, found = "", []
    for line in text.splitlines():
        if match := re.match(r"\[+\w+\]+", line):
            section = match[0]
        elif match := re.match(r"(\w+) =", line):
            found.append((section, match[1]))
    return found


def check_node(overlay):
    """A node with the overlay's file answers the probes and has the metrics that the manifests ask for."""
    arguments = ["--config", overlay.config_file(), "--listen", "127.0.0.1:0"]
    here = {"admin.listen": "127.0.0.1:0", "drain.delay": "0s", "api.keys_file": ""}
    alone = dict.fromkeys(["nats", "nats_user", "nats_password_file", "nats_tls_ca"], "")
    here.update((f"cluster.{key}", value) for key, value in alone.items())
    arguments += [part for key, value in here.items() for part in ("--set", f"{key}={value}")]
    node = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                            cwd=scratch)
    try:
        admin = None
        for line in node.stdout:
            if found := re.search(r"metrics\s+(http://\S+)/metrics", line):
                admin = found[1]
                break
        hold(overlay.name, admin, "a node with its file does not start")
        if not admin:
            return
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container(overlay.nodes)[probe]["httpGet"]["path"]
            status = settled(admin + path)
            hold(overlay.name, status == 200, f"{probe}: {path} answers {status}")
        for monitor in overlay.kind("ServiceMonitor"):
            for endpoint in monitor["spec"]["endpoints"]:
                status, text = get(admin + endpoint["path"])
                hold(overlay.name, status == 200, f"ServiceMonitor: {endpoint['path']} answers {status}")
                name = overlay.socket_metric()["metric"]["name"]
                # The adapter adds up its labels.
                found = re.search(rf"^{name}(\{{[^}}]*\}})? 0$", text, re.M)
                hold(overlay.name, found, f"autoscaling goes by {name}, which a node does not tell")
    finally:
        node.send_signal(signal.SIGTERM)
        try:
            hold(overlay.name, node.wait(timeout=30) == 0, "SIGTERM does not end a node well")
        finally:
            node.kill()


def settled(url):
    """The status of a probe, once the node is ready or has had time to be."""
    end = time.monotonic() + 10
    while True:
        status, _ = get(url)
        if status != 503 or time.monotonic() > end:
            return status
        time.sleep(0.05)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# === the image ===


def check_image(nodes):
    text = Path("k8s/image/Dockerfile").read_text()
    cargo = tomllib.loads(Path("Cargo.toml").read_text())
    package = cargo["workspace"]["package"]
    name = f"unisono:{package['version']}"
    hold("Dockerfile", name in text, f"says how to build another image than {name}")
    images = [container(kustomize.find(nodes, "Deployment", "unisono"))["image"]]
    images += [item["image"] for item in compose()["services"].values() if "build" in item]
    for image in images:
        hold("image", image == name, f"{image} instead of {name}")
    hold("Dockerfile", f"FROM rust:{package['rust-version']}-" in text, "another Rust than Cargo.toml's rust-version")
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M))
    sources = {source for line in copied for source in line.split()}
    # A folder comes with those below it.
    folders = {member.split("/")[0] for member in cargo["workspace"]["members"]}
    wanted = {"Cargo.toml", "Cargo.lock", *folders}
    hold("Dockerfile", sources == wanted, f"copies {sorted(sources)}, and the workspace is {sorted(wanted)}")
    ignored = Path("k8s/image/Dockerfile.dockerignore").read_text().split()
    hold("Dockerfile.dockerignore", {line[1:] for line in ignored if line[0] == "!"} == wanted, "lets through others")
    spec = pod(kustomize.find(nodes, "Deployment", "unisono"))["securityContext"]
    user = f"USER {spec['runAsUser']}:{spec['runAsGroup']}"
    hold("Dockerfile", user in text, f"has another user than the Deployment: {user}")
    port = named_ports(kustomize.find(nodes, "Deployment", "unisono"))["http"]
    hold("Dockerfile", f"EXPOSE {port}\n" in text and f'"0.0.0.0:{port}"' in text, f"serves another port than {port}")
    # What distroless/cc has, and nothing else there is.
    has = {"libc", "libm", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64", "linux-vdso", "libpthread", "libdl"}
    linked = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True).stdout
    needs = {Path(line.split()[0]).name.split(".so")[0] for line in linked.splitlines() if line.strip()}
    hold("Dockerfile", needs <= has, f"its base has no {', '.join(sorted(needs - has))}")


def compose():
    return yaml.safe_load(Path("k8s/image/compose.yaml").read_text())


def check_compose(nginx):
    services = compose()["services"]
    nodes = {name: item for name, item in services.items() if "build" in item}
    hold("compose.yaml", len(nodes) == 3, f"{len(nodes)} nodes")
    for name, node in nodes.items():
        hold("compose.yaml", node["hostname"] == name, f"{name} calls itself {node['hostname']}")
        variables = {key: re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", value) for key, value in node["environment"].items()}
        config = effective(None, **variables)
        given, needed = seconds(node["stop_grace_period"]), drain(config)
        hold("compose.yaml", given > needed, f"{name} gets {given:g} s to stop, and may take {needed:g} s")
        for url in config["cluster"]["nats"]:
            host, port = re.fullmatch(r"nats://(.+):(\d+)", url).groups()
            hold("compose.yaml", services[host]["command"] == ["--port", port], f"{url} is not there")
        for path in (node["build"]["context"], node["build"]["dockerfile"]):
            base = Path("k8s/image") if path.startswith(".") else Path()
            hold("compose.yaml", (base / path).exists(), f"there is no {path}")
    script = re.search(r"sed '([^']+)'", services["nginx"]["command"][-1])[1]
    text = subprocess.run(["sed", script, nginx], check=True, capture_output=True, text=True).stdout
    upstream = re.findall(r"^    server (\S+):8080 ", text, re.M)
    hold("compose.yaml", upstream == list(nodes), f"nginx knows {upstream}, nodes are {list(nodes)}")


# === all of it ===


def main():
    rendered = render_all()
    check_reached()
    for folder, objects in rendered.items():
        check_schemas(folder, objects)
    print(f"schemas of Kubernetes {', '.join(VERSIONS)}; of our own means: {', '.join(sorted(EXTENSIONS))}")
    check_order()
    overlays = [Overlay(name, rendered[f"overlays/{name}"]) for name in OVERLAYS]
    for overlay in overlays:
        overlay.check()
        check_node(overlay)
    development, production = overlays
    common = set(comments_off(development.nats_conf)) - set(comments_off(production.nats_conf))
    hold("production", not common, f"its nats.conf lacks {sorted(common)}")
    check_image(rendered["base"])
    check_compose("nginx/unisono.conf")
    for line in broken:
        print(f"broken: {line}")
    if broken:
        sys.exit("k8s: does not hold, see above")
    print("overlays, configuration, program, image and compose file agree")


def comments_off(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        try:
            main()
        except ValueError as error:
            sys.exit(f"k8s: {error}")
