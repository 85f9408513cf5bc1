"""Runs the pods of the production overlay on this machine, confined as their manifests say: three NATS servers and two
nodes, each on a read-only root of its own, as a user that is not root, without capabilities.

Needs root, in namespaces of its own for mounts, processes and network (tests/k8s/run sees to that). Pods share the
network: each has an address of its own, 127.0.1.x, that its arguments are told. Everything else is as rendered.
Argument: the path of the program `unisono`.
"""

import base64
import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import kustomize

OVERLAY = "k8s/overlays/production"
PROGRAMS = {"unisono": sys.argv[1], "nats-server": shutil.which("nats-server")}
# One that begins as a number does: what NATS reads of a variable, it takes for its own language.
SECRETS = {
    "unisono": {"api-keys": secrets.token_hex(16)},
    "unisono-bus": {"node": f"12k{secrets.token_hex(16)}", "application": f"3e5{secrets.token_hex(16)}"},
}

libc = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


def call(number):
    if number != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount(source, target, kind, flags, data=""):
    call(libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, data.encode()))


def eventually(what, condition, seconds=30):
    """Waits until the condition holds, and gives back what it gave."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except OSError:
            found = None
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not so within {seconds} s: {what}")
        time.sleep(0.05)


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


# === a pod ===


class Pod:
    """One container on a root of its own."""

    def __init__(self, workload, name, address, objects, hosts, *overrides):
        self.name, self.address = name, address
        self.spec = workload["spec"]["template"]["spec"]
        self.container, = self.spec["containers"]
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.root = Path(scratch, name)
        self.objects = objects
        self.command = self.container.get("command", ["unisono"])
        self.arguments = [*self.command, *self.container["args"], *overrides]
        self.log = Path(scratch, f"{name}.log")
        self.furnish(hosts)

    def furnish(self, hosts):
        """The image: the program and its libraries, nothing else. The volumes. Then the root is sealed."""
        program = self.command[0]
        image = {path: path.lstrip("/") for path in libraries(PROGRAMS[program])}
        image[PROGRAMS[program]] = f"usr/local/bin/{program}"
        for path, place in image.items():
            target = self.root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        Path(self.root, "etc").mkdir(exist_ok=True)
        # In place of the cluster's DNS. One name may have several addresses.
        Path(self.root, "etc/hosts").write_text(hosts)
        Path(self.root, "etc/host.conf").write_text("multi on\n")
        writable = []
        for point in self.container["volumeMounts"]:
            volume, = (volume for volume in self.spec["volumes"] if volume["name"] == point["name"])
            folder = self.root / point["mountPath"].lstrip("/")
            folder.mkdir(parents=True)
            if "emptyDir" in volume:
                writable.append(folder)
            for path, text, mode in self.files(volume):
                file = folder / path
                file.write_text(text)
                file.chmod(mode)
                os.chown(file, 0, self.spec["securityContext"]["fsGroup"])
        mount(str(self.root), self.root, "", MS_BIND)
        mount("none", self.root, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
        for folder in writable:
            mount("none", folder, "tmpfs", 0, f"mode=1770,gid={self.spec['securityContext']['fsGroup']}")

    def files(self, volume):
        """Each file of a volume: path, text, mode."""
        if "configMap" in volume:
            data = kustomize.find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
            yield from ((name, text, 0o644) for name, text in data.items())
        if "secret" in volume:
            secret = volume["secret"]
            yield from ((name, text, secret["defaultMode"]) for name, text in SECRETS[secret["secretName"]].items())
        for source in volume.get("projected", {}).get("sources", []):
            secret, mode = source["secret"], volume["projected"]["defaultMode"]
            yield from ((item["path"], SECRETS[secret["name"]][item["key"]], mode) for item in secret["items"])

    def variables(self):
        found = {"PATH": "/usr/local/bin"}
        for variable in self.container["env"]:
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                text = self.name
            elif "secretKeyRef" in source:
                text = SECRETS[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            else:
                text = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
            found[variable["name"]] = text
        return found

    def confine(self):
        """Between fork and exec: what the security contexts say."""
        security, own = self.spec["securityContext"], self.container["securityContext"]
        os.chroot(self.root)
        os.chdir("/")
        if own["capabilities"]["drop"] == ["ALL"]:
            for capability in range(64):
                libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([security["fsGroup"]])
        os.setresgid(*[security["runAsGroup"]] * 3)
        os.setresuid(*[security["runAsUser"]] * 3)
        if own["allowPrivilegeEscalation"] is False:
            call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))

    def run(self, arguments, **options):
        path = f"/usr/local/bin/{arguments[0]}"
        return subprocess.Popen([path, *arguments[1:]], env=self.variables(), preexec_fn=self.confine, **options)

    def start(self):
        with self.log.open("w") as log:
            self.process = self.run(self.arguments, stdout=log, stderr=log)
        return self

    def probe(self, name):
        """The status that a probe of the manifest gets."""
        asked = self.container[name]["httpGet"]
        return get(f"http://{self.address}:{self.ports[asked['port']]}{asked['path']}")[0]

    def check_confined(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        user = str(self.spec["securityContext"]["runAsUser"])
        expect(set(facts["Uid"].split()) == {user}, f"{self.name} runs as {facts['Uid']}")
        for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect(int(facts[kind], 16) == 0, f"{self.name} has capabilities: {kind} {facts[kind]}")
        expect(facts["NoNewPrivs"] == "1", f"{self.name} may gain privileges")
        try:
            Path(f"/proc/{self.process.pid}/root/written").write_text("")
            raise AssertionError(f"the root of {self.name} can be written to")
        except OSError as error:
            expect(error.errno == errno.EROFS, f"{self.name}: {error}")


def libraries(program):
    linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", linked)


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    return answer(request)


def post(url, body, **headers):
    return answer(urllib.request.Request(url, json.dumps(body).encode(), headers))


def answer(request):
    try:
        with urllib.request.urlopen(request, timeout=5) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# === what surrounds them ===


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_and_running = 0x1 | 0x40
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", up_and_running))


def make_certificate():
    """By the commands of docs/kubernetes.md, word for word, but for kubectl's."""
    text = Path("docs/kubernetes.md").read_text()
    script = re.search(r"```sh\n(openssl req -x509.*?)kubectl ", text, re.S)[1]
    folder = Path(scratch, "certificate")
    folder.mkdir()
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True)
    SECRETS["unisono-nats-tls"] = {name: (folder / name).read_text() for name in ("tls.crt", "tls.key", "ca.crt")}


def open_socket(node, origin):
    """A client as it comes through the Gateway: the status of the answer, and the connection."""
    client = socket.create_connection((node.address, node.ports["http"]), timeout=10)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall((
        "GET /chat-rooms/1 HTTP/1.1\r\nHost: chat.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nOrigin: {origin}\r\n\r\n"
    ).encode())
    return int(client.recv(4096).split()[1]), client


# === the story ===


def main():
    # What is mounted in here, nobody outside sees; and processes are those of this namespace.
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)
    raise_loopback()
    make_certificate()
    objects = kustomize.render(OVERLAY)
    nodes = kustomize.find(objects, "Deployment", "unisono")
    nats = kustomize.find(objects, "StatefulSet", "unisono-nats")
    service = nats["spec"]["serviceName"]
    names = [f"{service}-{index}" for index in range(nats["spec"]["replicas"])]
    addresses = [f"127.0.1.{10 + index}" for index in range(len(names))]
    hosts = "127.0.0.1 localhost\n"
    for name, address in zip(names, addresses):
        hosts += f"{address} {name}.{service}\n{address} {service}\n"

    servers = [Pod(nats, name, address, objects, hosts, "--addr", address, "--cluster_listen", f"nats://{address}:6222")
               for name, address in zip(names, addresses)]
    clients = []
    for index in range(2):
        address = f"127.0.1.{20 + index}"
        clients.append(Pod(nodes, f"unisono-{index}", address, objects, hosts, "--listen", f"{address}:8080",
                           "--set", f"admin.listen={address}:9090"))
    pods.extend(servers + clients)
    for pod in pods:
        pod.start()
    for pod in pods:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            eventually(f"{probe} of {pod.name}", lambda: pod.probe(probe) == 200)
        pod.check_confined()
    for pod in servers:
        monitor = f"http://{pod.address}:{pod.ports['monitor']}/routez"
        eventually(f"{pod.name} has routes to the others", lambda: routed(monitor) == len(names) - 1)
    print("pods: three NATS servers and two nodes run, not as root, on read-only roots, without capabilities")

    first, second = clients
    api = f"http://{first.address}:{first.ports['http']}"
    expect(get(f"{api}/api/v1/nodes")[0] == 401, "the HTTP API answers without a key")
    expect(get(f"{api}/metrics")[0] == 404, "clients may read the metrics")
    eventually("the nodes know each other", lambda: confirmed(api) == 2)
    expect(open_socket(second, "https://elsewhere.example")[0] == 403, "a page from elsewhere may connect")
    status, client = open_socket(second, "https://chat.example.com")
    expect(status == 101, f"a client gets {status}")
    metrics = f"http://{second.address}:{second.ports['admin']}/metrics"
    eventually("a socket is counted", lambda: re.search(r'^unisono_sockets{wire="websocket"} 1$', get(metrics)[1], re.M))
    client.close()
    print("pods: the nodes speak to each other over NATS, with passwords and TLS")

    check_health(first)

    leaving = servers[0]
    hook = leaving.run(leaving.container["lifecycle"]["preStop"]["exec"]["command"], stdout=subprocess.DEVNULL)
    expect(hook.wait(timeout=10) == 0, "the preStop hook of NATS fails")
    eventually("NATS is on its way out", lambda: "lame duck" in leaving.log.read_text().lower())
    leaving.process.send_signal(signal.SIGTERM)
    eventually("the nodes do without it", lambda: leaving.process.poll() is not None or connections(leaving) == 0, 60)
    eventually("they are one cluster still", lambda: confirmed(api) == 2)
    print("pods: a NATS server goes, and the nodes go over to the others")

    given = nodes["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    second.process.send_signal(signal.SIGTERM)
    eventually("a node that drains is not ready", lambda: second.probe("readinessProbe") == 503)
    expect(second.probe("livenessProbe") == 200, "a node that drains is not alive")
    expect(second.process.wait(timeout=given) == 0, "a node does not end well")
    eventually("the other one knows", lambda: confirmed(api) == 1)
    print("pods: a node drains and ends")


def routed(url):
    """How many other servers one has routes to; newer ones have several to each."""
    return len({route["remote_id"] for route in json.loads(get(url)[1])["routes"]})


def connections(server):
    return json.loads(get(f"http://{server.address}:{server.ports['monitor']}/varz")[1])["connections"]


def confirmed(api):
    """How many nodes took a publication."""
    key = {"Authorization": f"Bearer {SECRETS['unisono']['api-keys']}"}
    message = {"room": "/chat-rooms/1", "event": "x", "confirm": True}
    status, text = post(f"{api}/api/v1/publish", message, **key)
    expect(status == 200, f"publish answers {status}: {text}")
    nodes = json.loads(text).get("nodes", {"reached": 0, "missing": []})
    return nodes["reached"] if not nodes["missing"] else None


def check_health(node):
    """The image's health check: `unisono health`, in its own root."""
    for port in node.ports.values():
        for extra in ([], ["--live"]):
            check = node.run(["unisono", "health", "--url", f"http://{node.address}:{port}", *extra])
            expect(check.wait(timeout=10) == 0, f"unisono health {extra} fails at port {port}")
    check = node.run(["unisono", "health", "--url", f"http://{node.address}:1"], stderr=subprocess.DEVNULL)
    expect(check.wait(timeout=10) == 1, "unisono health succeeds where nobody listens")


if __name__ == "__main__":
    pods = []
    scratch = tempfile.mkdtemp()
    os.chmod(scratch, 0o755)
    try:
        main()
    except Exception as error:
        for pod in pods:
            if pod.log.exists():
                print(f"--- {pod.name}", *pod.log.read_text().splitlines()[-15:], sep="\n")
        sys.exit(f"pods: {type(error).__name__}: {error}")
    finally:
        # Their mounts and processes end with the namespaces; the files are removed from under the mounts.
        for pod in pods:
            if getattr(pod, "process", None):
                pod.process.kill()
                pod.process.wait()
            for line in reversed(Path("/proc/mounts").read_text().splitlines()):
                if line.split()[1].startswith(str(pod.root)):
                    libc.umount2(line.split()[1].encode(), 2)
        shutil.rmtree(scratch)
