"""Measures what bench/shell.sh has started; prints one table. Rounds are interleaved, and medians shown."""

import argparse, json, os, pty, shlex, statistics, subprocess, sys, termios, time

options = argparse.ArgumentParser()
for name in ["raw", "exec", "shell"]:
    options.add_argument("--" + name, required=True)
options.add_argument("--keys", type=int, default=2000)
options.add_argument("--rounds", type=int, default=5)
args = options.parse_args()
SIZE = 10 << 20


class Pipe:
    """A program that is typed into and read from."""

    def __init__(self, words):
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.write, self.fd = self.process.stdin.write, self.process.stdout.fileno()

    def until(self, words):
        seen = b""
        while words not in seen:
            piece = os.read(self.fd, 65536)
            assert piece, f"ended before {words}: {seen[-500:]}"
            seen += piece

    def end(self):
        self.process.kill()
        self.process.wait()


def echoes(one, key=b"x"):
    """Each key's way there and back, in ms, sorted."""
    times = []
    for _ in range(args.keys):
        begin = time.perf_counter()
        one.write(key)
        assert os.read(one.fd, 4096)
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)


def zeros(fd):
    """MB/s of so many zeros, from the first of them."""
    seen, begin = 0, None
    while seen < SIZE:
        piece = os.read(fd, 1 << 16)
        assert piece, f"{seen} of {SIZE} bytes"
        count = piece.count(0)
        if count and begin is None:
            begin = time.perf_counter()
        seen += count
    return SIZE / 1e6 / (time.perf_counter() - begin)


def bare():
    """A terminal with nothing between."""

    class Bare:
        pass

    one = Bare()
    one.fd, other = pty.openpty()
    one.write = lambda key: os.write(one.fd, key)
    # A line is never longer than what a terminal holds.
    times = sorted(sum((echoes_of(one, min(1000, args.keys - n)) for n in range(0, args.keys, 1000)), []))
    os.close(one.fd), os.close(other)
    return times


def echoes_of(one, count):
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        one.write(b"x")
        assert os.read(one.fd, 4096)
        times.append((time.perf_counter() - begin) * 1e3)
    termios.tcflush(one.fd, termios.TCIOFLUSH)
    return times


def executed():
    # Without a terminal: cat is what comes back from inside.
    one = Pipe([*shlex.split(args.exec), "cat"])
    one.write(b"begin")
    one.until(b"begin")
    times = echoes(one)
    one.end()
    return times


def shell():
    one = Pipe(shlex.split(args.shell))
    # Raw, as a program that draws its own line has it; cat brings back each key.
    one.write(b"stty raw -echo; echo rea''dy; cat\n")
    one.until(b"ready")
    time.sleep(0.5)
    times = echoes(one)
    one.end()
    return times


def executed_bulk():
    one = Pipe([*shlex.split(args.exec), "head", "-c", str(SIZE), "/dev/zero"])
    rate = zeros(one.fd)
    one.end()
    return rate


def shell_bulk():
    one = Pipe(shlex.split(args.shell))
    one.write(f"stty -opost; head -c {SIZE} /dev/zero; exit\n".encode())
    rate = zeros(one.fd)
    one.end()
    return rate


def at(times, share):
    return times[int((len(times) - 1) * share)]


raw = json.load(open(args.raw))["phases"][0]["small"]
seen = {"bare terminal": [], "kubectl exec, direct": [], "moorline shell": []}
rates = {"kubectl exec, direct": [], "moorline shell": []}
for _ in range(args.rounds):
    for name, measure in [("bare terminal", bare), ("kubectl exec, direct", executed), ("moorline shell", shell)]:
        times = measure()
        seen[name].append((at(times, 0.5), at(times, 0.99)))
    for name, measure in [("kubectl exec, direct", executed_bulk), ("moorline shell", shell_bulk)]:
        rates[name].append(measure())

print(f"{'echo of a key, ms':<28}{'p50':>10}{'p99':>10}")
print(f"{'raw tunnel':<28}{raw['p50Ms']:>10.3f}{raw['p99Ms']:>10.3f}")
found = {name: [statistics.median(x) for x in zip(*all)] for name, all in seen.items()}
for name, (p50, p99) in found.items():
    print(f"{name:<28}{p50:>10.3f}{p99:>10.3f}")
added = found["moorline shell"][1] - raw["p99Ms"] - found["bare terminal"][1]
print(f"{'a shell adds at p99':<28}{added:>20.3f}   (< 1: {'yes' if added < 1 else 'NO'})")
direct, ours = (statistics.median(rates[name]) for name in ["kubectl exec, direct", "moorline shell"])
print(f"10 MB of output, MB/s: kubectl exec, direct {direct:.0f}; moorline shell {ours:.0f}, {ours / direct:.2f} of it"
      f"   (>= 0.5: {'yes' if ours >= direct / 2 else 'NO'})")
sys.stdout.flush()
