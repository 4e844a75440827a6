import type { Attestor } from '../../domain/attestor.ts';
import { BrokerError } from '../../domain/errors.ts';
import type { Clock, Millis } from '../../domain/time.ts';
import { edwardsAlgorithms, svidAlgorithms } from '../keys/verification-key.ts';
import { verifySignature } from '../keys/verify-token.ts';
import { checkSettings } from '../settings.ts';
import { checkAudience, checkTimes } from '../token/check-claims.ts';
import { parseToken } from '../token/parse-token.ts';
import { invalid } from '../token/refusal.ts';
import { claimHasOneOf, findClaim } from './find-claim.ts';
import { createOidcKeys } from './oidc-keys.ts';
import { compileWorkloadTemplate } from './workload-template.ts';

export interface OidcOptions {
  issuer: string;
  tenant: string;
  audiences: string[];
  /** Each claim must have the value, or one of the values. */
  requiredClaims: Record<string, string | string[]>;
  /** See `compileWorkloadTemplate`. */
  workload: string;
  /** Claim that lists the caller's groups. Without it the issuer's groups count for nothing. */
  groupsClaim?: string | undefined;
  /** Signature algorithms; only asymmetric ones exist here. Default: RS256 and ES256. */
  algorithms?: string[] | undefined;
  maxLifetime: Millis;
  /** At most 60 s. */
  skew: Millis;
  staleAfter: Millis;
  /** No two requests for keys begin closer together than this; default 30 s. */
  minRefresh?: Millis | undefined;
  timeout: Millis;
  jwksUri?: string | undefined;
  caFile?: string | undefined;
  clock: Clock;
  random?: (() => number) | undefined;
}

const known: readonly string[] = [...svidAlgorithms, ...edwardsAlgorithms];
/** Places where a token would bring its own key or its own rules (RFC 8725 §3.10). Their presence is an attack. */
const refusedMembers = ['jku', 'jwk', 'x5u', 'x5c', 'crit', 'b64'];
/** ID tokens, and access tokens by RFC 9068 §2.1. Logout tokens, DPoP proofs and the like are no attestation (RFC 8725 §3.11). */
const types = new Set(['jwt', 'application/jwt', 'at+jwt', 'application/at+jwt']);

/** Verifies an OpenID Connect issuer's ID tokens and JWT access tokens. */
export function createOidcAttestor(options: OidcOptions): Attestor {
  const { issuer, tenant, requiredClaims, maxLifetime, skew, algorithms = ['RS256', 'ES256'] } = options;
  const name = `issuer/${issuer}`;
  checkSettings(name, options);
  const refused = algorithms.filter((alg) => !known.includes(alg));
  if (refused.length > 0 || algorithms.length === 0) {
    throw new Error(`${name}: algorithms must be some of ${known.join(', ')}`);
  }
  const audiences = new Set(options.audiences);
  const required = Object.entries(requiredClaims).map(([claim, values]) => [claim, [values].flat()] as const);
  const workloadOf = compileWorkloadTemplate(options.workload);
  const keys = createOidcKeys({ ...options, minRefresh: options.minRefresh ?? 30_000 });

  return {
    name,
    accepts: ({ iss }) => iss === issuer,
    async attest(token, now) {
      const parsed = parseToken(token);
      const { claims } = parsed;
      checkHeader(parsed.header, algorithms);
      if (claims['iss'] !== issuer) {
        throw new BrokerError('ISSUER_UNKNOWN', `The attestation is from another issuer than ${issuer}.`);
      }
      checkAudience(claims, audiences);
      const expiresAt = checkTimes(claims, { now, skew, maxLifetime });
      for (const [claim, values] of required) {
        if (!claimHasOneOf(findClaim(claims, claim), values)) {
          throw invalid(`The attestation's claim \`${claim}\` is not one that this broker accepts from ${issuer}.`);
        }
      }
      const workload = workloadOf(claims);
      await verifySignature(token, parsed, keys, now);
      const groups = options.groupsClaim === undefined ? undefined : groupsIn(findClaim(claims, options.groupsClaim));
      return { workload, tenant, kind: 'oidc', issuer, expiresAt, ...(groups === undefined ? {} : { groups }) };
    },
    generation: () => keys.generation(),
    fresh: (now) => keys.fresh(now),
    status: (now) => keys.status(now),
    close: () => keys.close(),
  };
}

/** A list of texts, or one. How many there can be is bounded by the length of a token. */
function groupsIn(claim: unknown): readonly string[] {
  return [claim]
    .flat()
    .filter((group): group is string => typeof group === 'string' && group !== '' && group.length <= 256);
}

function checkHeader(header: Readonly<Record<string, unknown>>, algorithms: readonly string[]): void {
  const { alg, typ } = header;
  if (!algorithms.includes(alg as string)) {
    throw invalid(`The attestation is signed with an algorithm that is not accepted. Use ${algorithms.join(' or ')}.`);
  }
  const brought = refusedMembers.filter((member) => Object.hasOwn(header, member));
  if (brought.length > 0) {
    throw invalid(`The attestation's header has ${brought.join(', ')}: keys come from the issuer alone. Leave it out.`);
  }
  // RFC 7515 §4.1.9: compared without regard to case.
  if (typ !== undefined && !(typeof typ === 'string' && types.has(typ.toLowerCase()))) {
    throw invalid('The attestation is another kind of token than an ID token or an access token (`typ`).');
  }
}
