import type { Instant, Millis } from './time.ts';

export interface BucketBounds {
  /** Taken per second for long. */
  perSecond: number;
  /** Taken at once after a pause. */
  burst: number;
}

export interface TokenBucket {
  tokens: number;
  filledAt: Instant;
}

export function fullBucket({ burst }: BucketBounds, at: Instant): TokenBucket {
  return { tokens: burst, filledAt: at };
}

/** Undefined: one token was taken. Otherwise none was, and that is when there will be one. */
export function takeToken(
  bucket: TokenBucket,
  { perSecond, burst }: BucketBounds,
  at: Instant,
): { wait: Millis } | undefined {
  const perMs = perSecond / 1_000;
  bucket.tokens = Math.min(burst, bucket.tokens + (at - bucket.filledAt) * perMs);
  bucket.filledAt = at;
  if (bucket.tokens < 1) return { wait: (1 - bucket.tokens) / perMs };
  bucket.tokens -= 1;
  return undefined;
}
