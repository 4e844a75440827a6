import { LRUCache } from 'lru-cache';
import { BrokerError } from '../../domain/errors.ts';
import type { Lease, Task } from '../../domain/model.ts';
import type { DueToken, TaskToken, TaskTokenStore } from '../../domain/task-tokens.ts';
import { untilAborted } from '../../domain/within.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import { endToken, renewToken } from './accessors.ts';
import { targetName } from './handle.ts';
import { makeToken } from './make-token.ts';
import type { Open } from './server.ts';

export interface TaskTokensOptions {
  servers: ReadonlyMap<string, Open>;
  store: TaskTokenStore;
  clock: Clock;
  random: () => number;
  /** Put into each token's metadata, so that a look at the server tells whose it is. */
  mark: string;
  lost(token: TaskToken, leases: number): void;
  failed(token: TaskToken, error: unknown): void;
}

export interface HeldToken {
  token: string;
  accessor: string;
  name: string;
  /** When Vault ends it whatever is done. */
  end: Instant;
}

export type TaskTokens = ReturnType<typeof createTaskTokens>;

const maxHeld = 50_000;
/** What one claim of the settler brings: all of a token's leases are then under way together. */
const few = 16;
/** Claimed at once by one replica, and looked after at the same time. */
const batch = 64;
const claimFor: Millis = 15_000;
/** The shortest period that the design allows is 60 s; a third of it leaves two more attempts. */
const fraction = 1 / 3;

/**
 * One token per task at each server and token role, made by the replica that first needs one and kept in its memory alone. What
 * is written down is the accessor, which every replica can keep alive and end; so a replica that comes later makes a token of
 * its own rather than read one from a table (docs/architecture.md, Vault).
 *
 * They are periodic: if every broker dies, Vault ends each within a period, and with it all that was made for the task.
 */
export function createTaskTokens(options: TaskTokensOptions) {
  const { servers, store, clock } = options;
  const held = new LRUCache<string, Promise<HeldToken>>({ max: maxHeld });
  const byAccessor = new LRUCache<string, { key: string; token: string }>({ max: maxHeld });
  const ending = new Map<string, Promise<void>>();
  const asking = new Map<string, ReturnType<TaskTokenStore['hanging']>>();

  return { forLease, tokenOf, drop, retire, end, endWithTask, tick };

  /** A token that lives as long as the lease; its accessor has been committed when this answers. */
  async function forLease(
    server: Open,
    role: string,
    task: Task,
    lease: Pick<Lease, 'expiresAt'>,
    signal: AbortSignal,
  ): Promise<HeldToken> {
    const key = `${server.name} ${role} ${task.tenant} ${task.taskId}`;
    const present = held.get(key);
    if (present !== undefined) {
      const token = await untilAborted(present, signal, late);
      // A second of slack: Vault counts in seconds.
      if (token.end + 1_000 >= lease.expiresAt) return token;
      // The task was extended beyond this one's end: what was made with it stays until it is settled.
      if (held.get(key) === present) {
        drop(token.accessor);
        await store.retire({ server: targetName(server.name), accessor: token.accessor }, clock.now());
      }
    }
    // Calls of one task that come together share the making. Whoever gives up does not take it from the others.
    return await untilAborted(held.get(key) ?? begin(key, server, role, task), signal, late);
  }

  function begin(key: string, server: Open, role: string, task: Task): Promise<HeldToken> {
    const making = make(key, server, role, task);
    held.set(key, making);
    making.catch(() => {
      if (held.get(key) === making) held.delete(key);
    });
    return making;
  }

  async function make(key: string, server: Open, role: string, task: Task): Promise<HeldToken> {
    const made = await makeToken(
      server,
      role,
      task,
      options.mark,
      clock,
      AbortSignal.timeout(server.config.issueTimeout),
    );
    const { accessor, token, name, end: expiresAt, period } = made;
    const row = { tenant: task.tenant, taskId: task.taskId, server: targetName(server.name), accessor, expiresAt };
    await store.insert(row, clock.now() + period * fraction * spread());
    byAccessor.set(accessor, { key, token });
    return { token, accessor, name, end: expiresAt };
  }

  /** The token with which a lease was to be read, if this replica has it. */
  function tokenOf(accessor: string): string | undefined {
    return byAccessor.get(accessor)?.token;
  }

  /** Nothing more is made with it here. */
  function drop(accessor: string): void {
    const entry = byAccessor.get(accessor);
    if (entry === undefined) return;
    byAccessor.delete(accessor);
    held.delete(entry.key);
  }

  /** As `TaskTokenStore.retire`. */
  async function retire(server: Open, accessor: string): Promise<Instant | undefined> {
    drop(accessor);
    return await store.retire({ server: targetName(server.name), accessor }, clock.now());
  }

  /** Ends it, once for all who want it at the same time. */
  async function end(server: Open, accessor: string, signal: AbortSignal): Promise<void> {
    const key = `${server.name} ${accessor}`;
    drop(accessor);
    let work = ending.get(key);
    if (work === undefined) {
      work = (async () => {
        await endToken(server, accessor, AbortSignal.timeout(server.config.settleTimeout * 2));
        await store.gone({ server: targetName(server.name), accessor }, false, clock.now());
      })();
      ending.set(key, work);
      // Kept for a moment: the leases of a closed task come one after the other.
      const forget = () => void (ending.get(key) === work && ending.delete(key));
      work.then(() => setTimeout(forget, 30_000).unref(), forget);
    }
    await untilAborted(work, signal, late);
  }

  /**
   * As `end`, unless a read with it may be under way (Vault takes what a token has when it ends, and a lease that it keeps a
   * moment later would stay; whoever settles that read ends the token), or so few leases hang on it that they are sooner
   * gone when each is ordered away.
   */
  async function endWithTask(
    server: Open,
    accessor: string,
    signal: AbortSignal,
  ): Promise<'ended' | 'being used' | 'of few'> {
    if (!ending.has(`${server.name} ${accessor}`)) {
      const { attempted, leases } = await hanging(server, accessor);
      if (attempted) return 'being used';
      if (leases <= few) return 'of few';
    }
    await end(server, accessor, signal);
    return 'ended';
  }

  /** Asked once for all who want to know at the same time. */
  async function hanging(server: Open, accessor: string): ReturnType<TaskTokenStore['hanging']> {
    const key = `${server.name} ${accessor}`;
    let asked = asking.get(key);
    if (asked === undefined) {
      asked = store.hanging({ server: targetName(server.name), accessor }).finally(() => asking.delete(key));
      asking.set(key, asked);
    }
    return await asked;
  }

  /** Heartbeats, and the end of tokens that nothing needs any more. True: there may be more to do at once. */
  async function tick(): Promise<boolean> {
    const names = [...servers.keys()].map(targetName);
    if (names.length === 0) return false;
    const due = await store.claim(names, clock.now(), claimFor, batch);
    const kept: { token: DueToken; at: Instant }[] = [];
    await Promise.all(
      due.map(async (token) => {
        const server = servers.get(token.server.slice(targetName('').length));
        if (server === undefined) return;
        try {
          const next = await lookAfter(server, token);
          if (next !== undefined) kept.push({ token, at: next });
        } catch (error) {
          options.failed(token, error);
          kept.push({ token, at: clock.now() + 2_000 + 3_000 * options.random() });
        }
      }),
    );
    await store.keep(
      kept.map(({ token }) => token),
      kept.map(({ at }) => at),
    );
    return due.length === batch;
  }

  /** When to look again; undefined when it is gone. */
  async function lookAfter(server: Open, token: DueToken): Promise<Instant | undefined> {
    const signal = AbortSignal.timeout(server.config.settleTimeout);
    const now = clock.now();
    if (token.wanted === 'ended') {
      await end(server, token.accessor, signal);
      return undefined;
    }
    const left = await renewToken(server, token.accessor, signal);
    if (left === undefined) {
      drop(token.accessor);
      const leases = await store.gone(token, true, now);
      options.lost(token, leases);
      return undefined;
    }
    return now + Math.max(500, left * fraction * spread());
  }

  /** Tokens that were made together are not renewed together for ever. */
  function spread(): number {
    return 0.8 + 0.4 * options.random();
  }
}

function late(): BrokerError {
  return new BrokerError('PROVIDER_UNAVAILABLE', 'Vault did not answer in time; retry with the same request_id');
}
