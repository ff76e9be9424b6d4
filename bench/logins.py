"""Called by logins.sh: small requests at a steady pace, alone and beside a flood of wrong logins."""
import asyncio, json, ssl, sys, time

hub, ca, token, pid, logins, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
context = ssl.create_default_context(cafile=ca)
PACE = 100  # requests each second: far from full, so that what is measured is waiting and not queues of our own
ADDRESSES = 200


def memory():
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def connect(address):
    return await asyncio.open_connection("127.0.0.1", hub, ssl=context, server_hostname="127.0.0.1", local_addr=(address, 0))


async def ask(streams, request):
    reader, writer = streams
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    await reader.readexactly(int(length[0]) if length else 0)
    return int(head.split()[1])


async def small(until, took):
    path = "/k8s/clusters/bench/api/v1/namespaces/default"
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n\r\n".encode()
    streams, following = await connect("127.0.0.1"), time.monotonic()
    while time.monotonic() < until:
        begun = time.monotonic()
        code = await ask(streams, request)
        assert code == 200, code
        took.append(time.monotonic() - begun)
        following += 4 / PACE
        await asyncio.sleep(max(0, following - time.monotonic()))


async def flood(number, until, answers):
    address = f"127.0.1.{number + 1}"
    streams, following, n = None, time.monotonic() + number / ADDRESSES, 0
    while time.monotonic() < until:
        n += 1
        body = json.dumps({"username": f"user-{number}-{n % 50}", "password": f"wrong {n}"}).encode()
        head = f"POST /auth/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            streams = streams or await connect(address)
            code = await ask(streams, head.encode() + body)
        except (OSError, asyncio.IncompleteReadError):
            streams, code = None, 0  # strangers' connections end after a while
        answers[code] = answers.get(code, 0) + 1
        following += ADDRESSES / logins
        await asyncio.sleep(max(0, following - time.monotonic()))


async def measure(with_flood):
    until, took, answers, most = time.monotonic() + seconds, [], {}, [memory()]

    async def watch():
        while time.monotonic() < until:
            most[0] = max(most[0], memory())
            await asyncio.sleep(0.1)

    tasks = [small(until, took) for _ in range(4)] + [watch()]
    tasks += [flood(number, until, answers) for number in range(ADDRESSES)] if with_flood else []
    await asyncio.gather(*tasks)
    took.sort()
    return took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000, most[0], answers


async def main():
    alone = await measure(False)
    flooded = await measure(True)
    for name, (p50, p99, mib, answers) in (("alone", alone), ("flooded", flooded)):
        print(f"{name:8} p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  hub {mib:6.1f} MiB  answers to logins {answers}")
    times, more, bound = flooded[1] / alone[1], flooded[2] - alone[2], 4 * 19 + 24
    done = sum(flooded[3].values()) / seconds
    print(f"{done:.0f} wrong logins/s: p99 x {times:.2f} (goal 2), {more:.1f} MiB more (goal {bound}: 4 hashes of 19 MiB, and connections)")


asyncio.run(main())
