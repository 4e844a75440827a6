import { LRUCache } from 'lru-cache';
import { BrokerError } from '../../domain/errors.ts';
import type { Interceptor } from './interceptor.ts';

export interface RateLimits {
  /** Calls per second that one workload may make for long. */
  callsPerSecond: number;
  /** Calls that it may make at once after a pause. */
  burst: number;
  /** Streams that one workload may hold open. */
  streamsPerCaller: number;
  /** Workloads remembered; the one not seen for longest is forgotten first, with a full bucket. */
  maxCallers: number;
}

interface Bucket {
  tokens: number;
  filledAt: number;
}

/** A token bucket per workload. `now` is monotonic, in milliseconds. */
export function rate(limits: RateLimits, now: () => number): Interceptor {
  const buckets = new LRUCache<string, Bucket>({ max: limits.maxCallers });
  const perMs = limits.callsPerSecond / 1_000;
  return (_method, next) => (exchange) => {
    const at = now();
    const { tenant, workload } = exchange.caller;
    const key = `${tenant} ${workload}`;
    let bucket = buckets.get(key);
    if (bucket === undefined) {
      bucket = { tokens: limits.burst, filledAt: at };
      buckets.set(key, bucket);
    } else {
      bucket.tokens = Math.min(limits.burst, bucket.tokens + (at - bucket.filledAt) * perMs);
      bucket.filledAt = at;
    }
    if (bucket.tokens < 1) {
      throw new BrokerError(
        'RATE_LIMITED',
        'This workload calls too often. Wait as long as RetryInfo says, then retry.',
        {
          retryAfterMs: (1 - bucket.tokens) / perMs,
        },
      );
    }
    bucket.tokens -= 1;
    return next(exchange);
  };
}
