import { BrokerError } from '../../domain/errors.ts';
import type { Instant, Millis } from '../../domain/time.ts';
import type { KeySet, VerificationKey } from './verification-key.ts';

/** The keys in force, and the one place that says when they are replaced and when they are too old. */
export interface KeyHold {
  /** Replaces everything that was trusted. Throws when the set is older than one seen before. */
  replace(next: KeySet, now: Instant): void;
  /** The source could not be read or its content was refused: what is held stays, up to the bound. */
  failed(problem: string): void;
  fresh(now: Instant): boolean;
  /** Throws KEYS_STALE. */
  require(now: Instant): readonly VerificationKey[];
  current(): KeySet | undefined;
  generation(): number;
  status(now: Instant): { ready: boolean; detail: string };
}

export interface KeyHoldOptions {
  /** What the keys are called in messages: `the bundle of acme.test`. */
  what: string;
  staleAfter: Millis;
  retryAfter: Millis;
}

export function createKeyHold({ what, staleAfter, retryAfter }: KeyHoldOptions): KeyHold {
  let held: KeySet | undefined;
  let checkedAt: Instant | undefined;
  let highest: bigint | undefined;
  let problem: string | undefined;
  let generation = 0;

  const fresh = (now: Instant) => checkedAt !== undefined && now - checkedAt <= staleAfter;

  return {
    replace(next, now) {
      // SPIFFE Federation §4.2. A set without a sequence is taken as the newest, but lowers nothing that was seen.
      if (next.sequence !== undefined && highest !== undefined && next.sequence < highest) {
        throw new Error(`its sequence ${next.sequence} is lower than ${highest}, which was seen before (rollback)`);
      }
      highest = next.sequence ?? highest;
      if (held?.fingerprint !== next.fingerprint) generation += 1;
      held = next;
      checkedAt = now;
      problem = undefined;
    },
    failed(why) {
      problem = why;
    },
    fresh,
    require(now) {
      if (held !== undefined && fresh(now)) return held.keys;
      throw new BrokerError(
        'KEYS_STALE',
        `The keys that verify this attestation are out of date. Retry; if it lasts, an operator must look at ${what}.`,
        { cause: problem, retryAfterMs: retryAfter },
      );
    },
    current: () => held,
    generation: () => generation,
    status(now) {
      const parts: string[] = [];
      if (held === undefined || checkedAt === undefined) parts.push('no keys yet');
      else {
        parts.push(held.keys.length === 0 ? 'no keys: nothing is trusted' : `${held.keys.length} keys`);
        if (held.sequence !== undefined) parts.push(`sequence ${held.sequence}`);
        const age = `checked ${Math.max(0, Math.round((now - checkedAt) / 1000))} s ago`;
        parts.push(fresh(now) ? age : `${age}, beyond the bound of ${Math.round(staleAfter / 1000)} s: all refused`);
        if (held.ignored.length > 0) parts.push(`${held.ignored.length} ignored (${held.ignored[0]})`);
      }
      if (problem !== undefined) parts.push(`last check of ${what} failed: ${problem}`);
      return { ready: fresh(now) && (held?.keys.length ?? 0) > 0, detail: parts.join('; ') };
    },
  };
}
