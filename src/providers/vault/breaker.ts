import { BrokerError } from '../../domain/errors.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import { asFailure } from './failure.ts';

const failuresToOpen = 5;
const shortest: Millis = 1_000;
const longest: Millis = 15_000;
/** However long Vault asks us to stay away. */
const longestRetryAfter: Millis = 60_000;

export interface Breaker {
  /** Throws while nothing should be issued at this server. Settlement does not ask. */
  admit(): void;
  succeeded(): void;
  failed(error: unknown): void;
}

/**
 * Keeps issues from piling up before a server that cannot answer: callers learn at once when to come back, and what the
 * server can still do is left for revocations. After a pause one call a second goes through to see.
 */
export function createBreaker(server: string, clock: Clock): Breaker {
  let failures = 0;
  let shutUntil: Instant = 0;

  return {
    admit() {
      const now = clock.now();
      if (now >= shutUntil) {
        // Whatever becomes of this one, another may try soon.
        if (failures >= failuresToOpen) shutUntil = now + shortest;
        return;
      }
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `Vault server ${server} does not answer as it should, and nothing is issued from it for a moment: retry with the same request_id`,
        { retryAfterMs: Math.max(shutUntil - now, 250) },
      );
    },
    succeeded() {
      failures = 0;
      shutUntil = 0;
    },
    failed(error) {
      const failure = asFailure(error);
      if (failure === undefined) return;
      const { status } = failure;
      const overloaded = status === 429;
      const away = status === undefined || (status >= 502 && status <= 504);
      // A refusal is an answer: the server works.
      if (!overloaded && !away) return;
      failures = overloaded ? failures : failures + 1;
      const pause = failures >= failuresToOpen ? Math.min(longest, shortest * 2 ** (failures - failuresToOpen)) : 0;
      const asked = overloaded ? Math.min(failure.retryAfterMs ?? shortest, longestRetryAfter) : 0;
      shutUntil = Math.max(shutUntil, clock.now() + Math.max(pause, asked));
    },
  };
}
