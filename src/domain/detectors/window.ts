import type { Instant, Millis } from '../time.ts';

interface Count {
  from: Instant;
  here: number;
  before: number;
}

/**
 * Counts by key within a sliding window, approximated by two adjacent ones, so that a key costs three numbers whatever it
 * counts. Keys are bounded; those not seen for longest go first.
 */
export function createWindowCounter(window: Millis, maxKeys: number) {
  const counts = new Map<string, Count>();
  return {
    /** Adds one, and says how many there were within the window. */
    add: (key: string, now: Instant): number => {
      let count = counts.get(key) ?? { from: now, here: 0, before: 0 };
      counts.delete(key);
      if (now - count.from >= 2 * window) count = { from: now, here: 0, before: 0 };
      else if (now - count.from >= window) count = { from: count.from + window, here: 0, before: count.here };
      count.here += 1;
      counts.set(key, count);
      if (counts.size > maxKeys) counts.delete(counts.keys().next().value!);
      return count.here + count.before * (1 - (now - count.from) / window);
    },
    /** Begins to count anew. */
    reset: (key: string): void => void counts.delete(key),
  };
}
