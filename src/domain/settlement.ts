import { startDrain, type Drain } from './drain.ts';
import type { Lease, LeaseOutcome } from './model.ts';
import { targetOf, type Provider, type TargetProvider } from './provider.ts';
import { createSlots } from './slots.ts';
import type { FinishedTask, SettlementStore, Settled } from './store.ts';
import { createTargetBreaker } from './target-breaker.ts';
import { settleFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';
import { within } from './within.ts';

export interface SettlerOptions {
  clock: Clock;
  store: SettlementStore;
  providers: ReadonlyMap<string, Provider>;
  /** Most revocations under way at once at one target, from this replica. */
  concurrency: number;
  /** Longest time that one revocation may take. */
  revokeTimeout: Millis;
  /** How long a round waits for its revocations; those of a slow target then go on beside the next rounds. */
  patience: Millis;
  /** A task that is closing for longer is `close_degraded`, until its last lease has an outcome. */
  settleBound: Millis;
  /** There are tenants that must not wait for each other. */
  severalTenants: boolean;
  /** A lease that could not be revoked for so long after its expiry is `irrevocable`. */
  giveUpAfter: Millis;
  random: () => number;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
  reached: Reached;
  emit: Emit;
}

/** What one attempt at a lease came to. */
type Attempt =
  | { is: 'gone' }
  | { is: 'bounded'; deadBy: Instant }
  | { is: 'undecided'; lookAgainAt: Instant; because: string }
  | { is: 'failed'; because: string };

export type Settler = ReturnType<typeof createSettler>;

const batch = 500;
/** Tasks whose leases all have an outcome, at once. */
const finishBatch = 2_000;
/** Between two looks for such tasks, while there are leases to settle at once. */
const finishPause: Millis = 1_000;
/** Between two looks for what is due of other tenants while one has more of it than a batch. */
const turnPause: Millis = 500;
/** Targets that one round begins with, at most; each gets `concurrency`. */
const targetsAtOnce = 16;
/** Between two attempts at one lease. */
const longestPause: Millis = 30_000;
/** Between two looks for irrevocable leases that are due again. */
const slowLook: Millis = 5_000;
/** Between two attempts at an irrevocable one: a 24th of the time since it ran out, but within these. */
const shortestSlowPause: Millis = 3_600_000;
const longestSlowPause: Millis = 24 * 3_600_000;

/**
 * Takes due leases to an outcome (design §2 Settlement). Every step can be repeated: a claim runs out, a revocation is
 * idempotent, an outcome is written once. Each target is worked through on its own, so that one that fails, hangs or has
 * thousands waiting holds up no other.
 */
export function createSettler(options: SettlerOptions) {
  const { clock, store, providers, emit } = options;
  const selfContained = kinds((provider) => provider.selfContained);
  const atTarget = kinds((provider) => !provider.selfContained);
  const claimFor = options.revokeTimeout + 5_000;
  const slots = createSlots(options.concurrency);
  const breaker = createTargetBreaker({
    random: options.random,
    onFailing: (target, failures) => emit('target.failing', { target, failures }),
    onRecovered: (target, failures) => emit('target.recovered', { target, failures }),
  });
  /** Targets that are being worked through, each by one drain. */
  const busy = new Map<string, Drain>();
  const underWay = new Set<Promise<void>>();
  let stopping = false;
  let lookSlowlyAt: Instant = 0;
  let finishAt: Instant = 0;
  /** When the others' turn comes again, of tokens and of finished tasks. */
  const turns = { tokens: 0, tasks: 0 };

  return {
    claimFor,

    /** One round. True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const now = clock.now();
      for (const drain of busy.values()) drain.poke();
      // Together: what a target holds does not wait for the tokens' statements.
      const [done, drains] = await Promise.all([settleTokens(now), beginDrains(now)]);
      await patiently([...drains, ...(await beginProbes(now))]);
      if (lookSlowlyAt <= now) {
        await beginSlowRetries(now);
        lookSlowlyAt = now + slowLook;
      }
      const more = done || drains.length >= targetsAtOnce;
      // It is asked of every task that is closing: not after each few hundred leases of a large tree.
      if (more && clock.now() < finishAt) return true;
      finishAt = clock.now() + finishPause;
      return (await finishTasks()) || more;
    },

    /** Irrevocable leases that an operator has made due are seen by the next round. */
    lookAtIrrevocable: (): void => {
      lookSlowlyAt = 0;
    },

    /** One lease that the caller has claimed already. At a target that is failing, its claim runs out instead. */
    settleNow: async (lease: Lease): Promise<void> => {
      const { tenant, leaseId } = lease;
      if (providers.get(lease.provider)?.selfContained === true) {
        await store.settleSelfContained(selfContained, clock.now(), 1, { tenant, leaseId });
      } else if (breaker.healthy(targetOf(lease.handle))) {
        await start([lease], undefined).done;
      }
    },

    /** One more attempt at a lease that the caller has claimed, whatever its target's state; why it failed, or undefined. */
    attempt: async (lease: Lease): Promise<string | undefined> => {
      const attempt = await revoke(lease);
      if (attempt.is === 'undecided' || attempt.is === 'failed') return attempt.because;
      await record([resultOf(lease, attempt, clock.now())]);
      return undefined;
    },

    /** Resolves when what is under way has ended. */
    stop: async (): Promise<void> => {
      stopping = true;
      await Promise.all(underWay);
    },
  };

  function kinds(matches: (provider: Provider) => boolean): string[] {
    return [...providers.values()].filter(matches).map((provider) => provider.kind);
  }

  /** What is oldest comes first; true when that was a whole batch. */
  async function settleTokens(now: Instant): Promise<boolean> {
    let settled = 0;
    const full = await inTurns('tokens', async (except) => {
      const { count, tenants } = await store.settleSelfContained(selfContained, now, batch, undefined, except);
      settled += count;
      return { full: count === batch, tenants };
    });
    if (settled > 0) emit('settle.batch', { leases: settled });
    return full;
  }

  /**
   * One batch of the oldest. When it is full, one more of those tenants that had nothing in it, and so on: a tenant that has
   * thousands waiting is passed by those that have a few. True: the first was full.
   */
  async function inTurns(
    what: keyof typeof turns,
    take: (except: readonly string[]) => Promise<{ full: boolean; tenants: readonly string[] }>,
  ): Promise<boolean> {
    const first = await take([]);
    if (!first.full || !options.severalTenants || clock.now() < turns[what]) return first.full;
    turns[what] = clock.now() + turnPause;
    const served = new Set(first.tenants);
    for (let next = first; next.full && !stopping;) {
      next = await take([...served]);
      for (const tenant of next.tenants) served.add(tenant);
    }
    return true;
  }

  /** Targets that have something due and are not being worked through begin; the oldest come first. */
  async function beginDrains(now: Instant): Promise<Promise<void>[]> {
    const begun: Promise<void>[] = [];
    while (begun.length < targetsAtOnce && !stopping) {
      const except = [...busy.keys(), ...breaker.failing()];
      const claimed = await store.claim(atTarget, now, claimFor, options.concurrency, except);
      if (claimed.length === 0) break;
      options.reached('settle.claimed');
      for (const [target, leases] of byTarget(claimed)) begun.push(begin(target, leases));
      // Fewer than were asked for: all that is due elsewhere is in this claim.
      if (claimed.length < options.concurrency) break;
    }
    return begun;
  }

  async function beginProbes(now: Instant): Promise<Promise<void>[]> {
    const begun: Promise<void>[] = [];
    for (const target of breaker.toProbe(now)) {
      if (busy.has(target) || stopping) continue;
      const claimed = await store.claim(atTarget, now, claimFor, 1, [], target);
      if (claimed.length > 0) begun.push(begin(target, claimed));
    }
    return begun;
  }

  async function beginSlowRetries(now: Instant): Promise<void> {
    const probed = new Set(breaker.toProbe(now));
    const except = [...busy.keys(), ...breaker.failing().filter((target) => !probed.has(target))];
    const claimed = await store.claimIrrevocable(atTarget, now, claimFor, options.concurrency, except);
    await patiently([...byTarget(claimed)].map(([target, leases]) => begin(target, leases, 'these alone')));
    // A full claim is not the last one.
    if (claimed.length === options.concurrency) lookSlowlyAt = 0;
  }

  /** Goes on with what is due at this target for as long as it takes it. */
  function begin(target: string, claimed: readonly Lease[], only?: 'these alone'): Promise<void> {
    const until = clock.now() + options.patience;
    const drain = start(claimed, only === undefined ? target : undefined, () => busy.delete(target));
    busy.set(target, drain);
    const running = drain.done
      .then(async () => {
        // The round that began it has ended without it.
        if (clock.now() >= until) while (await finishTasks());
      })
      // Nothing is lost: the claims run out, and the next one finds the credentials gone.
      .catch((error: unknown) => emit('storage.failed', { operation: 'settle', error }))
      .finally(() => underWay.delete(running));
    underWay.add(running);
    return running;
  }

  /** `more`: the target whose further leases are to follow. */
  function start(claimed: readonly Lease[], more: string | undefined, ended?: () => void): Drain {
    return startDrain<Lease, Settled>(claimed, {
      atOnce: options.concurrency,
      claim: async (limit) => {
        if (more === undefined || stopping || !breaker.healthy(more)) return [];
        return await store.claim(atTarget, clock.now(), claimFor, limit, [], more);
      },
      work: settle,
      record,
      ...(ended === undefined ? {} : { ended }),
    });
  }

  /** True: there is more to finish. A tree is settled from below, level by level. */
  async function finishTasks(): Promise<boolean> {
    const completed: FinishedTask[] = [];
    const full = await inTurns('tasks', async (except) => {
      const some = await store.completeTasks(clock.now(), finishBatch, except);
      completed.push(...some);
      return { full: some.length === finishBatch, tenants: [...new Set(some.map(({ tenant }) => tenant))] };
    });
    for (const { tenant, taskId, state } of completed) emit('task.closed', { tenant, taskId, state });
    const degraded = await store.degradeTasks(clock.now() - options.settleBound, clock.now());
    for (const { tenant, taskId } of degraded) emit('settle.degraded', { tenant, taskId });
    return full || completed.some(({ parentTaskId }) => parentTaskId !== undefined);
  }

  async function patiently(work: readonly Promise<void>[]): Promise<void> {
    if (work.length === 0) return;
    const done = new AbortController();
    const all = Promise.all(work).then(() => done.abort());
    await Promise.race([all, options.sleep(options.patience, done.signal)]);
  }

  async function settle(lease: Lease): Promise<Settled | undefined> {
    const attempt = await revoke(lease);
    if (attempt.is === 'gone' || attempt.is === 'bounded') return resultOf(lease, attempt, clock.now());
    const noted =
      attempt.is === 'failed'
        ? failed(lease, attempt.because)
        : store.failed(lease, attempt.because, attempt.lookAgainAt);
    // What is gone is recorded even if this is not: the claim then runs out.
    await noted.catch((error: unknown) => emit('storage.failed', { operation: 'settle', error }));
    return undefined;
  }

  async function revoke(lease: Lease): Promise<Attempt> {
    const provider = providers.get(lease.provider) as TargetProvider | undefined;
    const target = targetOf(lease.handle);
    if (provider === undefined) return { is: 'failed', because: `this broker has no provider ${lease.provider}` };
    try {
      const remaining = await slots(target, () =>
        within(options.revokeTimeout, (signal) => provider.revoke(lease.handle, signal, lease)),
      );
      breaker.succeeded(target);
      if (remaining === undefined) return { is: 'gone' };
      return 'deadBy' in remaining ? { is: 'bounded', ...remaining } : { is: 'undecided', ...remaining };
    } catch (error) {
      breaker.failed(target, clock.now());
      return { is: 'failed', because: error instanceof Error ? error.message : String(error) };
    }
  }

  async function record(results: readonly Settled[]): Promise<void> {
    if (results.length === 0) return;
    options.reached('settle.revoked');
    const now = clock.now();
    const first = results.filter(({ lease }) => lease.outcome === undefined);
    const later = results.filter(({ lease }) => lease.outcome === 'irrevocable');
    if (first.length > 0) await store.settled(first, now);
    const closed = later.length > 0 ? await store.corrected(later, now) : [];
    options.reached('settle.recorded');
    for (const { lease, outcome } of first) {
      const cause = lease.settleCause ?? '';
      emit('lease.settled', { ...settleFields(lease), outcome, cause, attempts: lease.settleAttempts });
    }
    for (const { lease, outcome } of later) {
      emit('lease.corrected', { ...settleFields(lease), outcome, attempts: lease.settleAttempts });
    }
    for (const { tenant, taskId, state } of closed) emit('task.closed', { tenant, taskId, state });
  }

  async function failed(lease: Lease, message: string): Promise<void> {
    const now = clock.now();
    const fields = { ...settleFields(lease), attempts: lease.settleAttempts, error: message };
    if (lease.outcome === 'irrevocable') {
      const retryInMs = slowPause(lease, now);
      await store.failed(lease, message, now + retryInMs);
      emit('settle.failed', { ...fields, retryInMs });
    } else if (now > lease.expiresAt + options.giveUpAfter) {
      await store.failed(lease, message, now + claimFor);
      const result: Settled = {
        lease,
        outcome: 'irrevocable',
        deadBy: undefined,
        retryAt: now + slowPause(lease, now),
      };
      await store.settled([result], now);
      emit('lease.irrevocable', fields);
    } else {
      // 1 s, 2 s, 4 s … for each lease, spread so that a returning target is not met by everything at once.
      const retryInMs = spread(Math.min(longestPause, 1_000 * 2 ** Math.min(lease.settleAttempts - 1, 10)));
      await store.failed(lease, message, now + retryInMs);
      emit('settle.failed', { ...fields, retryInMs });
    }
  }

  function slowPause(lease: Lease, now: Instant): Millis {
    const since = (now - lease.expiresAt) / 24;
    return spread(Math.min(longestSlowPause, Math.max(shortestSlowPause, since)));
  }

  function spread(ms: Millis): Millis {
    return ms * (0.5 + options.random());
  }
}

function byTarget(leases: readonly Lease[]): Map<string, Lease[]> {
  const groups = new Map<string, Lease[]>();
  for (const lease of leases) {
    const target = targetOf(lease.handle);
    const group = groups.get(target);
    if (group === undefined) groups.set(target, [lease]);
    else group.push(lease);
  }
  return groups;
}

function resultOf(lease: Lease, attempt: Extract<Attempt, { is: 'gone' | 'bounded' }>, now: Instant): Settled {
  if (attempt.is === 'bounded') return { lease, outcome: 'bounded', deadBy: attempt.deadBy };
  return { lease, outcome: outcomeOf(lease, now), deadBy: undefined };
}

/** After the target was seen without the credential. */
export function outcomeOf(lease: Pick<Lease, 'settleCause' | 'expiresAt'>, now: Instant): LeaseOutcome {
  if (lease.settleCause === 'returned') return 'returned';
  return lease.settleCause === 'expired' || lease.expiresAt <= now ? 'expired' : 'revoked';
}
