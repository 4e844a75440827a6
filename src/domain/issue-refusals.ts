import type { BoundedDecision } from './decision.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import { constraintOf } from './key-binding.ts';
import type { Line, Recorded } from './issue-records.ts';
import type { Lease, ToolAccess } from './model.ts';
import type { Instant } from './time.ts';

export function renewable(lease: Lease, now: Instant): boolean {
  return lease.state === 'active' && lease.settleCause === undefined && lease.expiresAt > now;
}

export function stillRunning(): BrokerError {
  return new BrokerError('IN_PROGRESS', 'the first call with this request_id is still running: retry shortly', {
    retryAfterMs: 500,
  });
}

export function leaseEnded(lease: Lease): BrokerError {
  return new BrokerError(
    'LEASE_ENDED',
    `lease ${lease.leaseId} has ended or was renewed already: ask for a new credential with a new request_id`,
  );
}

export function otherKey(lease: Lease): BrokerError {
  const { boundTo } = lease.terms ?? {};
  if (constraintOf(boundTo) === 'mtls') {
    return new BrokerError(
      'FIELD_INVALID',
      `lease ${lease.leaseId} is bound to a client certificate (thumbprint ${boundTo!['x5t#S256']}): renew it without dpop_proof, over TLS with that certificate, or ask for a new credential`,
    );
  }
  return fieldInvalid(
    'dpop_proof',
    boundTo === undefined
      ? `lease ${lease.leaseId} is bound to no key, and stays so: ask for a new credential with a proof`
      : `has to be a proof of the key that lease ${lease.leaseId} is bound to (thumbprint ${boundTo.jkt})`,
  );
}

export function refusal(
  decision: Exclude<BoundedDecision, { effect: 'allow' }> & { record?: Recorded },
  access: ToolAccess,
  line: Line,
): BrokerError {
  const { rule, record, hop } = decision;
  const named = {
    ...(record === undefined ? {} : { decision: record.decisionId }),
    ...(hop === undefined ? {} : { decided_by: hop }),
  };
  const metadata = { tool: access.tool, tier: access.tier, rule, ...named };
  const name = `${access.tool}:${access.tier}`;
  if (line.renewedFrom !== undefined) {
    return notRenewed({ message: decision.reason, metadata }, access, line.renewedFrom);
  }
  if (decision.effect === 'too_late') return new BrokerError('DEADLINE_TOO_CLOSE', decision.reason, { metadata });
  return new BrokerError('POLICY_DENIED', `${name} is denied: ${decision.reason}`, { metadata });
}

export function notRenewed(
  why: Pick<BrokerError, 'message' | 'metadata'>,
  access: ToolAccess,
  lease: Pick<Lease, 'expiresAt'>,
): BrokerError {
  const until = new Date(lease.expiresAt).toISOString();
  return new BrokerError(
    'RENEWAL_REFUSED',
    `${access.tool}:${access.tier} is not renewed: ${why.message}; the present credential lives until ${until}`,
    { metadata: { ...why.metadata, lives_until: until } },
  );
}
