import type { JWTPayload } from 'jose';
import type { Instant } from '../domain/time.ts';
import { TokenRefused } from './errors.ts';

/** What a verified token says. */
export interface VerifiedToken {
  leaseId: string;
  taskId: string;
  rootTaskId: string;
  /** Attested workload that it was issued to. */
  workload: string;
  /** Workloads that handed the work on to it (RFC 8693 §4.1), nearest first; empty when its task is a root. */
  delegatedBy: readonly string[];
  /** Registered agent. */
  agent: string;
  tool: string;
  tier: string;
  /** What the agent may do. */
  actions: readonly string[];
  epoch: number;
  issuedAt: Instant;
  expiresAt: Instant;
  /** How it is bound to its holder: to a key (RFC 9449), or a TLS client certificate (RFC 8705); undefined for a bearer token. */
  boundBy: 'dpop' | 'mtls' | undefined;
  /** Thumbprint of that key or certificate. */
  boundTo: string | undefined;
  /** All claims, as signed. */
  claims: Readonly<JWTPayload>;
}

export function readClaims(payload: JWTPayload): VerifiedToken {
  const details = payload['authorization_details'];
  const detail: unknown = Array.isArray(details) && details.length === 1 ? details[0] : undefined;
  if (detail === null || typeof detail !== 'object' || (detail as { type?: unknown }).type !== 'leasehold_tool') {
    throw new TokenRefused('claims', 'the claim authorization_details must hold one entry of type leasehold_tool');
  }
  const { tool, tier, actions } = detail as Record<string, unknown>;
  if (!Array.isArray(actions) || !actions.every((action) => typeof action === 'string')) {
    throw new TokenRefused('claims', 'the claim authorization_details must list actions');
  }
  const epoch = payload['epoch'];
  if (!Number.isSafeInteger(epoch)) throw new TokenRefused('claims', 'the claim epoch is missing or wrong');
  return {
    leaseId: text('jti', payload.jti),
    taskId: text('task_id', payload['task_id']),
    rootTaskId: text('root_task_id', payload['root_task_id']),
    workload: text('sub', payload.sub),
    delegatedBy: delegatedBy(payload),
    agent: text('client_id', payload['client_id']),
    tool: text('authorization_details', tool),
    tier: text('authorization_details', tier),
    actions,
    epoch: epoch as number,
    issuedAt: payload.iat! * 1000,
    expiresAt: payload.exp! * 1000,
    ...boundTo(payload),
    claims: payload,
  };
}

function text(claim: string, value: unknown): string {
  if (typeof value !== 'string' || value === '')
    throw new TokenRefused('claims', `the claim ${claim} is missing or wrong`);
  return value;
}

/** More than any tree is deep. */
const mostActors = 32;

function delegatedBy(payload: JWTPayload): string[] {
  const actors: string[] = [];
  for (let act = payload['act']; act !== undefined; act = (act as { act?: unknown }).act) {
    if (act === null || typeof act !== 'object' || Array.isArray(act) || actors.length === mostActors) {
      throw new TokenRefused('claims', 'the claim act must be a chain of actors');
    }
    actors.push(text('act', (act as { sub?: unknown }).sub));
  }
  // The outermost is who acts now, which is the holder.
  if (actors.length > 0 && actors[0] !== payload.sub) {
    throw new TokenRefused('claims', 'the claim act must begin with the workload that holds the token');
  }
  return actors.slice(1);
}

/** A confirmation that this release does not know is one that it cannot check. */
function boundTo(payload: JWTPayload): Pick<VerifiedToken, 'boundBy' | 'boundTo'> {
  const { cnf } = payload;
  if (cnf === undefined) return { boundBy: undefined, boundTo: undefined };
  const members = cnf !== null && typeof cnf === 'object' ? Object.entries(cnf) : [];
  const [name, thumbprint] = members[0] ?? [];
  if (members.length === 1 && typeof thumbprint === 'string' && thumbprint !== '') {
    if (name === 'jkt') return { boundBy: 'dpop', boundTo: thumbprint };
    if (name === 'x5t#S256') return { boundBy: 'mtls', boundTo: thumbprint };
  }
  throw new TokenRefused('proof_missing', 'the token is bound in a way that this verifier cannot check');
}
