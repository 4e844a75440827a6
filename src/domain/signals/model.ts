import type { Instant } from '../time.ts';

/** What a signal can be about. */
export const subjectKinds = ['agent', 'workload', 'tool', 'task'] as const;
export type SubjectKind = (typeof subjectKinds)[number];

export interface Subject {
  kind: SubjectKind;
  /** Registered name, workload or task id. */
  name: string;
}

/**
 * Kinds that have a meaning of their own, with a sentence each. A policy that misspells one is refused at load; a kind of
 * somebody's own begins with `x_`.
 */
export const knownKinds = {
  risk: 'a risk score, 0 to 100',
  owner_left: 'who answers for it is no longer there',
  image_vulnerable: 'its image or a dependency has a known vulnerability',
  anomaly: 'it behaves as it does not usually',
  session_revoked: 'its session at the identity provider was ended (CAEP)',
  credential_changed: 'a credential of it was revoked or replaced (CAEP)',
  assurance_lowered: 'the assurance of its authentication fell (CAEP)',
  device_not_compliant: 'the device that it runs on does not comply any more (CAEP)',
  account_disabled: 'its account was disabled or deleted (RISC)',
  review_overdue: 'its review date has passed',
  canary_used: 'it used a credential that nobody should use',
  used_elsewhere: 'a credential was used by another instance, or from another network, than it was issued to',
  undeclared_call: 'it called what it had not declared',
  unusual_rate: 'it calls far more often than its bound',
} as const;

const customKind = /^x_[a-z0-9][a-z0-9_]{0,59}$/;

export function isSignalKind(kind: string): boolean {
  return Object.hasOwn(knownKinds, kind) || customKind.test(kind);
}

/** What policy sees of a signal. Its reason is free text, and never decides. */
export interface SignalFact {
  subject: SubjectKind;
  kind: string;
  value: number;
  source: string;
}

/** One thing that one source says of one subject, until it says otherwise. */
export interface Signal {
  tenant: string;
  signalId: string;
  subject: Subject;
  kind: string;
  /** 0 to 100. */
  value: number;
  reason: string;
  /** Attested workload, issuer of security events, or `leasehold/<part>` for the broker's own. Never chosen by the reporter. */
  source: string;
  reportedBy: string;
  reportedAt: Instant;
  occurredAt: Instant;
  /** Undefined: until it is cleared. */
  expiresAt: Instant | undefined;
  clearedAt: Instant | undefined;
}

export const highestValue = 100;

export function subjectKey(tenant: string, { kind, name }: Subject): string {
  return `${tenant}\n${kind}\n${name}`;
}
