import type { Lease, LeaseOutcome } from './model.ts';
import type { Provider, TargetProvider } from './provider.ts';
import type { SettlementStore, Settled } from './store.ts';
import { leaseFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';
import { within } from './within.ts';

export interface SettlerOptions {
  clock: Clock;
  store: SettlementStore;
  providers: ReadonlyMap<string, Provider>;
  /** Most revocations under way at once on this replica. */
  concurrency: number;
  /** Longest time that one revocation may take. */
  revokeTimeout: Millis;
  /** How long a round waits for its revocations; those of a slow target then go on beside the next rounds. */
  patience: Millis;
  /** A task that is closing for longer is `close_degraded`, until its last lease has an outcome. */
  settleBound: Millis;
  /** A lease that could not be revoked for so long after its expiry is `irrevocable`. */
  giveUpAfter: Millis;
  random: () => number;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
  reached: Reached;
  emit: Emit;
}

export type Settler = ReturnType<typeof createSettler>;

const batch = 500;
/** Between two attempts at one lease. */
const longestPause: Millis = 30_000;
/** Between two looks at a failing target: short, because what fails may be one lease of many. */
const longestRest: Millis = 5_000;

/**
 * Takes due leases to an outcome (design §2 Settlement). Every step can be repeated: a claim runs out, a revocation is
 * idempotent, an outcome is written once. A target that fails is left alone for a while, and one that hangs is not waited
 * for, so that it holds up no other.
 */
export function createSettler(options: SettlerOptions) {
  const { clock, store, providers } = options;
  const selfContained = kinds((provider) => provider.selfContained);
  const atTarget = kinds((provider) => !provider.selfContained);
  const claimFor = options.revokeTimeout + 5_000;
  /** Target → when to try it again. */
  const resting = new Map<string, { until: Instant; failures: number }>();
  /** Targets with revocations of an earlier round under way: they get no more until those have ended. */
  const busy = new Set<string>();

  return {
    claimFor,

    /** One round. True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const now = clock.now();
      const done = await store.settleSelfContained(selfContained, now, batch);
      if (done > 0) options.emit('settle.batch', { leases: done });
      const claimed = await store.claim(atTarget, now, claimFor, options.concurrency, [
        ...busy,
        ...restingTargets(now),
      ]);
      if (claimed.length > 0) options.reached('settle.claimed');
      await patiently([...byTarget(claimed)].map(([target, leases]) => settleAt(target, leases)));
      const completed = await store.completeTasks(clock.now(), batch);
      for (const { tenant, taskId, state } of completed) options.emit('task.closed', { tenant, taskId, state });
      const degraded = await store.degradeTasks(clock.now() - options.settleBound, clock.now());
      for (const { tenant, taskId } of degraded) options.emit('settle.degraded', { tenant, taskId });
      // A tree is settled from below, level by level.
      const climbing = completed.length === batch || completed.some(({ parentTaskId }) => parentTaskId !== undefined);
      return done === batch || claimed.length === options.concurrency || climbing;
    },

    /** One lease that the caller has claimed already. */
    settleNow: async (lease: Lease): Promise<void> => {
      const { tenant, leaseId } = lease;
      if (providers.get(lease.provider)?.selfContained === true) {
        await store.settleSelfContained(selfContained, clock.now(), 1, { tenant, leaseId });
      } else {
        await settleAll([lease]);
      }
    },
  };

  function kinds(matches: (provider: Provider) => boolean): string[] {
    return [...providers.values()].filter(matches).map((provider) => provider.kind);
  }

  function restingTargets(now: Instant): string[] {
    return [...resting].filter(([, rest]) => rest.until > now).map(([target]) => target);
  }

  async function settleAt(target: string, leases: readonly Lease[]): Promise<void> {
    busy.add(target);
    try {
      await settleAll(leases);
    } catch (error) {
      // Nothing is lost: the claims run out, and the next one finds the credentials gone.
      options.emit('storage.failed', { operation: 'settle', error });
    } finally {
      busy.delete(target);
    }
  }

  async function patiently(work: readonly Promise<void>[]): Promise<void> {
    if (work.length === 0) return;
    const done = new AbortController();
    const all = Promise.all(work).then(() => done.abort());
    await Promise.race([all, options.sleep(options.patience, done.signal)]);
  }

  async function settleAll(leases: readonly Lease[]): Promise<void> {
    const results = await Promise.all(leases.map((lease) => revoke(lease)));
    const settled = results.filter((result) => result !== undefined);
    if (settled.length === 0) return;
    options.reached('settle.revoked');
    await store.settled(settled, clock.now());
    options.reached('settle.recorded');
    for (const { lease, outcome } of settled) {
      options.emit('lease.settled', {
        ...leaseFields(lease),
        outcome,
        cause: lease.settleCause ?? '',
        attempts: lease.settleAttempts,
      });
    }
  }

  async function revoke(lease: Lease): Promise<Settled | undefined> {
    const provider = providers.get(lease.provider) as TargetProvider;
    const target = targetOf(lease);
    try {
      const remaining = await within(options.revokeTimeout, (signal) => provider.revoke(lease.handle, signal, lease));
      resting.delete(target);
      if (remaining !== undefined && 'lookAgainAt' in remaining) {
        await store.failed(lease, remaining.because, remaining.lookAgainAt);
        return undefined;
      }
      if (remaining !== undefined) return { lease, outcome: 'bounded', deadBy: remaining.deadBy };
      return { lease, outcome: outcomeOf(lease, clock.now()), deadBy: undefined };
    } catch (error) {
      return await failed(lease, target, error);
    }
  }

  async function failed(lease: Lease, target: string, error: unknown): Promise<Settled | undefined> {
    const now = clock.now();
    const message = error instanceof Error ? error.message : String(error);
    if (now > lease.expiresAt + options.giveUpAfter) {
      options.emit('lease.irrevocable', { ...leaseFields(lease), attempts: lease.settleAttempts, error });
      await store.failed(lease, message, now + claimFor);
      return { lease, outcome: 'irrevocable', deadBy: undefined };
    }
    rest(target, now);
    const retryInMs = pause(lease.settleAttempts, longestPause);
    await store.failed(lease, message, now + retryInMs);
    options.emit('settle.failed', { ...leaseFields(lease), attempts: lease.settleAttempts, retryInMs, error });
    return undefined;
  }

  /** Leases that fail together count as one failure of their target. */
  function rest(target: string, now: Instant): void {
    const before = resting.get(target);
    if (before !== undefined && before.until > now) return;
    const failures = (before?.failures ?? 0) + 1;
    if (resting.size < 1_000) resting.set(target, { until: now + pause(failures, longestRest), failures });
  }

  /** 1 s, 2 s, 4 s …, spread so that a returning target is not met by everything at once. */
  function pause(failures: number, longest: Millis): Millis {
    return Math.min(longest, 1_000 * 2 ** Math.min(failures - 1, 10)) * (0.5 + options.random());
  }
}

function targetOf(lease: Lease): string {
  return lease.handle.split('/', 1)[0]!;
}

function byTarget(leases: readonly Lease[]): Map<string, Lease[]> {
  const groups = new Map<string, Lease[]>();
  for (const lease of leases) {
    const group = groups.get(targetOf(lease));
    if (group === undefined) groups.set(targetOf(lease), [lease]);
    else group.push(lease);
  }
  return groups;
}

/** After the target was seen without the credential. */
export function outcomeOf(lease: Pick<Lease, 'settleCause' | 'expiresAt'>, now: Instant): LeaseOutcome {
  if (lease.settleCause === 'returned') return 'returned';
  return lease.settleCause === 'expired' || lease.expiresAt <= now ? 'expired' : 'revoked';
}
