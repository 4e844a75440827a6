import { LRUCache } from 'lru-cache';
import { BrokerError } from '../../domain/errors.ts';
import { fullBucket, takeToken, type TokenBucket } from '../../domain/token-bucket.ts';
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

/** A token bucket per workload. `now` is monotonic, in milliseconds. */
export function rate(limits: RateLimits, now: () => number): Interceptor {
  const buckets = new LRUCache<string, TokenBucket>({ max: limits.maxCallers });
  const bounds = { perSecond: limits.callsPerSecond, burst: limits.burst };
  return (_method, next) => (exchange) => {
    const at = now();
    const { tenant, workload } = exchange.caller;
    const key = `${tenant} ${workload}`;
    let bucket = buckets.get(key);
    if (bucket === undefined) {
      bucket = fullBucket(bounds, at);
      buckets.set(key, bucket);
    }
    const refused = takeToken(bucket, bounds, at);
    if (refused !== undefined) {
      throw new BrokerError(
        'RATE_LIMITED',
        'This workload calls too often. Wait as long as RetryInfo says, then retry.',
        { retryAfterMs: refused.wait },
      );
    }
    return next(exchange);
  };
}
