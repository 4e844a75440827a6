import type { Instant, Millis } from '../domain/time.ts';

/** What a verifier asks about revocations. */
export interface RevocationFeed {
  /** The time by our own clock up to which everything revoked is known; undefined before the first full picture. */
  freshAsOf(): Instant | undefined;
  revoked(token: { taskId: string; leaseId: string }): boolean;
}

/** One entry as it is kept: what is revoked and when it may be forgotten. */
export interface RevocationEntry {
  position: bigint;
  subject: string;
  /** Undefined: never. */
  forgetAt: Instant | undefined;
}

export interface RevocationMemory {
  add(entries: readonly RevocationEntry[], now: Instant): void;
  has(subject: string): boolean;
  /** Greatest position seen: where to go on. */
  position(): bigint;
  size(): number;
  /** Whether an entry had to be left out; the memory is then no answer to anything. */
  overflowed(): boolean;
}

const sweepEvery = 10_000;

/**
 * Bounded by time (an entry goes when no token of its subject can be valid any more) and by number: an entry that does
 * not fit makes the memory useless rather than wrong.
 */
export function createRevocationMemory(maxEntries: number, skew: Millis): RevocationMemory {
  const entries = new Map<string, Instant>();
  let position = 0n;
  let overflow = false;
  let sweptAt = Number.NEGATIVE_INFINITY;

  function sweep(now: Instant): void {
    for (const [subject, forgetAt] of entries) if (forgetAt + skew < now) entries.delete(subject);
    sweptAt = now;
  }

  return {
    add(batch, now) {
      for (const entry of batch) {
        const forgetAt = entry.forgetAt ?? Number.POSITIVE_INFINITY;
        if (entry.position > position) position = entry.position;
        if (forgetAt + skew < now) continue;
        if (!entries.has(entry.subject) && entries.size >= maxEntries) {
          sweep(now);
          if (entries.size >= maxEntries) {
            overflow = true;
            return;
          }
        }
        entries.set(entry.subject, Math.max(forgetAt, entries.get(entry.subject) ?? forgetAt));
      }
      if (now - sweptAt >= sweepEvery || now < sweptAt) sweep(now);
    },
    has: (subject) => entries.has(subject),
    position: () => position,
    size: () => entries.size,
    overflowed: () => overflow,
  };
}
