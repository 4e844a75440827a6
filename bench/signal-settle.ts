import { randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient, type Client } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import type { DescService } from '@bufbuild/protobuf';
import { Tier } from '../src/gen/leasehold/v1/common_pb.js';
import { RevocationService } from '../src/gen/leasehold/v1/revocation_service_pb.js';
import { SignalService } from '../src/gen/leasehold/v1/signal_service_pb.js';
import type { Arguments } from './arguments.ts';
import type { Estate, Machine } from './estate.ts';
import { openTasks } from './scenarios.ts';
import { quantile } from './statistics.ts';

const perSecond = 100;
const targetMs = 1_000;
const patience = 30_000;
/** How often the target is asked which logins it still has: what is measured is that much longer than what was. */
const lookEvery = 10;
const issuedAtOnce = 32;

type Variant = 'jwt' | 'postgres';
const tools = { jwt: 'reports', postgres: 'warehouse' } as const;

/** A rule that reads signals, beside the estate's own: a signal about a task takes its credentials away. */
const policy = `apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: bench-signals, owner: bench@leasehold.test }
spec:
  rules:
    - name: quarantine
      agents: [analyst]
      tools: [reports, warehouse]
      tiers: [read]
      effect: deny
      when: signals.any('x_bench')
      reason: The benchmark says so.
`;

interface Settled {
  variant: Variant;
  signals: number;
  p50: number;
  p99: number;
  max: number;
}

/**
 * From the moment at which a signal is sent to the one at which its credential is dead: the token's entry has reached a
 * follower of the feed, or the login is gone from the target. Signals are sent 100 a second whatever becomes of those before,
 * each about a task with one open credential. Gives the exit code.
 */
export async function measureSignalSettle(
  machine: Machine,
  args: Arguments,
  progress: (line: string) => void,
): Promise<number> {
  const estate = await machine.startBroker(
    'signals',
    args.profileDir === undefined ? {} : { profileDir: args.profileDir },
  );
  await writeFile(path.join(estate.policyDir, 'bench-signals.yaml'), policy);
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  let missed = 0;
  for (const variant of ['jwt', 'postgres'] as const) {
    const result = await measure(estate, variant, perSecond * args.seconds, progress);
    const { signals, p50, p99, max } = result;
    if (args.json) print(JSON.stringify({ scenario: 'signal-settle', ...result }));
    else {
      print(
        `signal-settle ${variant}: ${signals} signals at ${perSecond}/s, p50 ${p50.toFixed(0)} ms, p99 ${p99.toFixed(0)} ms, max ${max.toFixed(0)} ms`,
      );
    }
    const met = p99 < targetMs;
    if (!met) missed = 1;
    const line = `${met ? 'met   ' : 'MISSED'} signal to settled (${variant}), p99 ms: ${p99.toFixed(0)} (wanted < ${targetMs})`;
    if (args.json) progress(line);
    else print(line);
  }
  return missed;
}

async function measure(
  estate: Estate,
  variant: Variant,
  count: number,
  progress: (line: string) => void,
): Promise<Settled> {
  progress(`signal-settle ${variant}: issuing ${count} credentials`);
  const tasks = await openTasks(estate, count);
  /** By what tells that it is dead: the lease on the feed, the login at the target. */
  const held = new Map<string, string>();
  for (let at = 0; at < tasks.length; at += issuedAtOnce) {
    await Promise.all(
      tasks.slice(at, at + issuedAtOnce).map(async (taskId) => {
        const { credential } = await estate.credentials.issueCredential({
          requestId: randomUUID(),
          taskId,
          tool: tools[variant],
          tier: Tier.READ,
        });
        const { material, lease } = credential!;
        held.set(taskId, material.case === 'postgresLogin' ? material.value.username : lease!.leaseId);
      }),
    );
  }
  const watch = variant === 'jwt' ? await followFeed(estate) : await followTarget(estate);
  const signals = await client(estate, SignalService, 'operator');
  progress(`signal-settle ${variant}: ${perSecond} signals a second`);
  const sentAt = new Map<string, number>();
  const answers: Promise<unknown>[] = [];
  const start = performance.now();
  for (const [index, taskId] of tasks.entries()) {
    const due = start + (index * 1_000) / perSecond;
    if (due > performance.now()) await sleep(due - performance.now());
    sentAt.set(taskId, performance.now());
    const subject = { subject: { case: 'taskId', value: taskId } } as const;
    answers.push(signals.reportSignals({ requestId: randomUUID(), signals: [{ subject, kind: 'x_bench' }] }));
  }
  await Promise.all(answers);
  const until = Date.now() + patience;
  const deadAt = (taskId: string) => watch.deadAt(held.get(taskId)!);
  while (tasks.some((taskId) => deadAt(taskId) === undefined)) {
    if (Date.now() > until) throw new Error(`not every credential was dead within ${patience / 1_000} s of its signal`);
    await sleep(20);
  }
  await watch.stop();
  const times = Float64Array.from(tasks.map((taskId) => deadAt(taskId)! - sentAt.get(taskId)!)).sort();
  return { variant, signals: count, p50: quantile(times, 0.5), p99: quantile(times, 0.99), max: times.at(-1)! };
}

interface Watch {
  /** When it was first known to be dead. */
  deadAt: (key: string) => number | undefined;
  stop: () => Promise<void>;
}

async function followFeed(estate: Estate): Promise<Watch> {
  const feed = await client(estate, RevocationService, 'tool/reports');
  const dead = new Map<string, number>();
  const abort = new AbortController();
  const current = Promise.withResolvers<void>();
  const ended = (async () => {
    for await (const message of feed.watchRevocations({}, { signal: abort.signal })) {
      const at = performance.now();
      for (const { subject } of message.revocations) if (!dead.has(subject.value!)) dead.set(subject.value!, at);
      if (message.current) current.resolve();
    }
  })().catch((error: unknown) => {
    if (!abort.signal.aborted) current.reject(error);
  });
  await current.promise;
  return {
    deadAt: (key) => dead.get(key),
    stop: async () => {
      abort.abort();
      await ended;
    },
  };
}

/** Asks the target itself: a login that is no role any more cannot log in. */
async function followTarget(estate: Estate): Promise<Watch> {
  const dead = new Map<string, number>();
  const present = async () => {
    const { rows } = await estate.target.query<{ rolname: string }>(
      `SELECT rolname FROM pg_roles WHERE rolname ~ '^lh_'`,
    );
    return new Set(rows.map(({ rolname }) => rolname));
  };
  let before = await present();
  let stopping = false;
  const ended = (async () => {
    while (!stopping) {
      const now = await present();
      const at = performance.now();
      for (const role of before) if (!now.has(role)) dead.set(role, at);
      before = now;
      await sleep(lookEvery);
    }
  })();
  return {
    deadAt: (key) => dead.get(key),
    stop: async () => {
      stopping = true;
      await ended;
    },
  };
}

async function client<S extends DescService>(estate: Estate, service: S, workload: string): Promise<Client<S>> {
  const token = await estate.mint(workload);
  const transport = createConnectTransport({
    baseUrl: estate.httpUrl,
    httpVersion: '1.1',
    interceptors: [
      (next) => async (request) => {
        request.header.set('authorization', `Bearer ${token}`);
        return await next(request);
      },
    ],
  });
  return createClient(service, transport);
}
