import type { Instant, Millis } from '../time.ts';
import { subjectKey, type Signal, type Subject } from './model.ts';
import type { SignalBoard, SignalStore } from './store.ts';

export interface BoardOptions {
  store: Pick<SignalStore, 'load' | 'tail'>;
  now: () => Instant;
  /** Milliseconds that no change of the clock moves. */
  monotonic: () => number;
  /** A board that is older than this is brought up to date before anybody decides on it. */
  staleAfter: Millis;
}

/** What has run out is let go of so often; until then it is only passed over. */
const sweepEvery: Millis = 30_000;

/**
 * The signals in force, kept in memory on each replica so that a decision that reads them costs no query. Woken when one is
 * committed anywhere, looked at several times a second in any case, and never older than `staleAfter` when it is read.
 */
export function createSignalBoard({ store, now, monotonic, staleAfter }: BoardOptions): SignalBoard {
  /** By subject, then by kind and source. */
  const board = new Map<string, Map<string, Signal>>();
  const counts = new Map<string, number>();
  let horizon: string | undefined;
  let sweptAt = monotonic();
  let syncedAt = -Infinity;
  let running: Promise<void> | undefined;
  let following: Promise<void> | undefined;

  const put = (signal: Signal) => {
    const key = subjectKey(signal.tenant, signal.subject);
    const own = `${signal.kind}\n${signal.source}`;
    let about = board.get(key);
    const had = about?.has(own) === true;
    const inForce = signal.clearedAt === undefined;
    if (had !== inForce) counts.set(signal.tenant, (counts.get(signal.tenant) ?? 0) + (inForce ? 1 : -1));
    if (inForce) {
      if (about === undefined) board.set(key, (about = new Map()));
      about.set(own, signal);
    } else if (about?.delete(own) === true && about.size === 0) board.delete(key);
  };

  const run = async () => {
    const at = monotonic();
    const next = horizon === undefined ? await store.load(now()) : await store.tail(horizon);
    for (const signal of next.signals) put(signal);
    horizon = next.horizon;
    syncedAt = at;
    if (at - sweptAt < sweepEvery) return;
    sweptAt = at;
    for (const signal of [...board.values()].flatMap((about) => [...about.values()])) {
      if (signal.expiresAt !== undefined && signal.expiresAt <= now()) put({ ...signal, clearedAt: signal.expiresAt });
    }
  };

  /** A refresh that is under way may have read before the caller's signal was committed: the next one has not. */
  const refresh = (): Promise<void> => {
    if (running === undefined) return (running = run().finally(() => (running = undefined)));
    following ??= running
      .catch(() => undefined)
      .then(() => {
        following = undefined;
        return refresh();
      });
    return following;
  };

  return {
    refresh,
    about: async (tenant, subjects, at) => {
      if (monotonic() - syncedAt > staleAfter) await refresh();
      return subjects.flatMap((subject) => [...current(board.get(subjectKey(tenant, subject)), at)]);
    },
    count: (tenant) => counts.get(tenant) ?? 0,
    inForce: (tenant, at) =>
      [...board].filter(([key]) => key.startsWith(`${tenant}\n`)).flatMap(([, about]) => [...current(about, at)]),
  };
}

function* current(about: ReadonlyMap<string, Signal> | undefined, at: Instant): Generator<Signal> {
  if (about === undefined) return;
  for (const signal of about.values()) if (signal.expiresAt === undefined || signal.expiresAt > at) yield signal;
}

export function aboutDecision(
  task: {
    taskId: string;
    parentTaskId: string | undefined;
    rootTaskId: string;
    agent: string;
    agentWorkload: string | undefined;
  },
  tool: string,
): Subject[] {
  const tasks = new Set([
    task.taskId,
    task.rootTaskId,
    ...(task.parentTaskId === undefined ? [] : [task.parentTaskId]),
  ]);
  return [
    { kind: 'agent', name: task.agent },
    ...(task.agentWorkload === undefined ? [] : [{ kind: 'workload', name: task.agentWorkload } as const]),
    { kind: 'tool', name: tool },
    ...[...tasks].map((name) => ({ kind: 'task', name }) as const),
  ];
}
