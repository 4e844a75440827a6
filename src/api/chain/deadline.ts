import { BrokerError } from '../../domain/errors.ts';
import type { Clock } from '../../domain/time.ts';
import type { Exchange } from './exchange.ts';
import type { Interceptor } from './interceptor.ts';

export interface DeadlineLimits {
  /** For unary calls whose caller sets no deadline. */
  defaultDeadlineMs: number;
  /** Unary calls never run longer. A stream runs as long as its caller says, without a bound when it says nothing. */
  maxDeadlineMs: number;
}

/** Longest delay that setTimeout takes; a longer one would fire at once. */
const maxTimer = 2_147_483_647;

/** Ends the call at its deadline whether or not the handler heeds the signal: the caller has stopped waiting. */
export function deadline(
  limits: DeadlineLimits,
  clock: Clock,
  end: (exchange: Exchange, error: BrokerError) => void,
): Interceptor {
  return ({ kind }, next) =>
    (exchange) => {
      const asked = exchange.incoming.timeoutMs;
      const allowed =
        kind === 'unary' ? Math.min(asked ?? limits.defaultDeadlineMs, limits.maxDeadlineMs) : (asked ?? Infinity);
      if (allowed <= 0) throw exceeded();
      if (allowed !== Infinity) {
        exchange.deadline = clock.now() + allowed;
        exchange.timer = setTimeout(expire, Math.min(allowed, maxTimer), exchange, end);
      }
      return next(exchange);
    };
}

function expire(exchange: Exchange, end: (exchange: Exchange, error: BrokerError) => void): void {
  end(exchange, exceeded());
}

export function exceeded(): BrokerError {
  return new BrokerError(
    'DEADLINE_EXCEEDED',
    'The deadline of the call passed before its answer. Retry with the same request_id.',
  );
}
