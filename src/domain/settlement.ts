import type { Lease, LeaseOutcome } from './model.ts';
import type { Provider, TargetProvider } from './provider.ts';
import type { SettlementStore, Settled } from './store.ts';
import { leaseFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface SettlerOptions {
  clock: Clock;
  store: SettlementStore;
  providers: ReadonlyMap<string, Provider>;
  /** Most revocations under way at once on this replica. */
  concurrency: number;
  /** Longest time that one revocation may take. */
  revokeTimeout: Millis;
  /** A task that is closing for longer is `close_degraded`, until its last lease has an outcome. */
  settleBound: Millis;
  /** A lease that could not be revoked for so long after its expiry is `irrevocable`. */
  giveUpAfter: Millis;
  random: () => number;
  reached: Reached;
  emit: Emit;
}

export type Settler = ReturnType<typeof createSettler>;

const batch = 500;
const longestPause: Millis = 30_000;

/**
 * Takes due leases to an outcome (design §2 Settlement). Every step can be repeated: a claim runs out, a revocation is
 * idempotent, an outcome is written once. A target that fails is left alone for a while, so that it holds up no other.
 */
export function createSettler(options: SettlerOptions) {
  const { clock, store, providers } = options;
  const selfContained = kinds((provider) => provider.selfContained);
  const atTarget = kinds((provider) => !provider.selfContained);
  const claimFor = options.revokeTimeout + 5_000;
  /** Target → when to try it again. */
  const resting = new Map<string, { until: Instant; failures: number }>();

  return {
    claimFor,

    /** One round. True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const now = clock.now();
      const done = await store.settleSelfContained(selfContained, now, batch);
      if (done > 0) options.emit('settle.batch', { leases: done });
      const claimed = await store.claim(atTarget, now, claimFor, options.concurrency, restingTargets(now));
      if (claimed.length > 0) options.reached('settle.claimed');
      await settleAll(claimed);
      const completed = await store.completeTasks(clock.now(), batch);
      for (const task of completed) options.emit('task.closed', task);
      const degraded = await store.degradeTasks(clock.now() - options.settleBound, clock.now());
      for (const task of degraded) options.emit('settle.degraded', task);
      return done === batch || claimed.length === options.concurrency;
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
    const target = lease.handle.split('/', 1)[0]!;
    try {
      await provider.revoke(lease.handle, AbortSignal.timeout(options.revokeTimeout));
      resting.delete(target);
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
    const failures = (resting.get(target)?.failures ?? 0) + 1;
    if (resting.size < 1_000) resting.set(target, { until: now + pause(failures), failures });
    const retryInMs = pause(lease.settleAttempts);
    await store.failed(lease, message, now + retryInMs);
    options.emit('settle.failed', { ...leaseFields(lease), attempts: lease.settleAttempts, retryInMs, error });
    return undefined;
  }

  /** 1 s, 2 s, 4 s … 30 s, spread so that a returning target is not met by everything at once. */
  function pause(failures: number): Millis {
    return Math.min(longestPause, 1_000 * 2 ** Math.min(failures - 1, 10)) * (0.5 + options.random());
  }
}

/** After the target was seen without the credential. */
export function outcomeOf(lease: Pick<Lease, 'settleCause' | 'expiresAt'>, now: Instant): LeaseOutcome {
  if (lease.settleCause === 'returned') return 'returned';
  return lease.settleCause === 'expired' || lease.expiresAt <= now ? 'expired' : 'revoked';
}
