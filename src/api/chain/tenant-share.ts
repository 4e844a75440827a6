import { BrokerError } from '../../domain/errors.ts';
import { fullBucket, takeToken, type BucketBounds, type TokenBucket } from '../../domain/token-bucket.ts';
import type { TenantShare } from './exchange.ts';
import type { Interceptor } from './interceptor.ts';

/** What all workloads of one tenant may do together on one replica. */
export interface TenantBounds {
  /** Calls per second for long. */
  callsPerSecond: number;
  /** Calls at once after a pause. */
  burst: number;
  /** Unary calls in work at once. */
  maxInFlight: number;
  /** Streams open at once. */
  maxStreams: number;
}

/** A tenant without bounds is not bounded: where there is only one, nobody else could be starved. */
export type TenantBoundsOf = (tenant: string) => TenantBounds | undefined;

interface Counted extends TenantShare {
  readonly bounds: TenantBounds;
  readonly perSecond: BucketBounds;
  readonly bucket: TokenBucket;
}

/**
 * So that one tenant, with however many workloads, cannot take all that the door lets through. Behind the bound of the
 * workload: calls that are refused there take nothing of their tenant's. Memory of this replica and nothing else.
 */
export function tenantShare(boundsOf: TenantBoundsOf, now: () => number): Interceptor {
  // As many as tenants are configured: attestation names no others.
  const shares = new Map<string, Counted | undefined>();
  const shareOf = (tenant: string): Counted | undefined => {
    const bounds = boundsOf(tenant);
    const share = bounds && countedOf(bounds, now());
    shares.set(tenant, share);
    return share;
  };
  return ({ kind }, next) => {
    const held = kind === 'unary' ? 'unary' : 'streams';
    return (exchange) => {
      const { tenant } = exchange.caller;
      const share = shares.get(tenant) ?? (shares.has(tenant) ? undefined : shareOf(tenant));
      // A call that has ended meanwhile would never leave again.
      if (share === undefined || exchange.ending !== undefined) return next(exchange);
      const { bounds } = share;
      if (held === 'unary' ? share.unary >= bounds.maxInFlight : share.streams >= bounds.maxStreams) {
        throw held === 'unary'
          ? refused('maxInFlight', `has ${bounds.maxInFlight} calls in work`, 200)
          : refused('maxStreams', `holds ${bounds.maxStreams} streams`, 1_000);
      }
      const empty = takeToken(share.bucket, share.perSecond, now());
      if (empty !== undefined) {
        throw refused('callsPerSecond', `makes more than ${bounds.callsPerSecond} calls per second`, empty.wait);
      }
      share[held] += 1;
      exchange.share = share;
      return next(exchange);
    };
  };
}

function countedOf(bounds: TenantBounds, at: number): Counted {
  const perSecond = { perSecond: bounds.callsPerSecond, burst: bounds.burst };
  return { bounds, perSecond, bucket: fullBucket(perSecond, at), unary: 0, streams: 0 };
}

function refused(bound: keyof TenantBounds, what: string, retryAfterMs: number): BrokerError {
  return new BrokerError(
    'RATE_LIMITED',
    `All workloads of this tenant together are bounded (perTenant.${bound}): it ${what} on this replica. ` +
      'Wait as long as RetryInfo says, then retry.',
    { retryAfterMs, metadata: { bound: `perTenant.${bound}` } },
  );
}
