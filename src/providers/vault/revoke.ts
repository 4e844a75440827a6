import type { Lease } from '../../domain/model.ts';
import type { Remaining } from '../../domain/provider.ts';
import type { TaskTokenStore } from '../../domain/task-tokens.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import { endToken, lookUpToken } from './accessors.ts';
import type { HandlePart } from './handle.ts';
import { endLease, isGone } from './leases.ts';
import type { Lives } from './lives.ts';
import type { Open } from './server.ts';
import { endStrays } from './strays.ts';
import { sweep } from './sweep.ts';
import type { TaskTokens } from './task-tokens.ts';

export interface RevokeOptions {
  tokens: TaskTokens;
  store: TaskTokenStore;
  lives: Lives;
  clock: Clock;
}

type RevokedFor = Pick<Lease, 'settleCause' | 'issuedAt' | 'expiresAt'>;
type Part<K extends HandlePart['kind']> = Extract<HandlePart, { kind: K }>;

/** How long Vault is left to work through the leases of a token that was ended, before one is ordered by itself. */
const patience: Millis = 3_000;
/** Beyond the time-outs of an attempt: how long its call may still be on its way. */
const lateBy: Millis = 2_000;

/** Between two looks at whether a token is free to be swept. */
const sweepPause: Millis = 5_000;

/** What has to be done, and seen, until a handle's credential is gone (design §6). */
export function createRevoke({ tokens, store, lives, clock }: RevokeOptions) {
  /** Leases that are being taken away at the end of their task, by their token. */
  const underWay = new Map<string, number>();
  return async (
    server: Open,
    parts: readonly HandlePart[],
    signal: AbortSignal,
    lease?: RevokedFor,
  ): Promise<Remaining | void> => {
    const remaining: Remaining[] = [];
    for (const part of parts) {
      const left = await endPart(server, part, signal, lease);
      if (left !== undefined) remaining.push(left);
    }
    return worst(remaining);
  };

  async function endPart(
    server: Open,
    part: HandlePart,
    signal: AbortSignal,
    lease: RevokedFor | undefined,
  ): Promise<Remaining | undefined> {
    switch (part.kind) {
      case 'leased':
        return await endLeased(server, part, signal, lease?.settleCause === 'closed');
      case 'asked':
        return await endAsked(server, part, signal, lease);
      case 'leaseless':
        return part.end > clock.now() ? { deadBy: part.end } : undefined;
      case 'wrapped':
        return await endWrapped(server, part, signal);
      case 'token':
        // Listed just now: that this replica has ended it before, in a Vault that was restored since, says nothing.
        await endToken(server, part.accessor, signal);
        return void (await tokens.end(server, part.accessor, signal));
    }
  }

  /**
   * At the end of a task its token goes first: Vault then takes all of the task's leases away at once, with as many hands as it
   * has, and what is read late meets a dead token. Each lease is looked at all the same, and ordered away where Vault is slow.
   * A few leases are ordered away at once, and the last of them takes the token with it: Vault queues what hangs on a token,
   * and for so few the queue costs more than the orders.
   */
  async function endLeased(
    server: Open,
    { accessor, vaultLease }: Part<'leased'>,
    signal: AbortSignal,
    taskEnded: boolean,
  ): Promise<undefined> {
    if (!taskEnded) {
      await endLease(server, vaultLease, signal);
      return;
    }
    const key = `${server.name} ${accessor}`;
    underWay.set(key, (underWay.get(key) ?? 0) + 1);
    let last = false;
    let token: Awaited<ReturnType<TaskTokens['endWithTask']>>;
    try {
      token = await tokens.endWithTask(server, accessor, signal);
      if (token !== 'ended' || !(await isGone(server, vaultLease, signal, patience))) {
        await endLease(server, vaultLease, signal);
      }
    } finally {
      const others = underWay.get(key)! - 1;
      last = others === 0;
      if (last) underWay.delete(key);
      else underWay.set(key, others);
    }
    if (last && token === 'of few') await tokens.end(server, accessor, signal);
  }

  /**
   * A read whose answer nobody has: a broker died, or Vault did not answer. There may be a credential that nobody holds, and
   * Vault itself need not know of it (sweep.ts). Its token is ended as soon as nobody else's credential hangs on it. Where
   * neither a sweep nor Vault's list shows it gone, the outcome says no more than that.
   */
  async function endAsked(
    server: Open,
    part: Part<'asked'>,
    signal: AbortSignal,
    lease: RevokedFor | undefined,
  ): Promise<Remaining | undefined> {
    const { accessor } = part;
    const inUseUntil = await tokens.retire(server, accessor);
    const decidedAt = part.at + 2 * server.config.issueTimeout + lateBy;
    if (clock.now() < decidedAt) {
      // Nor is its token ended before: a lease that Vault keeps a moment later would not go with it.
      return { lookAgainAt: decidedAt, because: 'Vault may still be working on the read; looked at when it cannot be' };
    }
    if (part.sweep !== undefined && inUseUntil === undefined) {
      await sweep(server, part.sweep, signal);
      return void (await tokens.end(server, accessor, signal));
    }
    // Before the token: what goes with it is gone from the list, and nobody saw it go.
    const strays = await endStrays({ server, store, clock }, part, signal);
    if (inUseUntil === undefined) await tokens.end(server, accessor, signal);
    // What was found and ended may have been another lost read's: the sweep alone is of this token.
    if (part.sweep !== undefined) {
      const because = 'swept when no other credential of the same token lives: a sweep would take theirs too';
      return { lookAgainAt: clock.now() + sweepPause, because };
    }
    if (strays === 'gone') return undefined;
    if (strays === 'wait')
      return { lookAgainAt: clock.now() + 1_000, because: 'other reads from the same path are under way' };
    const byItself = decidedAt + (part.life ?? lives.of(server.name, part.path) ?? 0);
    return { deadBy: Math.max(clock.now(), inUseUntil ?? 0, lease?.expiresAt ?? 0, byItself) };
  }

  /** As long as nobody has fetched it, ending the wrapping token keeps everybody from it. */
  async function endWrapped(
    server: Open,
    { accessor, end }: Part<'wrapped'>,
    signal: AbortSignal,
  ): Promise<Remaining | undefined> {
    const unfetched = (await lookUpToken(server, accessor, signal)) !== undefined;
    if (unfetched) await endToken(server, accessor, signal);
    return unfetched || end <= clock.now() ? undefined : { deadBy: end };
  }
}

/** What is still to be looked at comes before what is only to be waited for. */
function worst(remaining: readonly Remaining[]): Remaining | undefined {
  const look = remaining.filter((left) => 'lookAgainAt' in left);
  if (look.length > 0) return look.reduce((a, b) => (a.lookAgainAt <= b.lookAgainAt ? a : b));
  let deadBy: Instant | undefined;
  for (const left of remaining) if ('deadBy' in left) deadBy = Math.max(deadBy ?? 0, left.deadBy);
  return deadBy === undefined ? undefined : { deadBy };
}
