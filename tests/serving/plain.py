"""Serving in the plainest way: every request is an object, every step looks at all of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil, floor, inf

import numpy as np


@dataclass(eq=False)
class Request:
    index: int
    prompt: int
    output: int
    cached: int
    todo: int = 0
    past: int = 0
    generated: int = 0
    kv: int = 0
    blocks: int = 0
    decoding: bool = False
    arrival: float | None = None
    arrival_step: int = -1
    admitted: float | None = None
    sent: float | None = None
    source: object = None
    times: list = field(default_factory=list)
    first_step: int = -1
    last_step: int = -1
    preemptions: int = 0


class Group:
    def __init__(self, pool, role):
        self.pool, self.policy, self.role = pool, pool.policy, role
        self.draft = pool.draft_tokens if role != "prefill" else 0
        self.budget = max(self.policy.token_budget, 1 + self.draft)
        self.most = max(
            1, min(self.policy.max_sequences // pool.lanes, self.budget // (1 + self.draft))
        )
        self.block = self.policy.block_tokens
        self.capacity = pool.kv_tokens // pool.lanes // self.block
        self.queue = deque()
        self.running = []
        self.parked = []
        self.link_free, self.sent = 0.0, deque()
        self.decode_steps = 0
        self.share = self.first_share

    @property
    def first_share(self):
        return self.policy.growth_share[0] if self.role != "prefill" else 0.0

    @property
    def held(self):
        return sum(r.blocks for r in self.running + self.parked)

    @property
    def outstanding(self):
        return len(self.queue) + len(self.running) + len(self.parked)

    def at_end(self, r):
        tokens = r.prompt if self.role == "prefill" else r.prompt + r.output + self.draft
        return ceil(tokens / self.block)

    def admissible(self, r):
        if len(self.running) == self.most:
            return False
        length = r.past + r.todo
        needed = ceil(length / self.block)
        if self.policy.keeps_own and self.role != "prefill":
            coming = min(r.output - r.generated, self.policy.own_clip)
            needed = ceil((length + coming + self.draft) / self.block)
        growing = self.share * (sum(map(self.at_end, self.running)) - self.held)
        return self.held + needed + growing <= self.capacity

    def admit(self, now):
        r = self.queue.popleft()
        r.blocks = ceil((r.past + r.todo) / self.block)
        if r.admitted is None:
            r.admitted = now
        self.running.append(r)
        return r

    def preempt(self):
        r = self.running.pop()
        r.blocks, r.decoding, r.kv = 0, False, 0
        r.past, r.todo = r.cached, r.prompt + r.generated - r.cached
        r.preemptions += 1
        self.queue.appendleft(r)

    def form(self, now):
        self.decoders, self.chunks, self.advance = [], [], 0
        while self.queue and self.queue[0].todo == 0 and self.admissible(self.queue[0]):
            r = self.admit(now)
            r.decoding, r.kv = True, r.prompt + r.generated - 1
        policy = self.policy
        partial = next((r for r in self.running if r.todo), None)
        can_prefill = partial is not None or (
            self.queue and self.queue[0].todo and self.admissible(self.queue[0])
        )
        alone = policy.order == "prefill-first" and not policy.mixed_chunk and can_prefill
        preempted = False
        if not alone and any(r.decoding for r in self.running):
            preempted = self.grow()
            self.decoders = [r for r in self.running if r.decoding]
        self.context = sum(r.kv for r in self.decoders)
        left = self.budget - len(self.decoders) * (1 + self.draft)
        partial = next((r for r in self.running if r.todo), None)
        if partial and left > 0:
            left -= self.chunk(partial, min(left, partial.todo))
            if partial.todo:
                return
        while not preempted and left > 0 and self.queue:
            r = self.queue[0]
            if not r.todo or not self.admissible(r):
                return
            if not policy.chunked and r.todo > left and left < self.budget:
                return
            self.admit(now)
            left -= self.chunk(r, min(r.todo, left) if policy.chunked else r.todo)
            if r.todo:
                return

    def grow(self):
        pace, k = self.pool.tokens_per_step if self.role != "prefill" else 1.0, self.decode_steps
        self.advance = floor((k + 1) * pace) - floor(k * pace)
        preempted = False
        for r in list(self.running):
            if not r.decoding or r not in self.running:
                continue
            more = ceil((r.kv + self.advance) / self.block) - r.blocks
            while r in self.running and self.held + more > self.capacity:
                self.preempt()
                preempted = True
            if r in self.running:
                r.blocks += more
        if preempted:
            self.share = self.first_share
        return preempted

    def chunk(self, r, new):
        self.chunks.append((r, new, r.past, new == r.todo))
        r.past += new
        r.todo -= new
        return new

    def end(self, now, step):
        finished, leaving = [], []
        if self.decoders:
            self.decode_steps += 1
            policy = self.policy
            if self.role != "prefill":
                self.share = max(policy.growth_share[1], self.share - policy.growth_decay)
            for r in self.decoders:
                r.kv += self.advance
                r.generated = min(r.output, r.generated + self.advance)
                r.times.append(now)
                if r.generated == r.output:
                    finished.append(r)
        for r, _, _, last in self.chunks:
            if not last:
                continue
            r.generated += 1
            if r.generated == 1:
                r.first_step = step
            if self.role != "prefill" or r.generated == r.output:
                r.times.append(now)
            if r.generated == r.output:
                finished.append(r)
            elif self.role == "prefill":
                leaving.append(r)
                self.running.remove(r)
                self.parked.append(r)
            else:
                r.decoding, r.kv = True, r.prompt + r.generated - 1
        for r in finished:
            r.last_step = step
            self.running.remove(r)
        return finished, leaving


class Worker:
    def __init__(self, pool, role):
        self.pool, self.role = pool, role
        self.lanes = [[Group(pool, role) for _ in range(pool.groups)] for _ in range(pool.lanes)]
        self.end, self.step = inf, -1

    @property
    def groups(self):
        return [group for lane in self.lanes for group in lane]


def line(grid, values, x):
    """Linear between grid points, constant below, straight on above."""
    if len(grid) == 1:
        return values[0]
    x = max(x, grid[0])
    i = max(k for k in range(len(grid) - 1) if grid[k] <= x)
    u = (x - grid[i]) / (grid[i + 1] - grid[i])
    return values[i] + u * (values[i + 1] - values[i])


def plane(rows, columns, table, x, y):
    return line(rows, [line(columns, row, y) for row in table], x)


def padded(pool, tokens):
    rows = 1 + pool.draft_tokens
    for size in pool.policy.graph_sizes:
        if size * rows >= tokens:
            return size * rows
    return tokens


def lane_seconds(pool, lane):
    """Seconds of a lane's micro-batch, and what it is priced by; None if there is nothing."""
    t, fit = pool.tables, pool.coefficients
    kind = int(any(group.chunks for group in lane))
    loads = []
    for group in lane:
        decode = len(group.decoders)
        rows = decode * (1 + group.draft)
        loads.append(
            (
                rows + sum(new for _, new, _, _ in group.chunks),
                rows + sum(last for _, _, _, last in group.chunks),
                decode + len(group.chunks),
                attention(pool, group, kind),
            )
        )
    tokens, sampled, sequences, _ = (max(column) for column in zip(*loads, strict=True))
    if not tokens:
        return None
    deciding = slowest([load[3] for load in loads])
    attention_s = loads[deciding][3]
    computed = padded(pool, tokens) if kind == 0 else tokens
    together = computed if kind == 0 else -(-sum(load[0] for load in loads) // len(lane))
    seconds = attention_s + fit.step_host_s[kind] + fit.kernel_host_s * t.kernels[kind]
    for row, component in enumerate(t.components):
        at = together if component in ("experts", "collective", "dispatch") else computed
        seconds += fit.weight(component)[kind] * line(t.tokens, t.token_s[kind][row], at)
    seconds -= line(t.tokens, t.hidden_s[kind], computed)
    if sampled:
        seconds += fit.weight("sampled")[kind] * line(t.tokens, t.sampled_s, sampled)
    seconds += fit.token_host_s * tokens + fit.sequence_host_s * sequences
    return seconds, kind, tokens, sampled, sequences, lane[deciding]


def slowest(seconds):
    """The first of those that differ by rounding errors alone."""
    found = 0
    for place, value in enumerate(seconds):
        if value > seconds[found] * (1 + 1e-9):
            found = place
    return found


def attention(pool, group, kind):
    t, fit = pool.tables, pool.coefficients
    seconds = 0.0
    if group.decoders:
        count = len(group.decoders)
        seconds += fit.weight("decode_attention")[kind] * plane(
            t.decode_sequences, t.decode_context, t.decode_attention_s, count, group.context / count
        )
    for _, new, past, _ in group.chunks:
        seconds += fit.weight("chunk_attention")[1] * plane(
            t.chunk_tokens, t.chunk_past, t.chunk_attention_s, new, past
        )
    return seconds


class Plain:
    """Runs on construction.

    Durations that agree with those of another run to nine digits are taken from there: what
    happens first must not hang on the last bit of a sum.
    """

    def __init__(self, deployment, load, durations):
        self.deployment = deployment
        self.durations = durations
        self.requests = [
            Request(k, int(i), int(o), int(c), int(i - c), int(c))
            for k, (i, o, c) in enumerate(
                zip(load.input_tokens, load.output_tokens, load.cached_tokens, strict=True)
            )
        ]
        first = deployment.prefill or deployment.pool
        role = "prefill" if deployment.prefill else "all"
        self.workers = [Worker(first, role) for _ in range(first.workers)]
        entry = self.workers[:]
        second = []
        if deployment.prefill:
            second = [Worker(deployment.pool, "decode") for _ in range(deployment.pool.workers)]
            self.workers += second
        self.entry = [g for row in zip(*(w.groups for w in entry), strict=True) for g in row]
        self.second = [g for row in zip(*(w.groups for w in second), strict=True) for g in row]
        self.turns = [0, 0]
        self.released, self.finished, self.steps = 0, 0, []
        self.serve(load)

    def target(self, which):
        choices = self.second if which else self.entry
        if self.deployment.router == "least-loaded":
            return min(choices, key=lambda group: group.outstanding)
        self.turns[which] += 1
        return choices[(self.turns[which] - 1) % len(choices)]

    def arrive(self, now, step):
        if self.released < len(self.requests):
            r = self.requests[self.released]
            self.released += 1
            r.arrival, r.arrival_step = now, step
            self.target(0).queue.append(r)

    def serve(self, load):
        closed = load.concurrency > 0
        for _ in range(load.concurrency):
            self.arrive(0.0, -1)
        now = 0.0
        while self.finished < len(self.requests):
            for worker in self.workers:
                if worker.end == inf:
                    self.start(worker, now)
            arrival = inf
            if not closed and self.released < len(self.requests):
                arrival = load.arrival_s[self.released]
            sender = min(
                (g for w in self.workers for g in w.groups if g.sent),
                key=lambda g: g.sent[0].sent,
                default=None,
            )
            sent = sender.sent[0].sent if sender else inf
            ending = min(self.workers, key=lambda w: w.end)
            now = min(arrival, sent, ending.end)
            assert now < inf
            if now == arrival:
                while self.released < len(self.requests) and load.arrival_s[self.released] == now:
                    self.arrive(now, -1)
            elif now == sent:
                r = sender.sent.popleft()
                r.source.parked.remove(r)
                r.blocks = 0
                r.times.append(now)
                self.target(1).queue.append(r)
            else:
                self.end(ending, now, closed)

    def start(self, worker, now):
        for group in worker.groups:
            group.form(now)
        prices = [lane_seconds(worker.pool, lane) for lane in worker.lanes]
        prices = [price for price in prices if price]
        if not prices:
            return
        price = prices[slowest([price[0] for price in prices])]
        seconds, kind, tokens, sampled, sequences, group = price
        own = seconds
        if len(self.steps) < len(self.durations):
            seconds = float(self.durations[len(self.steps)])
            if abs(own - seconds) > 1e-9 * own:
                seconds = own
        worker.end, worker.step = now + seconds, len(self.steps)
        self.steps.append(
            {
                "worker": self.workers.index(worker),
                "kind": kind,
                "tokens": tokens,
                "decode_sequences": len(group.decoders),
                "context": group.context,
                "chunks": [(r.index, new, past, last) for r, new, past, last in group.chunks],
                "sampled": sampled,
                "sequences": sequences,
                "all_decode_sequences": sum(len(g.decoders) for g in worker.groups),
                "all_prefill_tokens": sum(c[1] for g in worker.groups for c in g.chunks),
                "running": sum(len(g.running) for g in worker.groups),
                "waiting": sum(len(g.queue) for g in worker.groups),
                "kv_blocks": sum(g.held for g in worker.groups),
                "start_s": now,
                "duration_s": seconds,
            }
        )
        for g in worker.groups:
            assert g.held <= g.capacity

    def end(self, worker, now, closed):
        step, worker.end = worker.step, inf
        ended = 0
        for group in worker.groups:
            finished, leaving = group.end(now, step)
            ended += len(finished)
            for r in leaving:
                transfer = self.deployment.transfer
                begin = max(now, group.link_free)
                size = r.prompt * transfer.bytes_per_token + transfer.bytes_per_request
                group.link_free = begin + size / transfer.bytes_per_s
                r.sent, r.source = group.link_free + transfer.latency_s, group
                group.sent.append(r)
        self.finished += ended
        if closed:
            for _ in range(ended):
                self.arrive(now, step)

    def gaps(self):
        return np.sort(np.concatenate([np.diff(r.times) for r in self.requests]))
