import { BrokerError } from './domain/errors.ts';
import type { Clock, Millis } from './domain/time.ts';
import type { Component } from './api/admin-service.ts';

export interface MonitorOptions {
  clock: Clock;
  /** Milliseconds by which the database's clock is ahead; rejects when the database does not answer. */
  clockOffset: () => Promise<Millis>;
  maxClockOffset: Millis;
  onLost: (error: unknown) => void;
  onRestored: (downMs: Millis) => void;
  onSkew: (skewMs: Millis) => void;
}

/** Knows whether the database answers and agrees about the time; the issue path asks it before each decision. */
export function createMonitor(options: MonitorOptions) {
  const { clock } = options;
  let lostAt: number | undefined;
  let offset: Millis = 0;

  const skewed = () => Math.abs(offset) > options.maxClockOffset;
  const difference = () => (skewed() ? offset : 0);
  return {
    /**
     * Of two clocks that disagree nobody knows which is right. The earlier one is for what must not be ended or forgotten
     * before its time, the later one for what must not be accepted after it.
     */
    earlier: { now: () => clock.now() + Math.min(0, difference()) } satisfies Clock,
    later: { now: () => clock.now() + Math.max(0, difference()) } satisfies Clock,

    check: async (): Promise<void> => {
      try {
        offset = await options.clockOffset();
        if (skewed()) options.onSkew(Math.round(offset));
        if (lostAt !== undefined) options.onRestored(clock.now() - lostAt);
        lostAt = undefined;
      } catch (error) {
        if (lostAt === undefined) options.onLost(error);
        lostAt ??= clock.now();
      }
    },
    /** Throws when nothing may be issued here. A lost database needs no check: the write itself fails. */
    admit: (): void => {
      if (!skewed()) return;
      throw new BrokerError(
        'CLOCK_SKEW',
        `this broker's clock and its database's differ by ${Math.round(Math.abs(offset) / 1_000)} s: nothing is issued until they agree; an operator has to set the clock`,
      );
    },
    status: (): Component => ({
      name: 'storage',
      ready: lostAt === undefined && !skewed(),
      detail:
        lostAt !== undefined
          ? `the database does not answer since ${new Date(lostAt).toISOString()}`
          : `clock offset ${Math.round(offset)} ms`,
    }),
  };
}
