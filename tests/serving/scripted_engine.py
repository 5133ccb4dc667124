"""An engine process without a model, for faults that a real one has too seldom: it does what the prompt tells it.

It speaks `serving.messages` over ZeroMQ like `serving.engine`. Without a command it echoes the prompt, a token a step.
A command is a word that begins with "!" anywhere in the prompt, up to the end of its line:

    !say TEXT        answers TEXT, then ends with the end-of-text token
    !bytes HEX       answers these bytes
    !who             answers the digest of its adapter, or "base"
    !slow            one token in 30 ms
    !never           takes the request and answers nothing
    !crash           ends the process at once         !crash-after N   ... after N tokens
    !freeze          stops the whole engine, as SIGSTOP does
    !fail CODE       answers with this fault
    !garble          sends bytes that are no message

Run: python scripted_engine.py BASE_FOLDER [--die-before-ready | --cannot-start MESSAGE] [--context-tokens N]
     --settings JSON
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import zmq

from serving.messages import (
    Abort,
    AdapterState,
    EngineSettings,
    Failed,
    Fault,
    Generate,
    Keep,
    MixtureState,
    Output,
    Outputs,
    Preload,
    Ready,
    Shutdown,
    Stats,
    TokenLogprob,
    decode_to_engine,
    encode,
)
from tests.serving.byte_base import CONTEXT_TOKENS, END, FIRST_BYTE, to_ids, to_text

STEP_SECONDS = 0.002
SLOW_SECONDS = 0.03
STATS_SECONDS = 0.05
COMMAND = re.compile(r"!([a-z-]+)[ ]?([^\n<]*)")


@dataclass
class Sequence:
    request: Generate
    command: str | None
    argument: str
    answer: Iterator[int]
    made: int = 0
    next_at: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("base_folder", type=Path)
    parser.add_argument("--die-before-ready", action="store_true")
    parser.add_argument("--cannot-start")
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS)
    parser.add_argument("--settings", required=True)
    arguments = parser.parse_args()
    settings = msgspec.json.decode(arguments.settings, type=EngineSettings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments.die_before_ready:
        return 3
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.linger = 500
    socket.connect(settings.socket)
    try:
        if arguments.cannot_start:
            socket.send(encode(Failed(message=arguments.cannot_start)))
            return 1
        ScriptedEngine(socket, settings, arguments.base_folder, arguments.context_tokens).run()
        return 0
    finally:
        socket.close()
        context.term()


class ScriptedEngine:
    def __init__(self, socket: zmq.Socket, settings: EngineSettings, base_folder: Path, context_tokens: int) -> None:
        self.socket = socket
        self.settings = settings
        self.base_folder = base_folder
        self.context_tokens = context_tokens
        self.sequences: dict[str, Sequence] = {}
        self.parent = os.getppid()
        self.preloaded: list[str] = []
        self.kept: list[str] = []
        self.steps = self.prompt_tokens = self.generation_tokens = 0

    def run(self) -> None:
        self.socket.send(encode(self.ready()))
        stats_at = 0.0
        while os.getppid() == self.parent:
            while self.socket.poll(0 if self.running() else 20):
                message = decode_to_engine(self.socket.recv())
                if isinstance(message, Shutdown):
                    return
                self.take(message)
            outputs = self.step()
            if outputs:
                self.socket.send(encode(Outputs(outputs=outputs)))
            if time.monotonic() >= stats_at:
                self.socket.send(encode(self.stats()))
                stats_at = time.monotonic() + STATS_SECONDS
            time.sleep(STEP_SECONDS if self.running() else 0)

    def ready(self) -> Ready:
        return Ready(
            base=json.loads((self.base_folder / "base.json").read_text()),
            base_folder=str(self.base_folder),
            device="script",
            context_tokens=self.context_tokens,
            kv_blocks=64,
            kv_block_tokens=16,
            adapter_slots=self.settings.adapter_slots,
            max_running=self.settings.max_running,
            load_seconds=0.01,
            end_token_ids=(END,),
        )

    def take(self, message: Generate | Abort | Preload | Keep) -> None:
        if isinstance(message, Abort):
            self.sequences.pop(message.request_id, None)
        elif isinstance(message, Preload):
            self.preloaded.append(message.adapter.digest)
        elif isinstance(message, Keep):
            self.kept = [adapter.digest for adapter in message.adapters]
        else:
            found = COMMAND.search(to_text(message.prompt_token_ids))
            command, argument = (found[1], found[2].strip()) if found else (None, "")
            if command == "crash":
                os._exit(9)
            if command == "garble":
                self.socket.send(b"\xc1 no message")
            if command == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            answer = self.answer(message, command, argument)
            self.sequences[message.request_id] = Sequence(message, command, argument, iter(answer))
            self.prompt_tokens += len(message.prompt_token_ids)

    def answer(self, request: Generate, command: str | None, argument: str) -> list[int]:
        if command == "say":
            return [*to_ids(argument), END]
        if command == "bytes":
            return [*(FIRST_BYTE + byte for byte in bytes.fromhex(argument)), END]
        if command == "who":
            return [*to_ids(request.adapters[0].digest if request.adapters else "base"), END]
        return [token for token in request.prompt_token_ids if token >= FIRST_BYTE] * (1 + CONTEXT_TOKENS)

    def running(self) -> list[Sequence]:
        return list(self.sequences.values())[: self.settings.max_running]

    def step(self) -> list[Output]:
        outputs = []
        now = time.monotonic()
        self.steps += bool(self.sequences)
        for sequence in self.running():
            if sequence.command == "never" or now < sequence.next_at:
                continue
            sequence.next_at = now + (SLOW_SECONDS if sequence.command == "slow" else 0.0)
            output = self.next_output(sequence)
            if output.finish_reason is not None:
                del self.sequences[output.request_id]
            outputs.append(output)
        return outputs

    def next_output(self, sequence: Sequence) -> Output:
        request, sampling = sequence.request, sequence.request.sampling
        if sequence.command == "fail":
            fault = Fault(code=sequence.argument.split()[0], message="scripted fault")
            return Output(request_id=request.request_id, finish_reason="error", fault=fault)
        if sequence.command == "crash-after" and sequence.made >= int(sequence.argument):
            os._exit(9)
        token = next(sequence.answer)
        if token in sampling.stop_token_ids or (token == END and not sampling.ignore_eos):
            return Output(request_id=request.request_id, finish_reason="stop", stop_token_id=token)
        first = sequence.made == 0
        sequence.made += 1
        self.generation_tokens += 1
        logprobs = None
        if sampling.logprobs is not None:
            # The best alternatives are the tokens that follow in the vocabulary; the last one is impossible.
            top = [(token + rank, -0.5 - rank) for rank in range(sampling.logprobs)]
            top = [*top[:-1], (top[-1][0], float("-inf"))] if len(top) > 1 else top
            logprobs = [TokenLogprob(token, -0.5, top)]
        return Output(
            request_id=request.request_id,
            token_ids=[token],
            logprobs=logprobs,
            finish_reason="length" if sequence.made >= sampling.max_tokens else None,
            queue_seconds=0.001 if first else None,
        )

    def stats(self) -> Stats:
        running = self.running()
        digests = {use.digest for sequence in self.sequences.values() for use in sequence.request.adapters}
        digests.update([*self.preloaded, *self.kept])
        return Stats(
            steps=self.steps,
            running=len(running),
            waiting=len(self.sequences) - len(running),
            kv_blocks_total=64,
            kv_blocks_used=min(64, len(running)),
            slots_total=self.settings.adapter_slots,
            slots_used=min(self.settings.adapter_slots, len(digests)),
            slot_bytes=1024 * len(digests),
            host_bytes=2048 * len(digests),
            preemptions=0,
            adapter_loads=len(digests),
            adapter_evictions=0,
            adapter_load_seconds=0.0,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            step_seconds=0.0,
            last_step_rows=len(running),
            adapters=[self.adapter_state(digest) for digest in sorted(digests)],
            mixtures=[MixtureState(digest="sha256:" + "5" * 64, chosen=(self.steps, 2 * self.steps))],
        )

    def adapter_state(self, digest: str) -> AdapterState:
        def count(sequences: list[Sequence]) -> int:
            return sum(any(use.digest == digest for use in each.request.adapters) for each in sequences)

        running = count(self.running())
        return AdapterState(
            digest=digest,
            place="slot",
            adapter_bytes=1024,
            running=running,
            waiting=count(list(self.sequences.values())) - running,
        )


if __name__ == "__main__":
    sys.exit(main())
