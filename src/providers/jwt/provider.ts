import type { ArgumentLimits, Arguments } from '../../domain/arguments.ts';
import { BrokerError } from '../../domain/errors.ts';
import type { KeyBinding, Lease, Task } from '../../domain/model.ts';
import type { Grant, Material, SelfContainedProvider } from '../../domain/provider.ts';
import type { Clock } from '../../domain/time.ts';
import type { KeyRing } from '../../keys/signing-keys.ts';
import type { OptionIssue } from '../options.ts';
import { createJwsWriter } from './jws.ts';
import type { StatusReference } from './status-list.ts';

export interface JwtProviderOptions {
  clock: Clock;
  issuers: ReadonlyMap<string, JwtIssuer>;
}

/** A tenant is an issuer of its own, with keys of its own: whoever trusts one trusts nothing of another. */
export interface JwtIssuer {
  /** Issuer identifier: the tenant's public URL (RFC 8414 §2). */
  issuer: string;
  keyRing: Pick<KeyRing, 'signer' | 'maxExpiry'>;
  /** Where the status of a task's tokens stands. */
  statusListUri(index: number): StatusReference;
}

/** Claims of an issued token. They follow from lease and task alone, so that a retry gives an equivalent token. */
export interface AccessTokenClaims {
  iss: string;
  /**
   * Attested workload that received it, also below other tasks: a resource server that does not read `act` then records
   * who really calls, and never takes a child for its parent (RFC 8693 §1.1 calls that impersonation).
   */
  sub: string;
  aud: string;
  exp: number;
  iat: number;
  nbf: number;
  /** The lease. */
  jti: string;
  /** Registered agent. */
  client_id: string;
  scope: string;
  authorization_details: AuthorizationDetail[];
  task_id: string;
  root_task_id: string;
  epoch: number;
  /** Present when the task is below others: who hands on the work, and now does it. */
  act?: Actor;
  /** RFC 7800 §3, RFC 9449 §6, RFC 8705 §3.1: present when only the holder of this key or certificate may use it. */
  cnf?: KeyBinding;
  status: { status_list: StatusReference };
}

/**
 * RFC 8693 §4.1: the outermost is who acts now, each further one is who handed the work on to the one around it, and the
 * innermost is the agent of the root. Each is the attested workload that its task is pinned to. None but the outermost
 * may count for access (§4.1); what the token allows is in `authorization_details` alone.
 */
export interface Actor {
  sub: string;
  act?: Actor;
}

/** RFC 9396 §2. What the agent declared holds as it stands; limits are for arguments that it did not declare. */
export interface AuthorizationDetail {
  type: 'leasehold_tool';
  tool: string;
  tier: string;
  actions: readonly string[];
  arguments?: Arguments;
  argument_limits?: ArgumentLimits;
}

/** Longest token, in bytes: it has to fit into headers that proxies cut at a few kilobytes. */
export const maxTokenBytes = 2048;

/** RFC 9068 access tokens with rich authorization details (RFC 9396), for one tool each. */
export function createJwtProvider(options: JwtProviderOptions): SelfContainedProvider {
  const { clock, issuers } = options;
  const write = createJwsWriter('at+jwt');

  function issuerOf(tenant: string): JwtIssuer {
    const issuer = issuers.get(tenant);
    if (issuer === undefined) throw new BrokerError('PROVIDER_UNAVAILABLE', 'this broker has no keys for the tenant');
    return issuer;
  }

  return {
    selfContained: true,
    kind: 'jwt',
    maxExpiry: (tenant, now) => issuerOf(tenant).keyRing.maxExpiry(now),
    sign(grant): Material {
      const { issuer, keyRing, statusListUri } = issuerOf(grant.lease.tenant);
      const signer = keyRing.signer(clock.now());
      if (grant.lease.expiresAt > signer.maxExpiry) {
        throw new BrokerError(
          'PROVIDER_UNAVAILABLE',
          'the signing key does not live as long as this credential would; retry with a new request_id',
        );
      }
      const token = write(signer, claimsOf(grant, issuer, statusListUri));
      if (token.length > maxTokenBytes) {
        throw new BrokerError(
          'TOO_LARGE',
          `the token for ${grant.lease.tool}/${grant.lease.tier} would have ${token.length} bytes and ${maxTokenBytes} are allowed; its tool's owner has to shorten the tier's list of actions or the resource identifier${grant.above === undefined ? '' : `, or the task has to be less deep: the token names the ${grant.above.length + 1} workloads that acted`}`,
        );
      }
      // RFC 9449 §5: a token that is bound to a key is no bearer token. RFC 8705 keeps the type.
      const tokenType = grant.lease.terms?.boundTo?.jkt === undefined ? 'Bearer' : 'DPoP';
      return { kind: 'access_token', token, tokenType };
    },
  };
}

function claimsOf(
  { lease, task, above, tool, tier }: Grant,
  issuer: string,
  statusListUri: JwtIssuer['statusListUri'],
): AccessTokenClaims {
  const issuedAt = Math.floor(lease.issuedAt / 1000);
  return {
    iss: issuer,
    sub: lease.workload,
    aud: tool.resource,
    exp: Math.floor(lease.expiresAt / 1000),
    iat: issuedAt,
    nbf: issuedAt,
    jti: lease.leaseId,
    client_id: lease.agent,
    scope: `${lease.tool}:${lease.tier}`,
    authorization_details: [detailOf(lease, tier.actions)],
    task_id: task.taskId,
    root_task_id: task.rootTaskId,
    epoch: task.epoch,
    ...(above === undefined ? {} : { act: actorOf(lease.workload, above) }),
    ...(lease.terms?.boundTo === undefined ? {} : { cnf: lease.terms.boundTo }),
    status: { status_list: statusListUri(task.statusIndex) },
  };
}

function actorOf(holder: string, above: readonly Task[]): Actor {
  const before = above.reduceRight<Actor | undefined>((act, { taskId, agentWorkload }) => {
    if (agentWorkload === undefined) {
      throw new BrokerError(
        'DELEGATION_REFUSED',
        `task ${taskId} above has no attested workload yet, and a token names every hop: let its agent get a credential first`,
      );
    }
    return act === undefined ? { sub: agentWorkload } : { sub: agentWorkload, act };
  }, undefined);
  return before === undefined ? { sub: holder } : { sub: holder, act: before };
}

function detailOf({ tool, tier, terms }: Lease, actions: readonly string[]): AuthorizationDetail {
  const detail: AuthorizationDetail = { type: 'leasehold_tool', tool, tier, actions };
  if (terms === undefined) return detail;
  const { values } = terms.arguments;
  const open = Object.entries(terms.argumentLimits).filter(([name]) => !Object.hasOwn(values, name));
  return {
    ...detail,
    ...(Object.keys(values).length === 0 ? {} : { arguments: values }),
    ...(open.length === 0 ? {} : { argument_limits: Object.fromEntries(open) }),
  };
}

/** A `jwt` tier takes no options of its own. */
export function validateJwtTierOptions(options: Readonly<Record<string, unknown>>, path: string): OptionIssue[] {
  return Object.keys(options).map((name) => ({
    path: `${path}.${name}`,
    message: 'unknown option; a tier with provider jwt takes none',
  }));
}
