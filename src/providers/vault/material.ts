import { BrokerError } from '../../domain/errors.ts';
import type { Material } from '../../domain/provider.ts';
import type { Instant } from '../../domain/time.ts';
import type { VaultTierOptions } from './options.ts';

/** What came back from a read, checked for its shape. */
export interface Secret {
  vaultLease: string | undefined;
  /** Granted life of the lease, milliseconds; 0 when there is none. */
  granted: number;
  renewable: boolean;
  data: Record<string, unknown>;
  wrapped: { token: string; accessor: string; ttl: number } | undefined;
}

export function secretOf(body: Record<string, unknown>): Secret {
  const { lease_id: id, lease_duration: duration, renewable, data, wrap_info: wrap } = body;
  const info = wrap as { token?: unknown; accessor?: unknown; ttl?: unknown } | null | undefined;
  return {
    vaultLease: typeof id === 'string' && id !== '' ? id : undefined,
    granted: typeof duration === 'number' ? duration * 1_000 : 0,
    renewable: renewable === true,
    data: typeof data === 'object' && data !== null ? (data as Record<string, unknown>) : {},
    wrapped:
      typeof info?.token === 'string' && typeof info.accessor === 'string'
        ? { token: info.token, accessor: info.accessor, ttl: typeof info.ttl === 'number' ? info.ttl * 1_000 : 0 }
        : undefined,
  };
}

/** In the form that the tier's users read. Version 2 of the kv engine has the secret one level deeper. */
export function materialOf({ data }: Secret, options: VaultTierOptions): Material {
  const { login } = options;
  if (login === undefined) return { kind: 'vault_secret', data: isVersioned(data) ? data.data : data };
  const { username, password } = data;
  if (typeof username !== 'string' || typeof password !== 'string') {
    throw new BrokerError(
      'PROVIDER_UNAVAILABLE',
      `${options.path} gives no username and password: the tool's owner has to remove the tier's login, or name another path`,
    );
  }
  return { kind: 'postgres_login', ...login, username, password };
}

function isVersioned(data: Record<string, unknown>): data is { data: Record<string, unknown> } {
  const { data: inner, metadata } = data;
  return typeof inner === 'object' && inner !== null && typeof metadata === 'object' && metadata !== null;
}

/** When a secret without a lease dies by itself; undefined when its answer does not say. */
export function endOf(
  { data }: Secret,
  { endsWithin, expiryField }: NonNullable<VaultTierOptions['leaseless']>,
  now: Instant,
): Instant | undefined {
  const stated = expiryField === undefined ? undefined : instantOf(data[expiryField]);
  return stated ?? (endsWithin === undefined ? undefined : now + endsWithin);
}

/** Seconds since 1970, as pki has it, or RFC 3339. */
function instantOf(value: unknown): Instant | undefined {
  if (typeof value === 'number' && Number.isFinite(value)) return value * 1_000;
  if (typeof value !== 'string') return undefined;
  const at = /^\d{9,11}$/.test(value) ? Number(value) * 1_000 : Date.parse(value);
  return Number.isNaN(at) ? undefined : at;
}
