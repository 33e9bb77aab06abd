"""Does a judge behind a slow endpoint slow a round down? Generation alone against generation with the judge.

    python benchmarks/judge_overlap.py [--prompts 256] [--rounds 3] [--concurrency 64] [--latency-ms 50]

Plays rounds of the embedded task with a judge that costs nothing, and with `llm` judges whose endpoint, a process of
its own on loopback, answers every request after the latency. The learning rate is next to nothing, so that all rounds
sample the same. Prints the seconds from a round's first sampled shard being asked for to its pairs, without the first
round, which warms the engine up; asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ANSWER = re.compile(r"<answer(?:-[AB])?-[0-9a-f]{12}>\n(.*?)\n</answer", re.S)
KEY = re.compile(r"verdict_[0-9a-f]{6}")
CODE = re.compile(r'"code": "([0-9a-f]{6})"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.latency_ms / 1000))
        return
    command = [sys.executable, __file__, "--serve", "--latency-ms", str(args.latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            base_url = server.stdout.readline().strip()
            measure(args, base_url)
        finally:
            server.terminate()


def measure(args: argparse.Namespace, base_url: str) -> None:
    endpoint = [
        "judge.type=llm",
        f"judge.endpoint.base_url={base_url}",
        "judge.endpoint.model=slow",
        f"judge.concurrency={args.concurrency}",
    ]
    judges = {
        "generation alone": ["judge.type=python", "judge.target=free.py:score"],
        "pointwise": [*endpoint, "judge.form=pointwise"],
        "pairwise, one order": [*endpoint, "judge.both_orders=false"],
        "pairwise, both orders": endpoint,
        "generation alone, again": ["judge.type=python", "judge.target=free.py:score"],
    }
    print("| judge | requests a round | seconds, median | beside generation alone | of the rounds |")
    print("|---|---|---|---|---|")
    found: dict[str, float] = {}
    for name, judge in judges.items():
        seconds, requests = play(args, judge)
        found[name] = statistics.median(seconds)
        ratio = found[name] / found["generation alone"] - 1.0
        each = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"| {name} | {requests} | {found[name]:.2f} | {ratio:+.1%} | {each} |", flush=True)


def play(args: argparse.Namespace, judge: list[str]) -> tuple[list[float], int]:
    """Seconds of sampling and judging in each round but the first, and the requests of the last."""
    # Ray runs workers at nice 15; the server would then come before the generator.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    from online_dpo import load_config, run

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"film {i} begins with"}) + "\n" for i in range(args.prompts)))
        (Path(folder) / "free.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
        config = load_config(
            here / "configs/reviews.yaml",
            [
                f"run.dir={folder}",
                f"run.rounds={args.rounds}",
                f"prompts.source={prompts}",
                f"prompts.per_round={args.prompts}",
                "learner.lr=1e-12",
                "learner.batch_pairs=64",
                "evaluation={sets: {}, judges: {}}",
                *judge,
            ],
        )
        watch = Watch()
        os.chdir(folder)
        try:
            result = run(config, listeners=[watch])
        finally:
            os.chdir(here)
        return watch.seconds[1:], int(result.rounds[-1].judging.judges["reward"].counters.get("num_judge_requests", 0))


class Watch:
    """Times each round from the beginning of sampling to its pairs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def note(self, line: str) -> None:
        pass

    def hear(self, event: Any) -> None:
        if event.kind == "stage" and event.data["stage"] == "sampling":
            self._started = time.monotonic()
        if event.kind == "paired":
            self.seconds.append(time.monotonic() - self._started)


async def serve(latency_s: float) -> None:
    """The longer answer wins, and a grade is a length; every reply is `latency_s` late."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                question = body["messages"][-1]["content"]
                lengths = [len(text) for text in ANSWER.findall(question)]
                key, code = KEY.findall(question)[0], CODE.findall(question)[0]
                value: Any = 1 + lengths[0] % 10 if len(lengths) == 1 else "A" if lengths[0] > lengths[1] else "B"
                message = {"role": "assistant", "content": json.dumps({"code": code, key: value})}
                reply = {
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": len(question) // 4, "completion_tokens": 8},
                }
                await asyncio.sleep(latency_s)
                data = json.dumps(reply).encode()
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 24)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
