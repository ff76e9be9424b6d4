"""Measures what bench/services.sh has started; prints one table. Rounds are interleaved, and medians shown."""

import argparse, json, re, socket, statistics, struct, subprocess, threading, time

options = argparse.ArgumentParser()
for name in ["web", "dns", "forward", "forward-dns", "hub", "ca", "token", "pids", "port", "kubectl", "raw"]:
    options.add_argument("--" + name, required=True)
options.add_argument("--rounds", type=int, default=3)
options.add_argument("--big", type=int, default=1, help="0: without the download of 10 GB")
options.add_argument("--idle", type=int, default=1000)
args = options.parse_args()
pids = dict(pair.split("=") for pair in args.pids.split(","))
bearer = "Authorization: Bearer " + args.token
by_path = f"https://{args.hub}/k8s/clusters/bench/services/bench/web:main"
host, port = args.hub.split(":")
name = f"{args.port}--web--bench--bench.services.bench.test"
rows = []


raw = {phase["streams"]: phase for phase in json.load(open(args.raw))["phases"]}
raw_p50 = raw[0]["small"]["p50Ms"] * 1e3
raw_gbit = raw[1]["mbitsEachWay"] / 1e3


def bound(what, holds, figure):
    """What the figure must be, and whether it is."""
    print(f"    {what}: {figure}  {'yes' if holds else 'NO'}", flush=True)


def row(what, *cells):
    rows.append((what, cells))
    print(f"{what:<58}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def rss(process):
    with open(f"/proc/{pids[process]}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))


def bulk(url, headers):
    out = subprocess.run(
        ["curl", "-sf", "--cacert", args.ca, "-o", "/dev/null", "-w", "%{speed_download}", *headers, url],
        check=True, capture_output=True, text=True)
    return float(out.stdout) * 8 / 1e9


def wrk(url, connections, headers=()):
    """p50 in µs and requests each second."""
    said = subprocess.run(["wrk", "-t1", f"-c{connections}", "-d3s", "--latency", *headers, url], check=True,
                          capture_output=True, text=True).stdout
    number, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()
    assert "Non-2xx" not in said, said
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1))
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit], rate


def dns(at, count=2000):
    """p50 and p99 in ms."""
    to = at.split(":")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((to[0], int(to[1])))
    sock.settimeout(5)
    times = []
    for i in range(count):
        ask = struct.pack(">HHHHHH", i & 0xFFFF, 0x100, 1, 0, 0, 0) + b"\5bench\4test\0" + struct.pack(">HH", 1, 1)
        begin = time.perf_counter()
        sock.send(ask)
        while struct.unpack(">H", sock.recv(512)[:2])[0] != i & 0xFFFF:
            pass
        times.append((time.perf_counter() - begin) * 1e3)
    times = sorted(times[50:])
    return times[len(times) // 2], times[len(times) * 99 // 100]


def rounds(measure):
    """Each of several in turn, so many times; medians."""
    seen = {key: [] for key in measure}
    for _ in range(args.rounds):
        for key, one in measure.items():
            seen[key].append(one())
    pick = lambda all: tuple(statistics.median(x) for x in zip(*all)) if isinstance(all[0], tuple) else statistics.median(all)
    return {key: pick(all) for key, all in seen.items()}


idle = {process: rss(process) for process in pids}
row("idle: resident memory, KiB", *(f"{process} {kib}" for process, kib in idle.items()))

found = rounds({
    "direct": lambda: dns(args.dns),
    "forward": lambda: dns(args.forward_dns),
})
row("DNS over UDP, p50 / p99, ms", *(f"{key} {p50:.3f} / {p99:.3f}" for key, (p50, p99) in found.items()))
more = found["forward"][1] - found["direct"][1]
bound("p99 at most 0.5 ms above direct", more <= 0.5, f"{more:+.3f}")
row("raw tunnel, small messages, p50 µs; one full stream, Gbit/s each way", f"{raw_p50:.0f}", f"{raw_gbit:.2f}")

authorized = ("-H", bearer)
named = ("-H", f"Host: {name}:{port}", "-H", bearer)
for connections in [1, 64]:
    found = rounds({
        "direct": lambda: wrk(f"http://{args.web}/small", connections),
        "forward": lambda: wrk(f"http://{args.forward}/small", connections),
        "path": lambda: wrk(f"{by_path}/small", connections, authorized),
        "name": lambda: wrk(f"https://{args.hub}/small", connections, named),
    })
    row(f"small GET, {connections} connections, p50 µs", *(f"{key} {p50:.0f}" for key, (p50, _) in found.items()))
    row(f"small GET, {connections} connections, each second", *(f"{key} {rate:.0f}" for key, (_, rate) in found.items()))
    # A connection that `moorline forward` keeps is bytes over one stream: the tunnel with nothing of HTTP.
    for way in ["path", "name"]:
        if connections == 1:
            more = found[way][0] - found["forward"][0]
            bound(f"by {way}, p50 at most 60 µs above raw bytes", more <= 60, f"{more:+.0f}")
        else:
            share = found[way][1] / found["forward"][1]
            bound(f"by {way}, at least 0.8 of the rate of raw bytes", share >= 0.8, f"{share:.2f}")

at_name = ["--connect-to", f"{name}:{port}:{host}:{port}", "-H", bearer]
found = rounds({
    "direct": lambda: bulk(f"http://{args.web}/bulk", []),
    "kubectl": lambda: bulk(f"http://{args.kubectl}/bulk", []),
    "forward": lambda: bulk(f"http://{args.forward}/bulk", []),
    "path": lambda: bulk(f"{by_path}/bulk", ["-H", bearer]),
    "name": lambda: bulk(f"https://{name}:{port}/bulk", at_name),
})
row("download, Gbit/s", *(f"{key} {gbit:.2f}" for key, gbit in found.items()))
bound("forward at least 10 × kubectl port-forward", found["forward"] >= 10 * found["kubectl"], f"{found['forward'] / found['kubectl']:.1f}")
bound("forward at least 0.9 of the raw tunnel", found["forward"] >= 0.9 * raw_gbit, f"{found['forward'] / raw_gbit:.2f}")

if args.big:
    most, done = {process: rss(process) for process in pids}, threading.Event()
    before = dict(most)

    def watch():
        while not done.wait(0.2):
            for process in pids:
                most[process] = max(most[process], rss(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    gbit = bulk(f"{by_path}/big", ["-H", bearer])
    done.set()
    watcher.join()
    row("download of 10 GiB by path: most above before, MiB", f"{gbit:.2f} Gbit/s",
        *(f"{process} {(most[process] - before[process]) / 1024:+.1f}" for process in pids))
    for process in ["hub", "agent"]:
        more = (most[process] - before[process]) / 1024
        bound(f"{process} at most 8 MiB more", more <= 8, f"{more:+.1f}")

time.sleep(10)
before = {process: rss(process) for process in pids}
to = args.forward.split(":")
open_ones = []
for _ in range(args.idle):
    open_ones.append(socket.create_connection((to[0], int(to[1])), timeout=30))
# Each is through when it answers; then it stands idle on its kept connection.
for one in open_ones:
    one.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
for one in open_ones:
    one.settimeout(60)
    assert one.recv(4096).startswith(b"HTTP/1.1 200"), "no answer"
time.sleep(5)
row(f"{args.idle:,} idle forwards, KiB each", *(f"{process} {(rss(process) - before[process]) / args.idle:.1f}" for process in pids))
for process in pids:
    each = (rss(process) - before[process]) / args.idle
    bound(f"{process} at most 32 KiB each", each <= 32, f"{each:.1f}")
print(json.dumps({what: cells for what, cells in rows}))
