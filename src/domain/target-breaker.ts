import type { Instant, Millis } from './time.ts';

export interface TargetBreakerOptions {
  random: () => number;
  onFailing: (target: string, failures: number) => void;
  onRecovered: (target: string, failures: number) => void;
}

/** Failures one after the other, with no success between them, that are no longer put down to single credentials. */
const enough = 3;
const firstRest: Millis = 1_000;
/** Short: a target that is back is seen soon, and one probe in that time is no load. */
const longestRest: Millis = 5_000;
const mostTargets = 1_000;

/**
 * Which targets are left alone for a while. A target that fails again and again rests, then gets one credential as a probe,
 * and work goes on when that succeeds. A single credential that cannot be revoked does not hold up the others of its target.
 */
export function createTargetBreaker(options: TargetBreakerOptions) {
  const states = new Map<string, { failures: number; until: Instant }>();
  return {
    /** These get no more than a probe. */
    failing: (): string[] => [...states].filter(([, state]) => state.failures >= enough).map(([target]) => target),

    /** Of those, the ones whose rest is over. */
    toProbe: (now: Instant): string[] =>
      [...states].filter(([, state]) => state.failures >= enough && state.until <= now).map(([target]) => target),

    healthy: (target: string): boolean => (states.get(target)?.failures ?? 0) < enough,

    succeeded: (target: string): void => {
      const state = states.get(target);
      if (state === undefined) return;
      states.delete(target);
      if (state.failures >= enough) options.onRecovered(target, state.failures);
    },

    failed: (target: string, now: Instant): void => {
      const state = states.get(target) ?? { failures: 0, until: 0 };
      // What was under way together fails together: it makes the rest no longer.
      if (state.failures >= enough && state.until > now) return;
      if (states.size >= mostTargets && !states.has(target)) return;
      const failures = state.failures + 1;
      const doublings = Math.max(0, failures - enough);
      const rest = Math.min(longestRest, firstRest * 2 ** Math.min(doublings, 10)) * (0.5 + options.random());
      states.set(target, { failures, until: now + rest });
      if (failures === enough) options.onFailing(target, failures);
    },
  };
}
