import type { Instant } from './time.ts';

export const roles = [
  'orchestrator',
  'agent',
  'resource_server',
  'operator',
  'auditor',
  'approver',
  'signal_source',
] as const;
export type Role = (typeof roles)[number];

/** What an attestor proved about the call (design §7). */
export interface Attestation {
  /** Canonical workload: a SPIFFE ID, or the canonical form that the issuer's mapping gives. */
  workload: string;
  tenant: string;
  kind: 'jwt-svid' | 'oidc';
  /** Trust domain name or issuer URL. */
  issuer: string;
  /** The attestation's own `exp`. */
  expiresAt: Instant;
  /** Groups that the attestation itself says the caller is in; only where the issuer is configured to say so. */
  groups?: readonly string[];
}

/** The attested workload with what it may be to the broker. */
export interface Caller extends Attestation {
  roles: ReadonlySet<Role>;
  /** Names of the registered agents that this workload can act as. */
  agents: ReadonlySet<string>;
}
